"""Model size: how large a network to train, chosen before training. What is trained smaller is served smaller."""

from __future__ import annotations

from negawatt.core.lever import LeverInfo, Order
from negawatt.core.workload import Phase
from negawatt.levers.knob import KnobLever

lever = KnobLever(
    info=LeverInfo(
        name="model-size",
        summary="a smaller network, or low-rank adapters on a frozen one",
        phases=(Phase.TRAIN,),  # inference answers with the model that was trained, so the choice goes there with it
        order=Order.MODEL,
        requires='a knob "size" of the train phase',
        evidence="low-rank adapters train GPT-3 175B at 1.33 times the tokens per second of full fine-tuning "
        "(Hu et al., LoRA, arXiv 2106.09685, 2021), and answer at the same cost; for smaller networks no rule",
    ),
    knob="size",
)
