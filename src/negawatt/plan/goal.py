"""Goal: what a phase is planned for. It judges single runs of the search; the proof judges blocks of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from negawatt.core.measurement import Measurement
from negawatt.core.pace import Pace

_LATE = 1e12
"""A setting that is late costs this many times as much as it is late, more joules than any that is in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Least energy at the promised quality and pace.

    Attributes:
        pace: what counts as time, and how much of it is accepted.
        least_quality: the least quality that is accepted, in the unit of the metric; None: not known yet.
        competent_s: time of the competent default [s]; None: not known yet.
    """

    pace: Pace
    least_quality: float | None = None  # in the unit of the metric
    competent_s: float | None = None

    def against(self, competent_s: float) -> Self:
        """The goal once the competent default's time is known [s]."""
        return replace(self, competent_s=competent_s)

    def keeps_quality(self, m: Measurement) -> bool:
        """Whether a run reached the quality."""
        return self.least_quality is None or (m.quality is not None and m.quality >= self.least_quality)

    def keeps_pace(self, m: Measurement) -> bool:
        """Whether a run was in time."""
        return self._late_fraction(m) <= 1

    def energy(self, m: Measurement) -> float | None:
        """What the plan is chosen by: joules per work. None if the quality was missed, or the time of waiting work."""
        if not self.keeps_quality(m):
            return None
        if self.keeps_pace(m):
            return m.energy_per_work_j
        # A search that begins with a server that is late finds its way by how late it is.
        return _LATE * self._late_fraction(m) if self.pace.served else None

    def competence(self, m: Measurement) -> float | None:
        """What the competent default is chosen by. None if the quality was missed.

        The time: an engineer takes what is fastest. But a server that keeps its promise is fast enough, and no
        engineer leaves replicas and threads running that the promise does not take: among such it is the energy.
        """
        if not self.keeps_quality(m):
            return None
        return self.pace.time_s(m) if self.pace.p99_s is None else self.energy(m)

    def _late_fraction(self, m: Measurement) -> float:
        """The time as a part of what is accepted; 0.0 where any is."""
        allowed_s = self.pace.allowed_s(self.competent_s)
        return 0.0 if allowed_s is None else self.pace.time_s(m) / allowed_s
