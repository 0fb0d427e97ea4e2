"""Replicas: how many copies of the server are up. Fewer, busier ones draw less than many idle ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from negawatt.core.errors import UsageError
from negawatt.core.lever import LeverInfo, Order
from negawatt.core.serving import ServingOptions
from negawatt.core.workload import ParamValue, Phase, Workload
from negawatt.levers.gateway import GatewayLever


def _values(workload: Workload) -> Sequence[ParamValue]:
    """As many as the workload runs today, then half of that, and so on to one."""
    now = getattr(workload.target, "replicas", 1)
    if isinstance(now, bool) or not isinstance(now, int) or now < 1:
        raise UsageError(
            f"replicas is {now!r}",
            "it is how many copies of the server run today",
            "write a whole number from 1 on, e.g. replicas = 2",
        )
    counts = [now]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts if now > 1 else ()


def _turned(workload: Workload, options: ServingOptions, value: ParamValue) -> ServingOptions:  # noqa: ARG001
    return replace(options, setting=replace(options.setting, replicas=int(value)))


lever = GatewayLever(
    info=LeverInfo(
        name="replicas",
        summary="how many copies of the server are up",
        phases=(Phase.INFER,),
        order=Order.HOST,
        requires="a server (served/calls/judge) of which several are run today: `replicas = 2`",
        evidence="a replica that waits draws idle power and fills no batch; how much that is, is measured",
    ),
    values=_values,
    turned=_turned,
    competent=True,
)
