"""Times: a distribution of durations in little memory."""

from __future__ import annotations

import math
from typing import final

_LEAST_S = 1e-5
_RATIO = math.log(1.01)
_BINS = 2_100
"""From 10 µs to about 3 h, a hundredth apart."""


@final
class Times:
    """Durations, each known to a hundredth; from 10 µs up."""

    def __init__(self) -> None:
        self._bins = [0] * _BINS
        self.count = 0

    def add(self, time_s: float) -> None:
        """Count one [s]."""
        self._bins[_bin(time_s)] += 1
        self.count += 1

    def remove(self, time_s: float) -> None:
        """Count one that was added no longer [s]."""
        self._bins[_bin(time_s)] -= 1
        self.count -= 1

    def quantile(self, fraction: float) -> float | None:
        """What this part of them does not exceed, at most a hundredth too long [s]; None without any."""
        left = max(1, math.ceil(fraction * self.count))
        for at, count in enumerate(self._bins):
            left -= count
            if left <= 0:
                return _LEAST_S * math.exp(at * _RATIO)
        return None


def _bin(time_s: float) -> int:
    return min(math.ceil(math.log(max(time_s, _LEAST_S) / _LEAST_S) / _RATIO), _BINS - 1)
