"""Prior: what is known of power-limit curves before a device has been measured, learnt from curves of other devices.

A curve is the time and the mean power per step under each limit, as logarithms relative to the limit as found. It is
taken as the sum of two piecewise linear functions, of limit / draw (a limit acts where it meets the mean draw as found)
and of limit / limit as found (what the device as such does, whatever its work). Their heights on two grids, and u =
draw / limit as found beside them, are a mixture of normal distributions: a draw far below the limit is often one in
bursts, and cut otherwise. A curve also strays by a little at each limit on its own (the nugget). What is known of new
limits is then a mixture, too, and what is measured there changes it exactly (C. E. Rasmussen, C. K. I. Williams,
Gaussian Processes for Machine Learning, 2006, equation A.6; each part's weight changes with its likelihood).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

OF_DRAW = (0.34, 0.40, 0.46, 0.53, 0.60, 0.67, 0.74, 0.82, 0.90, 0.98, 1.07, 1.18, 1.32, 1.55)
"""Grid of limit / draw: G1 heights."""
OF_FOUND = (0.25, 0.33, 0.42, 0.50, 0.60, 0.70, 0.80, 0.90, 1.00)
"""Grid of limit / limit as found: G2 heights."""
BEYOND = 0.3
"""Below a grid a curve goes on in a line for this much of the logarithm, then it is flat; above, it is flat."""
STRAY = 0.04
"""Limits whose logarithms differ by much less than this stray together."""
STRAY_SCALES = ((0.5, 0.3), (0.5, 1.2))
"""Some curves stray less than others: shares of them, and factors on the nuggets. A belief has each part with each."""
DOUBT = 0.03
"""Share of the weights that a draw unlike all that was learnt from cannot change."""
MOST_DRAW = 1.1
"""Of the limit as found: a draw above it, of a limit that does not hold, is taken as this."""
SHIPPED = "power_prior.json"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Belief:
    """What is known of n limits: a mixture of K normal distributions over 2 n logarithms of ratios to the one as found.

    The first n are of time, the others of energy.

    Attributes:
        weights: K of them, with sum 1.
        means: K x 2 n.
        covariances: K x 2 n x 2 n.
    """

    weights: Floats
    means: Floats
    covariances: Floats

    def given(self, indices: Sequence[int], logs: Floats, noise_fraction: float) -> Belief:
        """What is known when some of the limits were measured.

        Args:
            indices: m limits, counted from 0.
            logs: 2 m logarithms of measured ratios: of time, then of energy.
            noise_fraction: relative standard deviation of the time, and of the energy, of a window; that of the limit
                as found, which all ratios share, has the same.
        """
        import numpy as np

        if not indices:
            return self
        n, m = self.means.shape[1] // 2, len(indices)
        at = np.r_[np.array(indices), np.array(indices) + n]
        known = self.covariances[:, at]
        seen = known[:, :, at] + np.kron(np.eye(2), noise_fraction**2 * (np.eye(m) + 1.0))
        miss = logs - self.means[:, at]
        gain = np.linalg.solve(seen, known)
        pull = np.linalg.solve(seen, miss[:, :, None])
        likelihood = -0.5 * (miss[:, None] @ pull)[:, 0, 0] - 0.5 * np.linalg.slogdet(seen)[1]
        weights = self.weights * np.exp(likelihood - likelihood.max())
        return Belief(
            weights=weights / weights.sum(),
            means=self.means + (miss[:, None] @ gain)[:, 0],
            covariances=self.covariances - known.transpose(0, 2, 1) @ gain,
        )

    def samples(self, count: int, rng: np.random.Generator) -> Floats:
        """Draws (count x 2 n); each part of the mixture gets its share of them."""
        import numpy as np

        ends = np.floor(np.cumsum(self.weights) * count + 0.5).astype(int)
        ends[-1] = count
        values, vectors = np.linalg.eigh(self.covariances)
        roots = vectors * np.sqrt(np.maximum(values, 0.0))[:, None]
        normal = rng.standard_normal((count, self.means.shape[1]))
        parts = np.split(normal, ends[:-1])
        return np.concatenate([m + z @ r.T for m, z, r in zip(self.means, parts, roots, strict=True)])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prior:
    """A mixture of K normal distributions over u, the G = G1 + G2 heights of log time, and the G of log power.

    Attributes:
        weights: K of them, with sum 1.
        means: K x (1 + 2 G).
        covariances: K x (1 + 2 G) x (1 + 2 G).
        nuggets: K x 2 standard deviations of a single limit: of log time, of log power.
        source: what it was learnt from, and how to make it again.
    """

    weights: Floats
    means: Floats
    covariances: Floats
    nuggets: Floats
    source: str

    def belief(self, limits_w: Sequence[float], draw_w: float) -> Belief:
        """What is known of the limits after the first when only the mean draw under the first, as found, is known."""
        import numpy as np

        u, n = min(draw_w / limits_w[0], MOST_DRAW), len(limits_w) - 1
        variance = self.covariances[:, 0, 0]
        slope = self.covariances[:, 1:, 0] / variance[:, None]
        means = self.means[:, 1:] + slope * (u - self.means[:, :1])
        covariances = self.covariances[:, 1:, 1:] - slope[:, :, None] * self.covariances[:, :1, 1:]
        heights = np.kron(np.eye(2), design(limits_w, draw_w))
        own = straying(limits_w)
        strays = np.array([np.kron(np.diag(nugget**2), own) for nugget in self.nuggets])
        energy = np.kron(np.array([[1.0, 0.0], [1.0, 1.0]]), np.eye(n))  # log energy = log time + log power
        chance = np.log(self.weights) - 0.5 * (u - self.means[:, 0]) ** 2 / variance - 0.5 * np.log(variance)
        weights = np.exp(chance - chance.max())
        weights = (1.0 - DOUBT) * weights / weights.sum() + DOUBT * self.weights
        into, shares, scales = energy @ heights, *np.array(STRAY_SCALES).T
        smooth, strays = into @ covariances @ into.T, energy @ strays @ energy.T
        return Belief(
            weights=np.concatenate([share * weights for share in shares]),
            means=np.concatenate([means @ into.T] * len(shares)),
            covariances=np.concatenate([smooth + scale**2 * strays for scale in scales]),
        )

    @staticmethod
    def load(path: Path | None = None) -> Prior:
        """Read one that was written as `text`, by default the one that is shipped.

        Raises:
            UsageError: if the file is not a prior.
        """
        import numpy as np

        file = files("negawatt.tuning").joinpath("data", SHIPPED) if path is None else path
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            parts, size = len(found["weights"]), 1 + 2 * (len(OF_DRAW) + len(OF_FOUND))
            rows, columns = np.triu_indices(size)
            covariances = np.zeros((parts, size, size))
            covariances[:, rows, columns] = covariances[:, columns, rows] = found["covariances"]
            return Prior(
                weights=np.array(found["weights"], float),
                means=np.array(found["means"], float).reshape(parts, size),
                covariances=covariances,
                nuggets=np.array(found["nuggets"], float).reshape(parts, 2),
                source=str(found["source"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{file} is not a prior ({error})",
                "the search would start from nonsense",
                "make it with benchmarks/fit_power_prior.py, or use the one that is shipped",
            ) from error

    def text(self) -> str:
        """As JSON, for `load`: numbers to five digits, of each covariance the upper triangle."""
        import numpy as np

        rows, columns = np.triu_indices(self.means.shape[1])
        arrays = {
            "weights": self.weights,
            "nuggets": self.nuggets,
            "means": self.means,
            "covariances": self.covariances[:, rows, columns],
        }
        lines = [f'"source": {json.dumps(self.source)}']
        for name, values in arrays.items():
            short = [float(f"{value:.5g}") for value in values.ravel()]
            lines.append(f'"{name}": {json.dumps(np.reshape(short, values.shape).tolist())}')
        return "{\n" + ",\n".join(lines) + "\n}\n"


def design(limits_w: Sequence[float], draw_w: float) -> Floats:
    """How the G heights make the values of a curve at all limits after the first, relative to the first: n x G."""
    import numpy as np

    limits = np.array(limits_w)
    both = np.hstack([_between(limits / draw_w, OF_DRAW), _between(limits / limits[0], OF_FOUND)])
    relative: Floats = both[1:] - both[0]
    return relative


def straying(limits_w: Sequence[float]) -> Floats:
    """Covariance (n x n) of what the limits after the first stray by, relative to the first, for a nugget of 1."""
    import numpy as np

    logs = np.log(np.array(limits_w))
    alike = np.exp(-0.5 * ((logs[:, None] - logs) / STRAY) ** 2)
    relative: Floats = alike[1:, 1:] - alike[1:, :1] - alike[:1, 1:] + 1.0
    return relative


def _between(x: Floats, grid: Sequence[float]) -> Floats:
    """Weights of the heights on a grid for linear interpolation in the logarithm."""
    import numpy as np

    knots = np.log(np.array(grid))
    logs = np.clip(np.log(x), knots[0] - BEYOND, knots[-1])
    left = np.clip(np.searchsorted(knots, logs) - 1, 0, len(knots) - 2)
    part = (logs - knots[left]) / (knots[left + 1] - knots[left])
    result, rows = np.zeros((len(x), len(knots))), np.arange(len(x))
    result[rows, left], result[rows, left + 1] = 1.0 - part, part
    return result
