"""CurvePrior: a search of the best power limit that knows how such curves tend to look.

After the limit as found it probes where measuring is expected to save most, looking two probes ahead, and stops when
no probe is worth its price (knowledge gradient: P. Frazier, W. Powell, S. Dayanik, SIAM J. Control Optim. 47 (2008)
2410). What it picks was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, final

from negawatt.core.errors import UsageError
from negawatt.tuning.objective import Goal, Objective
from negawatt.tuning.plain import RatioSearch
from negawatt.tuning.prior import Prior

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from negawatt.tuning.prior import Floats

    Flags = NDArray[np.bool_]

# Prices and risk were chosen on Zeus's traces, where benchmarks/power_limit.py tells what they give.
PRICE_FRACTION, BOUNDED_PRICE_FRACTION = 0.012, 0.006
"""With a bound, a probe that is expected to be slower by as much as the bound costs twice as much, and so on."""
LEAST_BOUND_FRACTION = 0.01
RISK_FRACTION = 0.45
"""A limit is not picked if the bound is broken with a higher probability."""
SAMPLES, BINS = 512, 4
CANDIDATES = 24
"""Limits looked at, of finer grids: those that promise most."""


@final
class CurvePrior(RatioSearch):
    """Few probes, for power limits only: a clock limit has no draw to be compared with, see `plain_search`.

    The energy that is told must be that of the one device, or the mean of alike devices under the same limit, since the
    draw as found is compared with the limit. It is deterministic: random numbers have a fixed seed.

    Args:
        limits: highest first; the first is the one as found [W].
        objective: what is wanted. `best` keeps its bound as far as noise and prior can tell.
        prior: what is known of such curves; by default what is shipped.
        noise_fraction: relative standard deviation of the time, and of the energy, of a window.
        price_fraction: what a probe must be expected to save, as a part of the energy per step as found; by default
            0.012, or 0.006 with a bound (and more for slow limits).

    Raises:
        UsageError: on unusable limits, or without NumPy.
    """

    def __init__(
        self,
        limits: Sequence[float],
        objective: Objective,
        *,
        prior: Prior | None = None,
        noise_fraction: float = 0.01,
        price_fraction: float | None = None,
    ) -> None:
        super().__init__(limits, objective)
        if find_spec("numpy") is None:
            raise UsageError(
                "a search with a learnt prior, without NumPy",
                "what it knows of power-limit curves is kept in matrices",
                "type `pip install numpy`, or use plain_search, which takes one or two probes more",
            )
        self._prior = prior or Prior.load()
        self._noise = noise_fraction
        self._unbound = replace(objective, max_slowdown_fraction=None)
        bound = objective.max_slowdown_fraction
        default = PRICE_FRACTION if bound is None else BOUNDED_PRICE_FRACTION
        self._price = default if price_fraction is None else price_fraction
        self._slow_price = 0.0 if bound is None else 1.0 / max(bound, LEAST_BOUND_FRACTION)

    def _draws(self) -> tuple[Floats, Floats, Flags]:
        """What may be (samples x limits): times, costs whatever the bound, whether the bound is broken."""
        import numpy as np

        told = [index for index in self.measured if index > 0]
        logs = np.log([self.ratios(index) for index in told]).T.ravel()
        time_s, energy_j = self._means(0)
        belief = self._prior.belief(self.limits, energy_j / time_s)
        belief = belief.given([index - 1 for index in told], logs, self._noise)
        ratios = np.exp(belief.samples(SAMPLES, np.random.default_rng(0)))
        found = np.ones((SAMPLES, 1))
        times, costs = (np.hstack([found, part]) for part in np.split(ratios, 2, axis=1))
        if self.objective.goal is Goal.EDP:
            costs = costs * times
        elif self.objective.goal is Goal.WEIGHTED:
            costs = costs + self.objective.time_weight * (times - 1.0)
        bound = self.objective.max_slowdown_fraction
        return times, costs, times > (np.inf if bound is None else 1.0 + bound)

    def _pick(self, costs: Floats, broken: Flags) -> int:
        """The index of the best limit measured; of those that gave nothing when measured, only the one as found."""
        import numpy as np

        told = [index for index in self.measured if index == 0 or self._unbound.cost(*self.ratios(index)) < 1.0]
        expected = np.where(broken[:, told].mean(0) > RISK_FRACTION, np.inf, costs[:, told].mean(0))
        return told[int(expected.argmin())]

    def _best(self) -> int:
        if len(self._told) == 1:
            return 0
        _, costs, broken = self._draws()
        return self._pick(costs, broken)

    def _next(self) -> int | None:
        import numpy as np

        times, costs, broken = self._draws()
        now = costs[:, [self._pick(costs, broken)]]
        gains = np.maximum(0.0, now - np.where(broken, np.maximum(costs, 1.0), costs))
        left = [index for index in range(len(self.limits)) if index not in self._told]
        if len(left) > CANDIDATES:
            most = np.argsort(-gains[:, left].mean(0), kind="stable")[:CANDIDATES]
            left = [left[place] for place in sorted(most)]
        gains = gains[:, left]
        prices = self._price * (1.0 + self._slow_price * np.maximum(0.0, times[:, left].mean(0) - 1.0))
        told = costs if self.objective.max_slowdown_fraction is None else times
        told = told[:, left] * np.exp(self._noise * np.random.default_rng(1).standard_normal(gains.shape))
        # What a probe gives is put into bins; in each, the best that is left to do is to stop or to probe once more.
        values = []
        for place, price in enumerate(prices):
            bins = np.argsort(told[:, place], kind="stable").reshape(BINS, -1)
            one = gains[:, place][bins].mean(1)
            two = (np.maximum(gains[:, [place]], gains)[bins].mean(1) - prices).max(1)
            values.append(float(np.maximum(one, two).mean() - price))
        best = int(np.argmax(values))
        return left[best] if values[best] > 0.0 else None
