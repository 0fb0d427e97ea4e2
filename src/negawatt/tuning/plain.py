"""Searches for the best limit that assume little: the sweep, bisection of a bound, ternary search of a valley.

Each decides from what it was told alone, in whatever order that came, so one that is told the same again after an
interruption goes on as if nothing had been.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import final

from negawatt.core.errors import UsageError
from negawatt.tuning.limits import LimitSearch, Probed
from negawatt.tuning.objective import Objective

FEW = 8
"""Ternary search compares neighbours once the bottom is between so many limits."""


class RatioSearch(ABC):
    """What all searches share: the limits, what they gave relative to the one as found, and the best of them.

    A limit that is told again counts with the mean of all that it gave.

    Args:
        limits: highest first; the first is the one as found [W or MHz].
        objective: what is wanted.

    Raises:
        UsageError: if there is no limit, or if they do not fall.
    """

    def __init__(self, limits: Sequence[float], objective: Objective) -> None:
        found = tuple(float(limit) for limit in limits)
        falling = all(high > low for high, low in pairwise(found))
        if not found or not falling or not (math.isfinite(found[0]) and found[-1] > 0):
            raise UsageError(
                f"limits {list(limits)}",
                "the first is taken as the one found on the device, and no search may go above it",
                "give each limit once, the one as found first, then ever lower ones",
            )
        self.limits = found
        self.objective = objective
        self._told: dict[int, list[Probed]] = {}

    @final
    def ask(self) -> float | None:
        """The limit to measure next, the same until it is told; None when it is over."""
        if 0 not in self._told:
            return self.limits[0]
        index = self._next() if len(self._told) < len(self.limits) else None
        return None if index is None else self.limits[index]

    def tell(self, probed: Probed) -> None:
        """What a limit gave, asked for or not.

        Raises:
            UsageError: if it is none of the limits, or if time and energy are not finite numbers above zero.
        """
        if probed.limit not in self.limits:
            raise UsageError(
                f"a limit of {probed.limit}, which is none of {list(self.limits)}",
                "its figures would be taken for those of another limit",
                "tell the figures of a limit that was given to the search",
            )
        for name, value in (("time_s", probed.time_s), ("energy_j", probed.energy_j)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(
                    f"{name} {value} at a limit of {probed.limit}",
                    "the search compares ratios of it, and its pick would be chance",
                    "measure this limit again, with a window long enough for the sensor",
                )
        self._told.setdefault(self.limits.index(probed.limit), []).append(probed)

    @property
    def best(self) -> float:
        """The best limit measured that keeps the bound; the one as found before, or if nothing is better."""
        return self.limits[self._best() if 0 in self._told else 0]

    def ratios(self, index: int) -> tuple[float, float]:
        """Time and energy per step at the limit of an index, relative to the one as found; both must be told."""
        times, energies = zip(*(self._means(i) for i in (index, 0)), strict=True)
        return times[0] / times[1], energies[0] / energies[1]

    def cost(self, index: int) -> float:
        """What the objective makes of the limit of an index; infinite where the bound is broken."""
        return self.objective.cost(*self.ratios(index))

    @property
    def measured(self) -> tuple[int, ...]:
        """The indices that were told, highest limit first."""
        return tuple(sorted(self._told))

    def _means(self, index: int) -> tuple[float, float]:
        told = self._told[index]
        return (
            math.fsum(probed.time_s for probed in told) / len(told),
            math.fsum(probed.energy_j for probed in told) / len(told),
        )

    def _best(self) -> int:
        return min(self.measured, key=lambda index: (self.cost(index), index))

    @abstractmethod
    def _next(self) -> int | None:
        """The index to measure next, of those not told, when the first is told and others are left."""


@final
class Sweep(RatioSearch):
    """Measures every limit, from the highest to the lowest, as Zeus does: the most probes, the least regret."""

    def _next(self) -> int | None:
        return next(index for index in range(len(self.limits)) if index not in self._told)


@final
class Bisection(RatioSearch):
    """Finds the lowest limit that keeps the bound, as if lower were ever slower, in the logarithm of their number.

    The best is the best on the way there, which matters where less power takes more energy.

    Raises:
        UsageError: if the objective has no bound.
    """

    def __init__(self, limits: Sequence[float], objective: Objective) -> None:
        super().__init__(limits, objective)
        if objective.max_slowdown_fraction is None:
            raise UsageError(
                "a bisection without a bound",
                "it looks for the limit at which the bound is met",
                "set max_slowdown_fraction, or use Ternary",
            )

    def _next(self) -> int | None:
        allowed, broken = 0, len(self.limits)
        while broken - allowed > 1:
            middle = (allowed + broken) // 2
            if middle not in self._told:
                return middle
            if self.objective.allows(self.ratios(middle)[0]):
                allowed = middle
            else:
                broken = middle
        return None


@final
class Ternary(RatioSearch):
    """Finds the bottom of a cost that first falls and then rises, in the logarithm of the number of limits.

    It compares two limits in the middle and goes on beside the lower one. They are a third apart where there are many
    limits, so that noise does not decide, and neighbours where there are few.
    """

    def _next(self) -> int | None:
        low, high = 0, len(self.limits) - 1
        while low < high:
            gap = (high - low) // 3 if high - low > FEW else 1
            left = (low + high + 1 - gap) // 2
            for index in (left, left + gap):
                if index not in self._told:
                    return index
            if self.cost(left) <= self.cost(left + gap):
                high = left + gap - 1
            else:
                low = left + 1
        return None


def plain_search(limits: Sequence[float], objective: Objective) -> LimitSearch:
    """The search that needs no prior knowledge: bisection if there is a bound, else ternary search."""
    return Ternary(limits, objective) if objective.max_slowdown_fraction is None else Bisection(limits, objective)
