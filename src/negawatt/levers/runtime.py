"""Runtime: which engine runs the same model."""

from __future__ import annotations

from negawatt.core.lever import LeverInfo, Order
from negawatt.core.workload import Phase
from negawatt.levers.knob import KnobLever

lever = KnobLever(
    info=LeverInfo(
        name="runtime",
        summary="the engine that runs the model",
        phases=(Phase.TRAIN, Phase.INFER),
        order=Order.RUNTIME,
        requires='a knob "runtime" of the workload',
        evidence="the same weights cost different joules per answer in different engines; measured, never assumed",
    ),
    knob="runtime",
)
