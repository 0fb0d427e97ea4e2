"""KnobLever: a lever that turns one knob the workload declares. Batch size, runtime and precision are such levers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from negawatt.core.host import Host
from negawatt.core.lever import Choice, Context, LeverInfo
from negawatt.core.workload import Knob, Workload


def knob_choices(lever: str, knob: Knob) -> list[Choice]:
    """The choices of a knob as choices of a lever."""
    competent = knob.choices if knob.competent is None else knob.competent
    return [
        Choice(lever=lever, phase=knob.phase, value=v, naive=v == knob.default, competent=v in competent)
        for v in knob.choices
    ]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KnobLever:
    """Turns the knob called `knob` in every phase that declares it.

    Attributes:
        info: what the lever is.
        knob: name of the knob.
    """

    info: LeverInfo
    knob: str

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the contract; a knob needs nothing of the host
        """Always: the knob belongs to the workload."""
        return None

    def choices(self, workload: Workload) -> Sequence[Choice]:
        """The values the workload declares."""
        knobs = [knob for phase in self.info.phases if (knob := workload.knob(phase, self.knob))]
        return [choice for knob in knobs for choice in knob_choices(self.info.name, knob)]

    @contextmanager
    def applied(self, workload: Workload, choice: Choice, context: Context) -> Iterator[Workload]:  # noqa: ARG002
        """Yield the workload with the knob turned; nothing outside it changes."""
        yield workload.with_param(choice.phase, self.knob, choice.value)
