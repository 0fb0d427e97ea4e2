"""Advice: which power limit would pay, from the draw without a limit alone and curves of other work. Nothing is set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from negawatt.tuning.objective import Goal, Objective

SAMPLES = 512
RISK_FRACTION = 0.2
"""A limit is advised only if the chance that it breaks the bound is at most this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A limit, and what is expected of it: medians, with the range that holds 80 % of what is known of such curves.

    Attributes:
        limit_w: what to set; the limit as found, if nothing is expected to pay [W].
        energy_ratio, energy_low, energy_high: per step, relative to the limit as found.
        time_ratio, time_low, time_high: the same.
    """

    limit_w: float
    energy_ratio: float = 1.0
    energy_low: float = 1.0  # a ratio
    energy_high: float = 1.0  # a ratio
    time_ratio: float = 1.0
    time_low: float = 1.0  # a ratio
    time_high: float = 1.0  # a ratio


def advise(limits_w: Sequence[float], draw_w: float, objective: Objective) -> Advice:
    """What is expected to serve an objective best.

    Args:
        limits_w: highest first; the first is the one as found.
        draw_w: mean draw under that.
        objective: what is wanted.

    Raises:
        UsageError: if the shipped prior cannot be read.
        ImportError: without NumPy.
    """
    import numpy as np

    from negawatt.tuning.prior import Prior

    if len(limits_w) < 2:
        return Advice(limit_w=limits_w[0])
    draws = np.exp(Prior.load().belief(limits_w, draw_w).samples(SAMPLES, np.random.default_rng(0)))
    times, energies = np.split(draws, 2, axis=1)
    costs = energies * times if objective.goal is Goal.EDP else energies
    if objective.goal is Goal.WEIGHTED:
        costs = energies + objective.time_weight * (times - 1.0)
    mean = costs.mean(0)
    if objective.max_slowdown_fraction is not None:
        mean[(times > 1.0 + objective.max_slowdown_fraction).mean(0) > RISK_FRACTION] = np.inf
    at = int(mean.argmin())
    if mean[at] >= 1.0:
        return Advice(limit_w=limits_w[0])
    (energy_low, energy, energy_high), (time_low, time, time_high) = (
        map(float, np.quantile(values[:, at], (0.1, 0.5, 0.9))) for values in (energies, times)
    )
    return Advice(
        limit_w=limits_w[at + 1],
        energy_ratio=energy,
        energy_low=energy_low,
        energy_high=energy_high,
        time_ratio=time,
        time_low=time_low,
        time_high=time_high,
    )
