"""Power limit: the most that a GPU or a processor may draw. The last watts buy the least speed."""

from __future__ import annotations

from negawatt.core.lever import LeverInfo, Order
from negawatt.core.workload import Phase
from negawatt.hardware.control import Knob
from negawatt.levers.device_limit import DeviceLimit

lever = DeviceLimit(
    info=LeverInfo(
        name="power-limit",
        summary="the most that a GPU or processor may draw",
        phases=(Phase.TRAIN, Phase.INFER),
        order=Order.HOST,
        requires="a GPU or processor whose power limit can be set",
        privilege="root, or a guard that lets this user (`negawatt guard`)",
        evidence="a static limit of 60 % saves 14.6 % GPU energy at 13 % more time, one chosen per job 12.7 % at 5 % "
        "(24 jobs on V100, P100 and A40; Zeus, NSDI'23 traces)",
    ),
    knob=Knob.POWER_LIMIT,
)
