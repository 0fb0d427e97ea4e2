"""Trial: a setting that was run, with its measurement or its error. It exists only after it is over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from negawatt.core.lever import Setting
from negawatt.core.measurement import Measurement
from negawatt.core.workload import Phase, Split


class Role(StrEnum):
    """Why a trial was run."""

    SEARCH = "search"
    WARMUP = "warmup"
    PROOF = "proof"
    APPLY = "apply"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialError:
    """Why a trial gave no measurement.

    Attributes:
        kind: "raised", "hung", "died", "bad-result", "interrupted".
        message: what happened, as a sentence.
        detail: traceback or last lines of output.
    """

    kind: str
    message: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of one phase under one setting.

    Attributes:
        setting: what was applied.
        split: the data split that `measurement.quality` refers to.
        seed: seed given to the workload.
        role: why it was run.
        block: number of the proof block it belongs to, or -1.
        started_utc: start, ISO 8601.
        measurement: the result, or None if it failed.
        error: the reason, if it failed.
    """

    setting: Setting
    split: Split
    seed: int
    role: Role
    started_utc: str
    block: int = -1
    measurement: Measurement | None = None
    error: TrialError | None = None

    def __post_init__(self) -> None:
        if (self.measurement is None) == (self.error is None):
            raise ValueError("a trial has either a measurement or an error")

    @property
    def phase(self) -> Phase:
        """The phase that was run."""
        return self.setting.phase


def measurements(trials: Iterable[Trial], setting: Setting, *roles: Role) -> list[Measurement]:
    """What the good runs of one setting in some roles measured, in order."""
    return [t.measurement for t in trials if t.setting == setting and t.role in roles and t.measurement is not None]
