"""Saving: how much less energy, how sure, and in which of four words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from negawatt.core.reading import Source
from negawatt.core.workload import Phase


class Verdict(StrEnum):
    """What may be claimed. *Shown* means: randomised paired blocks on fresh runs, interval above zero, quality kept."""

    VERIFIED = "verified"
    """shown, on counter or sampled joules on both sides"""
    INDICATIVE = "indicative"
    """shown, on estimated or modelled joules, with a sign that holds over the whole range of the power model"""
    NOT_SHOWN = "not shown"
    """the interval spans zero, the quality was not kept, or the sign depends on the power model"""
    WORSE = "worse"
    """the interval is below zero: the setting costs energy"""


class Baseline(StrEnum):
    """What a saving is stated against."""

    NAIVE = "naive"
    """the framework's tutorial: every knob at its default"""
    COMPETENT = "competent"
    """what a competent engineer would use: the fastest setting; of a server, the one of least energy that keeps the
    promised p99, or of the lowest p99 if none is promised. The headline"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float  # in the unit of whatever it estimates
    low: float  # same unit
    high: float  # same unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """Energy of the plan against one baseline: 1 - plan / baseline, per unit of work.

    Attributes:
        phase: the phase it is about; None: the whole life.
        against: the baseline.
        fraction: point estimate; negative if the plan costs more.
        ci_low, ci_high: its confidence interval, meter offset included; for estimated or modelled energy it spans the
            intervals at all corners of the model's range.
        level_fraction: confidence level of the interval.
        n: independent blocks it rests on.
        evidence: the weakest source on either side.
        verdict: what may be claimed.
        reasons: why the verdict is not better, one sentence each.
        corners: for estimated or modelled energy, the saving (as a fraction) at each corner of the model's range.
        slowdown: change of the time that counts (per work, or of a server the p99) as a fraction, positive is slower.
        quality_change: plan minus baseline, in the unit of the quality metric; None if the workload reports none.
    """

    phase: Phase | None
    against: Baseline
    fraction: float
    ci_low: float
    ci_high: float
    level_fraction: float
    n: int
    evidence: Source
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    corners: tuple[Interval, ...] = ()
    slowdown: Interval | None = None
    quality_change: Interval | None = None

    @property
    def shown(self) -> bool:
        """Whether a saving may be claimed at all."""
        return self.verdict in (Verdict.VERIFIED, Verdict.INDICATIVE)

    def label(self) -> str:
        """The verdict as it is printed: "verified", "indicative (estimated)", "not shown", "worse"."""
        return f"{self.verdict} ({self.evidence})" if self.verdict is Verdict.INDICATIVE else str(self.verdict)
