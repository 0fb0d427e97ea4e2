"""Searches for the best limit of a device, by ask and tell: which limit to measure next, and which one is best.

A limit is a power limit [W] or a clock limit [MHz]. The first one asked for is always the one as found, the baseline
of every ratio; what is picked is always a limit that was measured, or that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a window of steps under one limit gave.

    Attributes:
        limit: as set [W or MHz].
        time_s: per step [s].
        energy_j: per step [J].
    """

    limit: float  # in the unit of the control
    time_s: float
    energy_j: float


class LimitSearch(Protocol):
    """A search. It is deterministic: told the same, it decides the same."""

    def ask(self) -> float | None:
        """The limit to measure next, the same until it is told; None when it is over."""

    def tell(self, probed: Probed) -> None:
        """What a limit gave, asked for or not. Raises UsageError if it is none of the limits, or no number."""

    @property
    def best(self) -> float:
        """The best limit measured that keeps the bound; the one as found before, or if nothing is better."""
