"""Trade-off: what giving up one thing buys of another, step by step, the best bargain first.

Of the limits of a job, those on the lower convex hull of (slow-down, energy) are what some price of time picks
(the Lagrangian relaxation of a budget: H. Everett, Operations Research 11 (1963) 399). Going from one to the next is a
step; steps of many jobs in the order of their price spend a common budget best, but for the last one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from negawatt.core.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """From one point of a hull to the next.

    Attributes:
        option: index of the point that the step leads to.
        lost: what it costs more, above zero, in the unit of the losses.
        gained: what it brings, above zero, in the unit of the values.
    """

    option: int
    lost: float  # in the unit of the losses
    gained: float  # in the unit of the values

    @property
    def price(self) -> float:
        """What is gained for each unit lost."""
        return self.gained / self.lost


def hull(points: Sequence[tuple[float, float]]) -> tuple[int, tuple[Step, ...]]:
    """The best point that loses least, and the steps from there, of ever lower price, to the least value.

    Args:
        points: (loss, value) each; less is better in both.

    Raises:
        UsageError: if there is no point, or a number is not finite.
    """
    if not points or not all(math.isfinite(number) for point in points for number in point):
        raise UsageError(
            f"options {list(points)[:5]}",
            "which of them is worth its price cannot be said",
            "give at least one option, each with finite numbers",
        )
    corners: list[int] = []
    for option in sorted(range(len(points)), key=lambda i: (points[i], i)):
        if corners and points[option][1] >= points[corners[-1]][1]:
            continue
        while len(corners) > 1 and _bulges(*(points[i] for i in (corners[-2], corners[-1], option))):
            corners.pop()
        corners.append(option)
    return corners[0], tuple(
        Step(option=b, lost=points[b][0] - points[a][0], gained=points[a][1] - points[b][1])
        for a, b in pairwise(corners)
    )


def spend(steps: Iterable[tuple[Step, float]], budget: float) -> float:
    """The lowest price at which all steps that bring more than it are within a budget of losses; 0 if all are.

    Args:
        steps: each with the weight of its loss.
        budget: of the sum of weight times loss.
    """
    left = budget
    for price, loss in sorted(((step.price, weight * step.lost) for step, weight in steps), reverse=True):
        left -= loss
        if left < 0:
            return price
    return 0.0


def _bulges(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])
