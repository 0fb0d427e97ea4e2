"""Batch size: how many samples or requests share one pass over the weights."""

from __future__ import annotations

from negawatt.core.lever import LeverInfo, Order
from negawatt.core.workload import Phase
from negawatt.levers.knob import KnobLever

lever = KnobLever(
    info=LeverInfo(
        name="batch-size",
        summary="samples or requests per pass over the weights",
        phases=(Phase.TRAIN, Phase.INFER),
        order=Order.BATCH,
        requires='a knob "batch_size" of the workload',
        evidence="joules per token fall roughly with the square root of the batch on H100 (ML.ENERGY v3); "
        "energy to accuracy 18 to 78 % lower at the best batch and limit (Zeus, NSDI'23 traces)",
    ),
    knob="batch_size",
)
