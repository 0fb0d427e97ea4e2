"""Objective: what a search for the best limit wants, in time and energy per step relative to the untouched device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from negawatt.core.errors import UsageError


class Goal(StrEnum):
    """What is made small."""

    ENERGY = "energy"
    """energy per step"""
    EDP = "edp"
    """energy times time per step (energy-delay product)"""
    WEIGHTED = "weighted"
    """energy per step, plus `time_weight` for each time that the step takes longer by its whole length"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A goal and a bound.

    Attributes:
        goal: what is made small.
        max_slowdown_fraction: longest step accepted, as the part that it may be longer; None: any.
        time_weight: for `Goal.WEIGHTED`: how much energy, as a part of the untouched step's, a doubled time is worth.
            Zeus's cost with eta is this with (1 - eta) / eta times highest limit over mean draw (NSDI'23, equation 2).

    Raises:
        UsageError: on a negative bound or weight.
    """

    goal: Goal = Goal.ENERGY
    max_slowdown_fraction: float | None = None
    time_weight: float = 0.0  # a part of the untouched step's energy

    def __post_init__(self) -> None:
        for name in ("max_slowdown_fraction", "time_weight"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(
                    f"{name} is {value}", "a limit is judged by it", "give a number from 0 on, such as 0.03 for 3 %"
                )

    def allows(self, time_ratio: float) -> bool:
        """Whether a step of this length, relative to the untouched one, keeps the bound."""
        return self.max_slowdown_fraction is None or time_ratio <= 1.0 + self.max_slowdown_fraction + 1e-9

    def cost(self, time_ratio: float, energy_ratio: float) -> float:
        """What is made small; infinite where the bound is broken."""
        if not self.allows(time_ratio):
            return math.inf
        if self.goal is Goal.EDP:
            return energy_ratio * time_ratio
        if self.goal is Goal.WEIGHTED:
            return energy_ratio + self.time_weight * (time_ratio - 1.0)
        return energy_ratio

    def with_rest(self, rest_fraction: float) -> Objective:
        """The objective in the devices' energy alone that, with the rest of the host counted, ranks limits as this one.

        The rest draws a constant power however slow the devices are: energy is e + r t, so slowness has a price.
        The energy-delay product stays that of the devices.

        Args:
            rest_fraction: r, power of the rest over mean power of the untouched devices.
        """
        if self.goal is Goal.EDP or rest_fraction == 0.0:
            return self
        weight = rest_fraction + self.time_weight * (1.0 + rest_fraction)
        return replace(self, goal=Goal.WEIGHTED, time_weight=weight)

    def __str__(self) -> str:
        goals = {
            Goal.ENERGY: "least energy",
            Goal.EDP: "least energy times time",
            Goal.WEIGHTED: f"least energy plus {self.time_weight:g} of it per doubling of time",
        }
        bound = self.max_slowdown_fraction
        return goals[self.goal] + ("" if bound is None else f", at most {bound * 100:.3g} % slower")
