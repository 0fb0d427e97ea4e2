"""Learning a `Prior` from curves that were measured in full, by expectation maximisation.

Each curve has its own limits, so the heights on the grid are never seen and are estimated with the mixture
(A. P. Dempster, N. M. Laird, D. B. Rubin, J. R. Stat. Soc. B 39 (1977) 1). Curves of few devices say little of how much
devices differ, so each covariance is drawn to a plain one that is wide at low limits (the mode under an inverse Wishart
distribution).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from negawatt.core.errors import UsageError
from negawatt.tuning.prior import OF_DRAW, OF_FOUND, Prior, design, straying

if TYPE_CHECKING:
    from negawatt.tuning.prior import Floats

# Chosen among about 80 combinations on Zeus's traces, by the probes and regret of `benchmarks/power_limit.py` together;
# its figures for the data that these were chosen on are therefore a little kind.
PARTS = 2
ROUNDS = 20
GROUP_CURVES = 2.0
"""So many curves a group counts for, on average: its curves are much alike."""
PLAIN_CURVES = 16.0
"""So many curves the plain covariance counts for."""
NUGGET, NUGGET_LIMITS, LEAST_NUGGET = 0.01, 20.0, 0.002
"""A nugget that counts for so many measured limits, and the smallest accepted."""
SMOOTH = 0.4
"""Heights whose logarithms on the grid differ by much less than this are alike."""
WIDER = 1.5
"""A new device differs from those seen by more than those from their mean: factor on the covariances in the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A curve that was measured in full.

    Attributes:
        group: of what is alike, such as GPU and network; a group counts with the root of its number of curves.
        limits_w: highest first; the first is the one as found.
        times_s: per step under each.
        powers_w: mean draw under each.
    """

    group: str
    limits_w: tuple[float, ...]
    times_s: tuple[float, ...]
    powers_w: tuple[float, ...]


def fit(curves: Sequence[Curve], source: str) -> Prior:
    """Learn a prior; the same curves give the same prior.

    Args:
        curves: of at least two groups.
        source: what they are and how to do it again, for `Prior.source`.

    Raises:
        UsageError: if there are too few curves.
    """
    curves = [curve for curve in curves if len(curve.limits_w) > 1]
    if len({curve.group for curve in curves}) < 2:
        raise UsageError(
            f"{len(curves)} curves of one group or none",
            "how much curves differ cannot be learnt from them",
            "give curves of several devices or models, each with two limits or more",
        )
    data, now = _Data(curves), _start(curves)
    for _ in range(ROUNDS):
        now = _round(data, now)
    slope = now.covariances[:, :, :1] * now.covariances[:, :1] / now.covariances[:, :1, :1]
    wider = slope + WIDER * (now.covariances - slope)
    return Prior(weights=now.weights, means=now.means, covariances=wider, nuggets=now.nuggets, source=source)


class _Data:
    """Curves as arrays. Values are u, m log times, m log powers; shorter curves are padded with what is always met."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        import numpy as np

        most, heights = max(len(curve.limits_w) for curve in curves) - 1, len(OF_DRAW) + len(OF_FOUND)
        size, count = 1 + 2 * most, len(curves)
        groups = Counter(curve.group for curve in curves)
        weights = np.array([groups[curve.group] ** -0.5 for curve in curves])
        self.weights = weights * GROUP_CURVES * len(groups) / weights.sum()
        self.lengths = np.array([len(curve.limits_w) - 1 for curve in curves])
        self.values = np.zeros((count, size))
        self.heights = np.zeros((count, size, 1 + 2 * heights))
        self.own = np.zeros((count, most, most))
        self.inverse = np.zeros((count, most, most))
        self.padding = np.zeros((count, most, most))
        self.heights[:, 0, 0] = 1.0
        for i, curve in enumerate(curves):
            n, shape = self.lengths[i], design(curve.limits_w, curve.powers_w[0])
            self.values[i, 0] = curve.powers_w[0] / curve.limits_w[0]
            self.own[i, :n, :n] = straying(curve.limits_w)
            self.inverse[i, :n, :n] = np.linalg.inv(self.own[i, :n, :n] + 1e-6 * np.eye(n))
            self.padding[i, n:, n:] = np.eye(most - n)
            for part, seen in enumerate((curve.times_s, curve.powers_w)):
                rows = slice(1 + part * most, 1 + part * most + n)
                columns = slice(1 + part * heights, 1 + (part + 1) * heights)
                self.values[i, rows] = np.log(np.array(seen[1:]) / seen[0])
                self.heights[i, rows, columns] = shape
        self.parts = (slice(1, 1 + most), slice(1 + most, size))

    def noise(self, nugget: Floats) -> Floats:
        """Covariances of what a curve strays by; u is taken as known to 0.01."""
        import numpy as np

        result = np.zeros(self.heights.shape[:2] + self.heights.shape[1:2])
        result[:, 0, 0] = 1e-4
        for sd, part in zip(nugget, self.parts, strict=True):
            result[:, part, part] = sd**2 * self.own + self.padding
        return result


