"""Clock limit: the highest clock a GPU or a processor may run at. Lower clocks need less voltage."""

from __future__ import annotations

from negawatt.core.lever import LeverInfo, Order
from negawatt.core.workload import Phase
from negawatt.hardware.control import Knob
from negawatt.levers.device_limit import DeviceLimit

lever = DeviceLimit(
    info=LeverInfo(
        name="clock-limit",
        summary="the highest clock of a GPU or processor",
        phases=(Phase.TRAIN, Phase.INFER),
        order=Order.HOST,
        requires="a GPU or processor whose clock can be limited",
        privilege="root, or a guard that lets this user (`negawatt guard`)",
        evidence="dynamic power falls with clock times voltage squared; what it saves here is measured, no figure is "
        "assumed",
    ),
    knob=Knob.CLOCK_LIMIT,
)
