"""What an epoch costs under each batch size and power limit, learnt from a few short windows.

Time and power of a step hardly vary from run to run, and the best limit of one batch size is near that of the next:
logarithms of cost are a Gaussian process, a part that depends on the batch size plus one on the limit plus a smaller
one on both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Cell = tuple[int, int]
"""Index of the batch size, index of the limit."""

WINDOW_SD = 0.01
"""Standard deviation of what one window says of a cost, as a fraction."""
CELL_SD = 0.03
"""How far a cell differs from what its neighbours suggest: measured curves are rough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostShape:
    """What is believed of costs before anything was measured.

    Attributes:
        depth_fraction: how much the cost of an epoch falls from the highest limit to the best one.
        best_limit_fraction: where that is, as a part of the highest limit.
        slope: change of the logarithm of cost per doubling of the batch size.

    The defaults are what `fit` finds in the Zeus traces (You et al., NSDI'23; Apache-2.0).
    """

    depth_fraction: float = 0.12
    best_limit_fraction: float = 0.68
    slope: float = -0.18  # per octave

    @classmethod
    def fit(cls, curves: Sequence[Mapping[float, float]], slopes: Sequence[float]) -> CostShape:
        """The shape that other jobs suggest: least squares over curves of cost by limit, as parts of the highest's."""
        best = (math.inf, 0.0, 0.0)
        for depth in (i / 50 for i in range(20)):
            for at in (i / 50 for i in range(20, 46)):
                shape = cls(depth_fraction=depth, best_limit_fraction=at)
                gaps = [math.log(c) - shape.of(u) for curve in curves for u, c in curve.items()]
                best = min(best, (math.fsum(g * g for g in gaps), depth, at))
        return cls(depth_fraction=best[1], best_limit_fraction=best[2], slope=math.fsum(slopes) / len(slopes))

    def of(self, limit_fraction: float) -> float:
        """Logarithm of cost at a limit relative to the highest: a parabola, not deeper than at its vertex."""
        at = self.best_limit_fraction
        return self.depth_fraction * (((limit_fraction - at) / (1.0 - at)) ** 2 - 1.0)


class Costs:
    """Cost of an epoch by cell.

    Args:
        octaves: of the batch sizes, from the default one.
        limits: as parts of the highest.
        shape: the prior.
    """

    def __init__(self, octaves: Sequence[float], limits: Sequence[float], shape: CostShape) -> None:
        self._octaves, self._limits, self._shape = tuple(octaves), tuple(limits), shape
        self._logs: dict[Cell, list[float]] = {}
        self._known: tuple[Array, Array] | None = None

    def add(self, cell: Cell, cost: float) -> None:
        """A window's cost per epoch."""
        self._logs.setdefault(cell, []).append(math.log(cost))
        self._known = None

    def measured(self, batch: int) -> dict[int, float]:
        """Mean logarithm of cost per limit that was measured at a batch size."""
        return {limit: math.fsum(v) / len(v) for (b, limit), v in self._logs.items() if b == batch}

    def best(self, batch: int) -> int:
        """The limit of least cost: a measured one if there is any at this batch size, else as predicted."""
        measured = self.measured(batch)
        if measured:
            return min(measured, key=lambda limit: (measured[limit], -limit))
        mean, _ = self.predicted()
        return int(mean[batch].argmin())

    def by_batch(self) -> tuple[Array, Array]:
        """Logarithm of cost per batch size under the limit that is likely the best, and standard deviations."""
        mean, sd = self.predicted()
        best = mean.argmin(axis=1)
        return mean.min(axis=1), sd[range(len(best)), best]

    def gain(self, batch: int) -> tuple[int, float]:
        """The limit most worth measuring at a batch size, and the part of the cost it is expected to save."""
        measured = self.measured(batch)
        mean, sd = self.predicted()
        if not measured:
            return self.best(batch), math.inf
        best = min(mean[batch, limit] for limit in measured)
        gains = {
            limit: _expected_gain(float(best - mean[batch, limit]), float(sd[batch, limit]))
            for limit in range(len(self._limits))
            if limit not in measured
        }
        limit = max(gains, key=lambda limit: gains[limit], default=self.best(batch))
        return limit, gains.get(limit, 0.0)

    def predicted(self) -> tuple[Array, Array]:
        """Mean and standard deviation of the logarithm of cost, shape (batch sizes, limits). Needs one window."""
        import numpy as np

        if self._known is not None:
            return self._known
        x = np.repeat(self._octaves, len(self._limits))
        u = np.tile(self._limits, len(self._octaves))
        prior = self._shape.slope * x + np.array([self._shape.of(v) for v in u])
        cells = sorted(self._logs)
        seen = [b * len(self._limits) + limit for b, limit in cells]
        y = np.array([math.fsum(self._logs[c]) / len(self._logs[c]) for c in cells])
        noise = np.diag([WINDOW_SD**2 / len(self._logs[c]) for c in cells])
        k = self._kernel(x, u)
        level = float((y - prior[seen]).mean())
        gain = np.linalg.solve(k[np.ix_(seen, seen)] + noise, k[seen]).T
        mean = prior + level + gain @ (y - prior[seen] - level)
        var = np.maximum(np.diag(k) - np.einsum("ij,ji->i", gain, k[seen]), 1e-8)
        shape = (len(self._octaves), len(self._limits))
        self._known = mean.reshape(shape), np.sqrt(var).reshape(shape)
        return self._known

    @staticmethod
    def _kernel(x: Array, u: Array) -> Array:
        import numpy as np

        def near(v: Array, length: float) -> Array:
            return np.asarray(np.exp(-0.5 * ((v[:, None] - v[None, :]) / length) ** 2))

        by_batch = 0.15**2 * np.outer(x, x) + 0.2**2 * near(x, 1.5)
        by_limit = 0.2**2 * near(u, 0.2)
        by_both = 0.15**2 * near(x, 2.0) * near(u, 0.2)
        return np.asarray(0.5**2 + by_batch + by_limit + by_both + CELL_SD**2 * np.eye(len(x)))


def _expected_gain(lead: float, sd: float) -> float:
    """Mean of the positive part of a normal variable (expected improvement)."""
    z = lead / sd
    return lead * 0.5 * math.erfc(-z / math.sqrt(2.0)) + sd * math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
