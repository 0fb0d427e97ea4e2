"""Cascade: a small model is asked first, and the large one only where the small one is not sure enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from negawatt.core.errors import UsageError
from negawatt.core.lever import LeverInfo, Order
from negawatt.core.serving import Cascade, ServingOptions
from negawatt.core.workload import ParamValue, Phase, Workload
from negawatt.levers.gateway import OFF, GatewayLever

_CONFIDENCES = (0.99, 0.95, 0.9, 0.8, 0.6)
"""Least confidences that count; the boldest one last."""


def _values(workload: Workload) -> Sequence[ParamValue]:
    if getattr(workload.target, "small", None) is None:
        return ()
    return [OFF, *(f"sure>={confidence:g}" for confidence in _CONFIDENCES)]


def _turned(workload: Workload, options: ServingOptions, value: ParamValue) -> ServingOptions:
    small = getattr(workload.target, "small", None)
    how = getattr(workload.target, "cascade", Cascade(upstream=""))
    if not (isinstance(small, str) or callable(small)) or not isinstance(how, Cascade):
        raise UsageError(
            f"small is {small!r} and cascade is {how!r}",
            "the small model is asked at the address that they give",
            "make small the base URL of its server or a method like served(params, state), and cascade, if any, a "
            'Cascade(upstream="", field="confidence")',
        )
    confidence = float(str(value).removeprefix("sure>="))
    # The address of one that is started for the trial is known once it runs.
    upstream = small if isinstance(small, str) else ""
    return replace(options, cascade=replace(how, upstream=upstream, confidence=confidence))


lever = GatewayLever(
    info=LeverInfo(
        name="cascade",
        summary="a small model answers what it is sure of, the large one the rest",
        phases=(Phase.INFER,),
        order=Order.MODEL,
        requires="a server (served/calls/judge) with a small sibling: `small`, its URL or a method that starts it",
        evidence="no rule: it depends on how often the small model is sure and right; measured, and the quality "
        "is held to the margin",
    ),
    values=_values,
    turned=_turned,
    competent=False,
)
