"""Early stopping: end training when the promised quality is reached, or when it no longer improves.

The decision is taken on the calibration split; the setting is chosen on the selection split and reported on a third,
so stopping at a lucky moment does not pay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import final

from negawatt.core.host import Host
from negawatt.core.lever import Choice, Context, LeverInfo, Order
from negawatt.core.workload import Phase, Progress, StopRule, Trainable, Workload

_NEVER = "never"
_SLACKS = (0.0, 0.01, 0.02)
"""How far above the bound to train, in the unit of the metric: room for the step from one data split to another."""
_PATIENCES = (1, 2)
"""Evaluations without a new best before giving up."""


def _at_target(target: float) -> Callable[[], StopRule]:
    def make() -> StopRule:
        return lambda progress: progress.quality is not None and progress.quality >= target

    return make


def _on_plateau(patience: int) -> Callable[[], StopRule]:
    def make() -> StopRule:
        best = float("-inf")
        stale = 0

        def rule(progress: Progress) -> bool:
            nonlocal best, stale
            if progress.quality is None:
                return False
            stale = 0 if progress.quality > best else stale + 1
            best = max(best, progress.quality)
            return stale >= patience

        return rule

    return make


@final
class EarlyStopping:
    """Stops at `target+slack`, where an absolute quality is promised, or after `patience` stale evaluations."""

    info = LeverInfo(
        name="early-stopping",
        summary="end training when the quality is reached or stalls",
        phases=(Phase.TRAIN,),
        order=Order.RUNTIME,
        requires="training that reports quality step by step (for shell commands: stop_signal in negawatt.toml)",
        evidence="80 % fewer epochs keep the best of 27 configurations in 80 % of the cases (TaskSet curves)",
    )

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the contract
        """Always: it only needs the workload's own progress."""
        return None

    def choices(self, workload: Workload) -> Sequence[Choice]:
        """Never (naive and competent), at the promised quality plus some slack, and on a plateau."""
        if Phase.TRAIN not in workload.phases() or not isinstance(workload.target, Trainable):
            return []
        if not getattr(workload.target, "stoppable", True):
            return []
        targets = [] if workload.quality_bound is None else [f"target+{slack:g}" for slack in _SLACKS]
        values = [_NEVER, *(f"patience={n}" for n in reversed(_PATIENCES)), *reversed(targets)]
        return [
            Choice(lever=self.info.name, phase=Phase.TRAIN, value=v, naive=v == _NEVER, competent=v == _NEVER)
            for v in values
        ]

    @contextmanager
    def applied(self, workload: Workload, choice: Choice, context: Context) -> Iterator[Workload]:  # noqa: ARG002
        """Yield the workload with a stop rule; a rule it already had also holds."""
        yield replace(workload, stop=self._rule(workload, str(choice.value)))

    def _rule(self, workload: Workload, value: str) -> Callable[[], StopRule] | None:
        kind, _, number = value.partition("=") if "=" in value else value.partition("+")
        if kind == "patience":
            return _on_plateau(int(number))
        if kind == "target" and workload.quality_bound is not None:
            return _at_target(workload.quality_bound + float(number))
        return workload.stop


lever = EarlyStopping()
