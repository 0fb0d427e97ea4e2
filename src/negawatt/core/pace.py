"""Pace: what counts as the time of a phase, and how much of it a setting may take."""

from __future__ import annotations

from dataclasses import dataclass

from negawatt.core.measurement import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a phase must be.

    Work that waits to be done takes as long as it takes: its time is the time per unit of work. Requests to a server
    come when they come, however fast it is: its time is what 99 of 100 of them end within, the p99.

    Attributes:
        served: whether the work is requests that come at times of their own.
        p99_s: the promise: the longest p99 that is accepted [s]; None: none was made. For served work only.
        max_slowdown: largest accepted increase of the time over the competent default, as a fraction; None: any.
    """

    served: bool = False
    p99_s: float | None = None
    max_slowdown: float | None = None  # fraction

    def time_s(self, measurement: Measurement) -> float:
        """The time that counts: per unit of work, or the p99 [s]. Raises ValueError if it was not measured."""
        if not self.served:
            return measurement.time_per_work_s
        if measurement.latency is None:
            raise ValueError("the requests of a server were answered without a latency")
        return measurement.latency.p99_s

    def allowed_s(self, competent_s: float | None) -> float | None:
        """The longest time that is accepted [s]; None: any.

        Args:
            competent_s: time of the competent default [s]; None: not known yet, and nothing is held against it.
        """
        slowest_s = None if competent_s is None or self.max_slowdown is None else competent_s * (1 + self.max_slowdown)
        return min((limit_s for limit_s in (self.p99_s, slowest_s) if limit_s is not None), default=None)
