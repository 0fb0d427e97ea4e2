"""Lever: one way to save energy. Choice and Setting: what a lever, or all of them, are set to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, runtime_checkable

from negawatt.core.host import Host
from negawatt.core.reading import Reading
from negawatt.core.workload import ParamValue, Phase, Workload


class Order(IntEnum):
    """Where in the stack a lever acts; outer first."""

    MODEL = 0
    RUNTIME = 1
    BATCH = 2
    HOST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverInfo:
    """What a lever is.

    Attributes:
        name: unique name, equal to its entry-point name.
        summary: what it does, in one line.
        phases: the phases it can act on.
        order: where in the stack it acts.
        requires: what it needs of the workload and host, in words.
        conflicts: names of levers it cannot be combined with.
        privilege: what it needs beyond an ordinary user, or "".
        evidence: why it is expected to help, with the source.
    """

    name: str
    summary: str
    phases: tuple[Phase, ...]
    order: Order
    requires: str
    evidence: str
    conflicts: tuple[str, ...] = ()
    privilege: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One position of one lever in one phase.

    Attributes:
        lever: name of the lever.
        phase: the phase it changes.
        value: what `applied` is to set.
        naive: whether it is what the framework's tutorial does; exactly one choice per lever and phase is.
        competent: whether a competent engineer would consider it for speed alone.
    """

    lever: str
    phase: Phase
    value: ParamValue
    naive: bool = False
    competent: bool = True

    def __str__(self) -> str:
        return f"{self.lever}={self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A choice per lever for one phase, sorted by lever name."""

    phase: Phase
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, phase: Phase, choices: Iterable[Choice]) -> Setting:
        """Sort and check the choices. Raises ValueError on two choices of one lever or of another phase."""
        ordered = tuple(sorted(choices, key=lambda choice: choice.lever))
        levers = [choice.lever for choice in ordered]
        if len(set(levers)) != len(levers) or any(choice.phase != phase for choice in ordered):
            raise ValueError(f"a setting of the {phase} phase has one {phase} choice per lever, got {ordered}")
        return cls(phase=phase, choices=ordered)

    def get(self, lever: str) -> Choice | None:
        """The choice of a lever, or None if the setting leaves it alone."""
        return next((choice for choice in self.choices if choice.lever == lever), None)

    def changed(self, choice: Choice) -> Setting:
        """A copy with one lever's choice replaced or added."""
        return Setting.of(self.phase, [*(c for c in self.choices if c.lever != choice.lever), choice])

    def __str__(self) -> str:
        """The choices that differ from the naive default; "(as is)" if none does."""
        return " ".join(str(choice) for choice in self.choices if not choice.naive) or "(as is)"


@runtime_checkable
class Context(Protocol):
    """What a lever may use while it is applied."""

    @property
    def host(self) -> Host:
        """The machine."""

    def time_s(self) -> float:
        """A monotonic clock [s]."""

    def readings(self) -> tuple[Reading, ...]:
        """Energy since the window began, per scope; empty before it begins."""

    def record(self, reading: Reading) -> None:
        """Add a reading of the lever's own (a modelled device) in place of the host's meter."""


@runtime_checkable
class Lever(Protocol):
    """One way to save energy: one file, one entry point in the group `negawatt.levers`."""

    @property
    def info(self) -> LeverInfo:
        """What it is."""

    def available(self, host: Host) -> str | None:
        """None if it can be used here; else the reason as a sentence that ends with what to type."""

    def choices(self, workload: Workload) -> Sequence[Choice]:
        """What to try, per phase, the naive choice among them; empty if this workload gives it nothing to turn."""

    def applied(self, workload: Workload, choice: Choice, context: Context) -> AbstractContextManager[Workload]:
        """Apply a choice, yield the changed workload, and restore everything on any exit."""
