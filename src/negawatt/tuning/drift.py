"""Drift: whether steps have become another kind of work, from the mean of each part of a run."""

from __future__ import annotations

import math

SHIFT_FRACTION = 0.05
"""A lasting change of this size is worth tuning anew."""
ALARM_SHIFTS = 2.0
"""Sum of the changes beyond half a shift, in shifts, at which it is called lasting."""
MOST_SHIFTS = 1.2
"""One part counts for no more than this, so that a pause alone is no drift."""


class Drift:
    """Two-sided cumulative sums (Page, Biometrika 41 (1954) 100) of log ratios to an expected value.

    Args:
        expected: the value that the following ones are held against; positive.
        sd_fraction: standard deviation of one value around it, as a part of it.
    """

    def __init__(self, expected: float, sd_fraction: float = 0.0) -> None:
        self._expected = expected
        self._shift = max(SHIFT_FRACTION, 3.0 * sd_fraction)
        self._up = self._down = 0.0

    def add(self, value: float) -> bool:
        """Take the mean of one more part; True if there was a lasting change. A value not above 0 is no part."""
        if not (value > 0 and math.isfinite(value)):
            return False
        change = math.log(value / self._expected) / self._shift
        change = max(-MOST_SHIFTS, min(MOST_SHIFTS, change))
        self._up = max(0.0, self._up + change - 0.5)
        self._down = max(0.0, self._down - change - 0.5)
        return max(self._up, self._down) > ALARM_SHIFTS
