"""Arrivals: how many requests come now, and how many may come before more of the service can be awake. No clock."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import final

_APART_S, _LEAST = 30.0, 10
"""Examples so far apart count as different ones; so many different ones are believed."""
_MOST = 1500
"""Examples of each kind that are kept; the oldest are dropped first."""


def kind(rate_per_s: float) -> int:
    """Rates of one kind are within a factor of two; -1: next to none."""
    return -1 if rate_per_s < 0.25 else max(0, round(math.log2(rate_per_s)) + 2)


class _Examples:
    """The latest examples of a rise, in order of size, each with its weight."""

    __slots__ = ("_order", "_sorted", "different", "last_s")

    def __init__(self) -> None:
        self.different = 0
        self.last_s = -math.inf
        self._order: deque[tuple[float, float]] = deque()
        self._sorted: list[tuple[float, float]] = []

    def add(self, rise: float, weight: float) -> None:
        self._order.append((rise, weight))
        insort(self._sorted, (rise, weight))
        if len(self._order) > _MOST:
            del self._sorted[bisect_left(self._sorted, self._order.popleft())]

    def quantile(self, fraction: float) -> float:
        """The least rise that is enough for this part of the weights."""
        over = (1.0 - fraction) * sum(weight for _, weight in self._sorted)
        for rise, weight in reversed(self._sorted):
            over -= weight
            if over < 0:
                return rise
        return self._sorted[-1][0]


@final
class Foresight:
    """Says what followed, within a horizon, when the rate was like now.

    Rises are kept as differences of square roots, whose spread is the same at all rates if arrivals are Poisson's
    (Anscombe 1948), and grows with the rate where they come in bursts.

    Args:
        horizon_s: how far it looks [s].
        slow: whether a mistake cannot be mended at once; then it expects more than it has seen, and anything at first.
    """

    def __init__(self, horizon_s: float, *, slow: bool) -> None:
        self.horizon_s, self._slow = horizon_s, slow
        self._fed_s = 0.0
        self._waiting: deque[tuple[float, float]] = deque()  # times and rates whose future is not over
        self._highest: deque[tuple[float, float]] = deque()  # of the time after them: falling rates
        self._followed: dict[int, _Examples] = {}
        self._most_per_s = 0.0
        self._kind: int | None = None  # of the latest example

    def add(self, time_s: float, rate_per_s: float) -> None:
        """Take in the rate at a time; times rise."""
        self._most_per_s, self._fed_s = max(self._most_per_s, rate_per_s), time_s
        while self._highest and self._highest[-1][1] <= rate_per_s:
            self._highest.pop()
        self._highest.append((time_s, rate_per_s))
        while self._waiting and self._waiting[0][0] + self.horizon_s <= time_s:
            then_s, then = self._waiting.popleft()
            while self._highest[0][0] <= then_s:
                self._highest.popleft()
            highest = self._highest[0][1]
            examples = self._followed.setdefault(kind(then), _Examples())
            examples.add(math.sqrt(highest) - math.sqrt(then), highest if self._slow else 1.0)
            lull = kind(then) == self._kind == kind(0.0)  # which is one example, however long it lasts
            if not lull and then_s >= examples.last_s + max(_APART_S, self.horizon_s):
                examples.different, examples.last_s = examples.different + 1, then_s
            self._kind = kind(then)
        self._waiting.append((time_s, rate_per_s))

    def upper(self, rate_per_s: float, fraction: float) -> float:
        """The rate that is enough, within the horizon, for this part of what followed the like of now [1/s].

        Where a mistake cannot be mended at once, requests are counted and not moments: of a service that mostly sleeps,
        most requests come in what wakes it.
        """
        like = self._followed.get(kind(rate_per_s))
        rise = max(0.0, like.quantile(fraction)) if like else 0.12 * math.sqrt(rate_per_s) + 0.25
        likely = (math.sqrt(rate_per_s) + rise) ** 2
        different = like.different if like else 0
        if different >= _LEAST or not self._slow:
            return likely
        if self._fed_s < max(2.0 * _APART_S, 2.0 * self.horizon_s):
            return math.inf
        return max(likely, self._most_per_s * (1.0 + 2.0 / (different + 1.0)))  # records are still to come


@final
class Arrivals:
    """Estimates the rate from counts: over as short a time as tells a step from chance.

    Args:
        least_s, most_s: the time that an estimate covers [s].
        keep_s: how far back `within` looks [s].
    """

    def __init__(self, *, least_s: float = 2.0, most_s: float = 10.0, keep_s: float = 0.0) -> None:
        self._keep_s = keep_s
        self._kept: deque[tuple[float, float]] = deque()  # ends and counts
        self._least_s, self._most_s = least_s, most_s
        self._counts: deque[tuple[float, float]] = deque()  # lengths and counts, the newest last
        self.time_s = 0.0
        self.rate_per_s = 0.0

    def add(self, count: float, time_s: float) -> float:
        """Take in what arrived in a length of time; the rate now [1/s]."""
        self.time_s += time_s
        self._counts.append((time_s, count))
        self._kept.append((self.time_s, count))
        while len(self._kept) > 1 and self._kept[0][0] < self.time_s - self._keep_s:
            self._kept.popleft()
        covered_s = sum(length_s for length_s, _ in self._counts)
        while len(self._counts) > 1 and covered_s - self._counts[0][0] >= self._most_s:
            covered_s -= self._counts.popleft()[0]
        self.rate_per_s = self._estimate()
        return self.rate_per_s

    def within(self, time_s: float) -> float:
        """How many arrived in this time before now, at most `keep_s`; windows that reach into it count whole."""
        return sum(count for end_s, count in self._kept if end_s >= self.time_s - time_s)

    def forget(self) -> None:
        """Nothing that was seen so far speaks of now."""
        self._counts.clear()

    def _estimate(self) -> float:
        """Backwards from now; it stops at a change that chance (3 standard deviations) does not explain."""
        length_s = count = 0.0
        for more_s, more in reversed(self._counts):
            if length_s >= self._least_s:
                expected = count / length_s * more_s
                if abs(more - expected) > 3.0 * math.sqrt(max(1.0, expected * (1.0 + more_s / length_s))):
                    break
            length_s, count = length_s + more_s, count + more
        return count / length_s if length_s else 0.0


def surely(rate_per_s: float, over_s: float) -> float:
    """What of a rate that was seen over a short time is not chance: 3 standard deviations less [1/s]."""
    return max(0.0, rate_per_s - 3.0 * math.sqrt(rate_per_s / over_s))
