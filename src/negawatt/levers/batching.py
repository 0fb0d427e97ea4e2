"""Batching: requests that arrive shortly after one another share one pass over the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from negawatt.core.lever import LeverInfo, Order
from negawatt.core.serving import ServingOptions
from negawatt.core.workload import ParamValue, Phase, Workload
from negawatt.levers.gateway import OFF, GatewayLever

_WINDOWS = ((0.002, 8), (0.005, 32), (0.02, 64))
"""Longest wait for others [s] and most requests that go on together."""


def _values(workload: Workload) -> Sequence[ParamValue]:
    """Off, and windows that leave most of the promised time to the answer itself."""
    promise_s = workload.p99_s
    short = [(window_s, most) for window_s, most in _WINDOWS if promise_s is None or window_s <= promise_s / 4]
    return [OFF, *(f"{1e3 * window_s:g}ms/{most}" for window_s, most in short)]


def _turned(workload: Workload, options: ServingOptions, value: ParamValue) -> ServingOptions:  # noqa: ARG001
    window, _, most = str(value).partition("ms/")
    return replace(options, setting=replace(options.setting, window_s=float(window) / 1e3, max_batch=int(most)))


lever = GatewayLever(
    info=LeverInfo(
        name="batching",
        summary="requests that come within a few milliseconds go to the server as one",
        phases=(Phase.INFER,),
        order=Order.BATCH,
        requires="a server (served/calls/judge) whose API takes lists, as OpenAI's embeddings; others go through alone",
        evidence="joules per token fall roughly with the square root of the batch on H100 (ML.ENERGY v3)",
    ),
    values=_values,
    turned=_turned,
    competent=True,
)
