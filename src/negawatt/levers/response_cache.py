"""Response cache: a request that was answered before gets the same answer again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from negawatt.core.lever import LeverInfo, Order
from negawatt.core.serving import ServingOptions
from negawatt.core.workload import ParamValue, Phase, Workload
from negawatt.levers.gateway import OFF, GatewayLever

_SIZES = {"64MB": 64_000_000}


def _values(workload: Workload) -> Sequence[ParamValue]:  # noqa: ARG001 -- any server's answers can be kept
    return [OFF, *_SIZES]


def _turned(workload: Workload, options: ServingOptions, value: ParamValue) -> ServingOptions:  # noqa: ARG001
    return replace(options, cache_bytes=_SIZES[str(value)])


lever = GatewayLever(
    info=LeverInfo(
        name="response-cache",
        summary="equal requests get the same answer again, from memory",
        phases=(Phase.INFER,),
        order=Order.RUNTIME,
        requires="a server (served/calls/judge)",
        evidence="saves as many answers as the requests repeat, and nothing else: that is a fact of the traffic, so "
        "the calls of the workload must repeat as its users do",
    ),
    values=_values,
    turned=_turned,
    competent=False,  # what it saves is the traffic's doing: it must not hide in a baseline
)
