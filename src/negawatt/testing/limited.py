"""LimitedLoad: what a device draws of a load under a limit that changes."""

from __future__ import annotations

import math
from bisect import bisect_right

from negawatt.testing.load import Load


class LimitedLoad:
    """The power of a load, at most the limit of the time. Limits are set in the order of time.

    Args:
        load: what would be drawn without a limit; it may be prolonged meanwhile.
    """

    def __init__(self, load: Load) -> None:
        self.load = load
        self._times_s = [0.0]
        self._limits_w = [math.inf]
        self._joules_j = [load.joules_to(0.0)]

    def limit(self, time_s: float, limit_w: float) -> None:
        """Set the limit from a time on [W]; infinite: none."""
        if limit_w != self._limits_w[-1]:
            self._joules_j.append(self.joules_to(time_s))
            self._times_s.append(time_s)
            self._limits_w.append(limit_w)

    def joules_to(self, time_s: float) -> float:
        """Joules from the load's first point to a time."""
        at = max(0, bisect_right(self._times_s, time_s) - 1)
        return self._joules_j[at] + self._limited_j(self._times_s[at], time_s, self._limits_w[at])

    def _limited_j(self, begin_s: float, end_s: float, limit_w: float) -> float:
        if math.isinf(limit_w):
            return self.load.joules_to(end_s) - self.load.joules_to(begin_s)
        times_s, powers_w = self.load.times_s, self.load.powers_w
        at_s, at_w, sum_j = begin_s, self.load.power_w(begin_s), 0.0
        for i in range(bisect_right(times_s, begin_s), bisect_right(times_s, end_s)):
            sum_j += _piece_j(at_w, powers_w[i], times_s[i] - at_s, limit_w)
            at_s, at_w = times_s[i], powers_w[i]
        return sum_j + _piece_j(at_w, self.load.power_w(end_s), end_s - at_s, limit_w)


def _piece_j(begin_w: float, end_w: float, span_s: float, limit_w: float) -> float:
    """Joules of a straight piece."""
    low_w, high_w = sorted((begin_w, end_w))
    if high_w <= limit_w:
        return (low_w + high_w) / 2 * span_s
    if low_w >= limit_w:
        return limit_w * span_s
    below = (limit_w - low_w) / (high_w - low_w)
    return span_s * (below * (low_w + limit_w) / 2 + (1 - below) * limit_w)
