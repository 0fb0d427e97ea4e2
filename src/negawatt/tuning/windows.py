"""Windows: time and energy per step under one limit, from consecutive parts, with their standard errors.

A part in which the job paused (an evaluation, a checkpoint, a stalled loader) says nothing about the limit: parts much
longer per step than the median are left out, as long as more than half remain.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

PAUSE_FRACTION = 0.25
"""A part that is longer per step than the median by more than this held a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How a job stands at a step boundary, counted from its beginning.

    Attributes:
        steps: done so far.
        time_s: on a monotonic clock [s].
        energy_j: of the devices whose limit is tuned [J].
        rest_j: of whatever else of the host is measured [J].
        edge_sd_j: standard deviation of the error of `energy_j` that a counter makes at an edge, however old it is [J].
        walk_sd_j: of the error that sampling power adds up, as the root of time [J].
    """

    steps: float  # counted
    time_s: float
    energy_j: float
    rest_j: float = 0.0
    edge_sd_j: float = 0.0
    walk_sd_j: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What happened between two marks."""

    steps: float  # counted
    time_s: float
    energy_j: float
    rest_j: float
    energy_sd_j: float

    @property
    def power_w(self) -> float:
        """Mean power of the devices [W]."""
        return self.energy_j / self.time_s

    @classmethod
    def between(cls, begin: Mark, end: Mark) -> Part | None:
        """None where the marks are out of order: a clock or a counter that went backwards."""
        steps, time_s = end.steps - begin.steps, end.time_s - begin.time_s
        energy_j, rest_j = end.energy_j - begin.energy_j, end.rest_j - begin.rest_j
        walk_j2 = max(0.0, end.walk_sd_j**2 - begin.walk_sd_j**2)
        numbers = (steps, time_s, energy_j, rest_j, end.edge_sd_j, walk_j2)
        if not all(map(math.isfinite, numbers)) or steps <= 0 or time_s <= 0 or energy_j <= 0 or rest_j < 0:
            return None
        return cls(
            steps=steps,
            time_s=time_s,
            energy_j=energy_j,
            rest_j=rest_j,
            energy_sd_j=math.hypot(begin.edge_sd_j, end.edge_sd_j, math.sqrt(walk_j2)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Means per step, and the standard deviations of these means."""

    steps: float  # counted
    parts: int
    time_s: float
    time_sd_s: float
    energy_j: float
    energy_sd_j: float
    rest_w: float

    def precise(self, fraction: float) -> bool:
        """Whether both means are known to this part of themselves."""
        return self.time_sd_s <= fraction * self.time_s and self.energy_sd_j <= fraction * self.energy_j


def mean(parts: list[Part]) -> Mean:
    """The means of parts under one limit, pauses left out. At least one part."""
    middle = statistics.median(part.time_s / part.steps for part in parts)
    kept = [part for part in parts if part.time_s / part.steps <= (1.0 + PAUSE_FRACTION) * middle]
    steps, time_s = math.fsum(p.steps for p in kept), math.fsum(p.time_s for p in kept)
    energy_j = math.fsum(p.energy_j for p in kept)
    # What neighbouring parts got wrong at the edge between them cancels in the sum: two edges remain.
    edges_sd_j = max(part.energy_sd_j for part in kept)
    return Mean(
        steps=steps,
        parts=len(kept),
        time_s=time_s / steps,
        time_sd_s=_sd_of_mean([part.time_s / part.steps for part in kept]),
        energy_j=energy_j / steps,
        energy_sd_j=math.hypot(
            _sd_of_mean([p.energy_j / p.steps for p in kept], edges_sd_j * len(kept) / steps), edges_sd_j / steps
        ),
        rest_w=math.fsum(p.rest_j for p in kept) / time_s,
    )


def _sd_of_mean(values: list[float], known_sd: float = 0.0) -> float:
    """Standard error of the mean, infinite from a single value; what is known to scatter and to cancel is left out."""
    if len(values) < 2:
        return math.inf
    return math.sqrt(max(0.0, statistics.variance(values) - known_sd**2) / len(values))
