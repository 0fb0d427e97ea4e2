"""What is known of a level of a service: how many requests it can take, and what it draws. Used by tuning.serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A setting that the controller may choose, with what is known of it beforehand.

    Attributes:
        name: for notes.
        capacity_per_s: requests that it can answer within the promise [1/s]; None: to be learnt.
        idle_w: power without load [W]; None: to be learnt.
        energy_per_request_j: joules of each request beyond that [J]; None: to be learnt.
        effort: how much it is expected to draw beside the other levels, in any unit: what is tried first.
        awake: how many replicas it has awake; a level with more of them than the one before is not in force at once.
        up_s: time until more replicas are awake [s].
    """

    name: str
    capacity_per_s: float | None = None
    idle_w: float | None = None
    energy_per_request_j: float | None = None
    effort: float = 1.0  # in any unit, the same for all levels
    awake: int = 1
    up_s: float = 0.0


_STEP = 1.5
"""A level may meet so much more than it has been seen to keep the promise with."""
_SHUT_S, _MOST_SHUT_S = 15.0, 3600.0
"""It is not tried for so long after it broke the promise for the first time, twice as long after each further time."""
_FORGET = 0.995
"""Weight of what was seen a window ago beside what is seen now: the last few hundred windows count."""


@final
class Known:
    """What is known of one level; it grows with what is seen.

    Args:
        level: with what was told beforehand.
    """

    def __init__(self, level: Level) -> None:
        self.level = level
        self.capacity_per_s = level.capacity_per_s  # None: not seen yet
        self.kept_per_s = 0.0  # the highest rate that it kept the promise with
        self.strikes = 0
        self._open_s = 0.0  # from then on it may be tried
        self._shut_s = _SHUT_S  # how long it was not, the last time
        self._kept_s = 0.0  # how long it has kept the promise since it was struck
        self._sums = [0.0] * 5  # of weights, rates, rates squared, powers, rates times powers
        self.windows = 0

    def takes(self, now_s: float, trust: float) -> float | None:
        """The highest rate that it may be given now [1/s]; None: nothing is known of it.

        Args:
            now_s: the time [s].
            trust: what capacities that were told are to be multiplied by.
        """
        if now_s < self._open_s:
            return 0.0
        if self.capacity_per_s is None:
            return None
        if self.level.capacity_per_s is not None:
            return trust * self.capacity_per_s
        again = min(2.0, 1.1 + 0.5 * (now_s - self._open_s) / self._shut_s) if self.strikes else 1.0
        return self.capacity_per_s * again  # the longer ago it broke the promise, the more it is tried with

    def kept(self, rate_per_s: float, time_s: float) -> None:
        """It kept the promise with this rate for a window."""
        self.kept_per_s = max(self.kept_per_s, rate_per_s)
        if self.learning:
            self.capacity_per_s = max(self.capacity_per_s or 0.0, _STEP * rate_per_s)
        self._kept_s += time_s
        if self.strikes and self._kept_s >= 4.0 * _SHUT_S * 2.0**self.strikes:
            self.strikes, self._kept_s = self.strikes - 1, 0.0

    def broke(self, rate_per_s: float, now_s: float) -> None:
        """It broke the promise with this rate: it takes less, and is not tried for a while."""
        less = 0.9 * rate_per_s
        if self.level.capacity_per_s is None:
            self.capacity_per_s = less if self.capacity_per_s is None else min(self.capacity_per_s, less)
        self.kept_per_s = min(self.kept_per_s, less)
        self._shut_s = min(_MOST_SHUT_S, _SHUT_S * 2.0**self.strikes)
        self.strikes, self._kept_s, self._open_s = self.strikes + 1, 0.0, now_s + self._shut_s

    def drew(self, rate_per_s: float, power_w: float) -> None:
        """A window's power."""
        self.windows += 1
        seen = (1.0, rate_per_s, rate_per_s**2, power_w, rate_per_s * power_w)
        self._sums = [_FORGET * old + new for old, new in zip(self._sums, seen, strict=True)]

    @property
    def learning(self) -> bool:
        """Whether its capacity was not told, and it has not shown yet what is too much for it."""
        return self.level.capacity_per_s is None and not self.strikes

    @property
    def metered_fraction(self) -> float:
        """How well its power is known: 1 if it was told beforehand, or metered for ten windows."""
        told = self.level.idle_w is not None and self.level.energy_per_request_j is not None
        return 1.0 if told else min(1.0, self.windows / 10.0)

    def power_w(self, rate_per_s: float) -> float:
        """Expected power at a rate [W]: a line through what was seen, held by what was told or, without, by a guess.

        The guess is that half of what was seen is there without load. It weighs as much as two windows.
        """
        weight, rates, squares, powers, products = self._sums
        level = self.level
        mean = rates / weight if weight else 0.0
        mean_w = powers / weight if weight else 0.0
        idle_w = level.idle_w if level.idle_w is not None else 0.5 * mean_w
        slope_j = level.energy_per_request_j
        if slope_j is None:
            slope_j = (mean_w - idle_w) / mean if mean > 0 else 0.0
        if not weight:
            return idle_w + slope_j * rate_per_s
        hold = 2.0 * max(mean, 1e-9) ** 2
        spread, joint = squares - weight * mean**2, products - mean * powers
        slope_j = max(0.0, (joint + hold * slope_j) / (max(0.0, spread) + hold))
        told_w = idle_w + slope_j * mean
        middle_w = (powers + 2.0 * told_w) / (weight + 2.0)
        return max(0.0, middle_w + slope_j * (rate_per_s - mean))
