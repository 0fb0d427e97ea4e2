"""Precision: fewer bits per number. Often faster, sometimes slower, always to be held against quality."""

from __future__ import annotations

from negawatt.core.lever import LeverInfo, Order
from negawatt.core.workload import Phase
from negawatt.levers.knob import KnobLever

lever = KnobLever(
    info=LeverInfo(
        name="precision",
        summary="bits per number in weights and activations",
        phases=(Phase.TRAIN, Phase.INFER),
        order=Order.MODEL,
        requires='a knob "precision" of the workload',
        evidence="no rule: int8 is slower than fp32 on many CPUs (pytorch #42113, onnxruntime #20052)",
    ),
    knob="precision",
)