def _plain() -> Floats:
    """The covariance that stands for no knowledge: wide at low limits, smooth, time and power apart."""
    import numpy as np

    def block(grid: Sequence[float], sds: Floats) -> Floats:
        logs = np.log(np.array(grid))
        smooth: Floats = sds[:, None] * sds * np.exp(-0.5 * ((logs[:, None] - logs) / SMOOTH) ** 2)
        return smooth

    low, lower = (np.maximum(0.0, -np.log(np.array(grid))) for grid in (OF_DRAW, OF_FOUND))
    blocks = [
        np.array([[0.04]]),
        block(OF_DRAW, 0.02 + 0.1 * low + 0.6 * low**2),
        block(OF_FOUND, 0.01 + 0.05 * lower + 0.1 * lower**2),
        block(OF_DRAW, 0.04 + 0.08 * low),
        block(OF_FOUND, 0.01 + 0.05 * lower),
    ]
    ends = np.cumsum([0, *map(len, blocks)])
    result = np.zeros((ends[-1], ends[-1]))
    for start, end, part in zip(ends, ends[1:], blocks, strict=False):
        result[start:end, start:end] = part
    return result


def _start(curves: Sequence[Curve]) -> Prior:
    """Parts at quantiles of u: a limit cuts the power to it, and time grows by half of that in the logarithm."""
    import numpy as np

    u = [curve.powers_w[0] / curve.limits_w[0] for curve in curves]
    cut, flat = np.maximum(0.0, -np.log(np.array(OF_DRAW))), np.zeros(len(OF_FOUND))
    line = np.concatenate([0.6 * cut, flat, -0.9 * cut, flat])
    means = np.array([[at, *line] for at in np.quantile(u, (np.arange(PARTS) + 0.5) / PARTS)])
    covariances = np.array([2.0 * _plain()] * PARTS)
    covariances[:, 0, 0] = max(0.02, 0.1 / PARTS**2)
    weights, nuggets = np.full(PARTS, 1.0 / PARTS), np.full((PARTS, 2), NUGGET)
    return Prior(weights=weights, means=means, covariances=covariances, nuggets=nuggets, source="")


def _round(data: _Data, now: Prior) -> Prior:
    """One round: what the heights of each curve are in each part, then the parts that make that likeliest."""
    import numpy as np

    logs, found = [], []
    for weight, mean, covariance, nugget in zip(now.weights, now.means, now.covariances, now.nuggets, strict=True):
        known = data.heights @ covariance
        seen = known @ data.heights.transpose(0, 2, 1) + data.noise(nugget)
        miss = data.values - data.heights @ mean
        gain = np.linalg.solve(seen, known)
        pull = np.linalg.solve(seen, miss[:, :, None])[:, :, 0]
        logs.append(np.log(weight) - 0.5 * (miss * pull).sum(1) - 0.5 * np.linalg.slogdet(seen)[1])
        found.append((mean + (miss[:, None] @ gain)[:, 0], covariance - known.transpose(0, 2, 1) @ gain))
    chances = np.exp(np.array(logs) - np.max(logs, axis=0))
    shares = chances / chances.sum(0) * data.weights
    updated = [_part(data, share, *heights) for share, heights in zip(shares, found, strict=True)]
    return Prior(
        weights=(shares.sum(1) + 1.0) / (shares.sum() + PARTS),
        means=np.array([mean for mean, _, _ in updated]),
        covariances=np.array([covariance for _, covariance, _ in updated]),
        nuggets=np.array([nugget for _, _, nugget in updated]),
        source="",
    )


def _part(data: _Data, share: Floats, means: Floats, spreads: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, covariance and nuggets of a part, from its share in each curve and the heights there."""
    import numpy as np

    count = share.sum()
    mean = share @ means / count
    off = means - mean
    covariance = (share[:, None] * off).T @ off + np.tensordot(share, spreads, 1) + PLAIN_CURVES * _plain()
    covariance = covariance / (count + PLAIN_CURVES) + 1e-9 * np.eye(len(mean))
    miss = data.values - (data.heights @ means[:, :, None])[:, :, 0]
    doubt = data.heights @ spreads @ data.heights.transpose(0, 2, 1)
    nuggets = []
    for part in data.parts:
        strayed = np.einsum("ia,iab,ib->i", miss[:, part], data.inverse, miss[:, part])
        strayed += (data.inverse * doubt[:, part, part]).sum((1, 2))
        total = share @ strayed + NUGGET_LIMITS * NUGGET**2
        nuggets.append(max(LEAST_NUGGET, float(np.sqrt(total / (share @ data.lengths + NUGGET_LIMITS)))))
    return mean, covariance, np.array(nuggets)
