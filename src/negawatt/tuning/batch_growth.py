"""How the epochs to a target grow with the batch size: a prior from the critical-batch-size law, and what runs teach.

Natural logarithms of epochs (passes over the training data) are taken to be Gaussian, jointly for all batch sizes, so
that a run at one batch size tells something about its neighbours. A run that was stopped before it reached the target
tells that its epochs are more than it had: it is censored, not dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

RIPPLE_OCTAVES = 1.0
"""Over how many doublings of the batch size what the law does not explain stays alike."""
PARTS = (-1.593, -0.967, -0.589, -0.282, 0.0, 0.282, 0.589, 0.967, 1.593)
"""Middles of nine equally likely parts of a standard normal distribution."""
GUESS_SD = 1.0
"""How well epochs at the default batch size are known before the first run (natural logarithm)."""
EDGE_OCTAVES = 3.0
"""A law that bends this far beyond the batch sizes hardly bends within."""
LAWS = tuple(i / 2 for i in range(-24, 25))  # octaves from the default batch size at which a law may bend


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What is believed of a job before it has run: epochs(b) = e * (1 + b / critical) * (1 + (least / b)^2).

    The first factor is the law of McCandlish et al. (An Empirical Model of Large-Batch Training, arXiv:1812.06162,
    2018): the examples needed grow as 1 + b / critical. The second is empirical: where the learning rate is not
    searched again, very small batches also need more epochs, or never get there.

    Attributes:
        critical_octaves: where the critical batch size is expected, in doublings from the default one.
        critical_sd_octaves: standard deviation of that.
        least_octaves: where the smallest useful batch size is expected, in doublings from the default one.
        least_sd_octaves: standard deviation of that.
        ripple_sd_fraction: what the law leaves unexplained at a batch size.
        run_sd_fraction: from run to run at one batch size.
        never_per_octave_fraction: how likely a batch size never reaches the target, per doubling from the default one.

    The defaults are what `fit` finds in the six jobs of the Zeus traces (You et al., NSDI'23; Apache-2.0).
    """

    critical_octaves: float = 2.4  # doublings
    critical_sd_octaves: float = 3.3  # doublings
    least_octaves: float = -5.2  # doublings
    least_sd_octaves: float = 2.7  # doublings
    ripple_sd_fraction: float = 0.1
    run_sd_fraction: float = 0.11
    never_per_octave_fraction: float = 0.04

    @classmethod
    def fit(cls, jobs: Sequence[Mapping[float, Sequence[float | None]]]) -> Growth:
        """The prior that other jobs suggest.

        Args:
            jobs: for each, epochs to the target (None: missed) of its runs, by octaves from its default batch size.
                At least two, with no job of the network that the prior is to be used for.

        Raises:
            UsageError: if there are fewer, or no batch size of a job got most of its runs to the target.
        """
        if len(jobs) < 2 or not all(any(_mostly(runs) for runs in job.values()) for job in jobs):
            raise UsageError(
                f"{len(jobs)} jobs to learn from, or one that never reached its target",
                "how epochs grow with the batch size cannot be seen in them",
                "give two or more jobs that reached their targets, or use Growth() as it is",
            )
        found = [_law(job) for job in jobs]
        critical, least = ([law[i] for law in found] for i in (0, 1))
        spreads = [s for job in jobs for s in _run_sds(job)]
        missed = sum(not _mostly(runs) for job in jobs for runs in job.values())
        return cls(
            critical_octaves=_mean(critical),
            critical_sd_octaves=max(2.0, _sd(critical)),
            least_octaves=_mean(least),
            least_sd_octaves=max(2.0, _sd(least)),
            ripple_sd_fraction=max(0.1, math.sqrt(_mean([law[2] ** 2 for law in found]))),
            run_sd_fraction=max(0.05, math.sqrt(_mean([s**2 for s in spreads]))),
            never_per_octave_fraction=missed / max(1.0, math.fsum(abs(o) for job in jobs for o in job)),
        )

    def laws(self, octaves: Sequence[float]) -> tuple[Array, Array]:
        """Logarithms of epochs relative to the default batch size, shape (laws, batch sizes), and the laws' weights."""
        import numpy as np

        low, high = min(octaves) - EDGE_OCTAVES, max(octaves) + EDGE_OCTAVES
        criticals = _spread(self.critical_octaves, self.critical_sd_octaves, (low, high))
        leasts = _spread(self.least_octaves, self.least_sd_octaves, (low, high))
        pairs = [(c, v, w * u) for c, w in criticals.items() for v, u in leasts.items() if w * u > 1e-4]
        laws = [[_log_law(o, c, v) - _log_law(0.0, c, v) for o in octaves] for c, v, _ in pairs]
        return np.array(laws), np.array([w for _, _, w in pairs])

    def never(self, octaves: float) -> float:
        """How likely a batch size never reaches the target, so far from the nearest one that does."""
        return min(0.5, self.never_per_octave_fraction * abs(octaves))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEpochs:
    """What is known of the natural logarithm of epochs to the target, by batch size: a joint normal distribution.

    Attributes:
        mean: shape (batch sizes,).
        cov: shape (batch sizes, batch sizes).
        run_sd_fraction: from run to run, beside it.
    """

    mean: Array
    cov: Array
    run_sd_fraction: float

    def expected(self) -> Array:
        """Mean epochs per batch size, if a run is never stopped."""
        import numpy as np

        return np.exp(self.mean + (np.diag(self.cov) + self.run_sd_fraction**2) / 2)

    def after(self, batch: int, logs: Array) -> Iterator[Array]:
        """Expected epochs by equally likely outcomes of one more run, as more and more of these are seen.

        Args:
            batch: index of the batch size of the run.
            logs: logarithms of its epochs, ascending.

        Yields:
            For 0, 1, ... all outcomes that come before the run is stopped, expected epochs, shape (outcomes, batch
            sizes): those that come later look alike, so that all that is known is their mean.
        """
        import numpy as np

        gain = self.cov[:, batch] / (self.cov[batch, batch] + self.run_sd_fraction**2)
        var = np.diag(self.cov) - gain * self.cov[:, batch] + self.run_sd_fraction**2
        for seen in range(len(logs) + 1):
            alike = logs.copy()
            unsure = np.zeros(len(logs))
            if seen < len(logs):
                alike[seen:], unsure[seen:] = logs[seen:].mean(), logs[seen:].var()
            means = self.mean + np.outer(alike - self.mean[batch], gain)
            yield np.exp(means + (var + np.outer(unsure, gain**2)) / 2)


def learn(growth: Growth, octaves: Sequence[float], runs: Sequence[tuple[int, float, bool]], guess: float) -> LogEpochs:
    """The posterior after some runs, a mixture over laws told by its moments; Laplace's method where runs are censored.

    Args:
        growth: the prior.
        octaves: of the batch sizes, from the default one.
        runs: index of the batch size, epochs, and whether the target was reached after them (else: it takes more).
        guess: epochs expected of the default batch size, within a factor of three or so.
    """
    import numpy as np

    x, sd = np.asarray(octaves, dtype=float), growth.run_sd_fraction
    laws, weight = growth.laws(octaves)
    prior = laws + math.log(guess)
    ripple = np.exp(-0.5 * ((x[:, None] - x[None, :]) / RIPPLE_OCTAVES) ** 2)
    inverse = np.linalg.inv(GUESS_SD**2 + growth.ripple_sd_fraction**2 * ripple + 1e-5 * np.eye(len(x)))
    precision, pull = np.zeros(len(x)), np.zeros(len(x))
    for batch, epochs, reached in runs:
        if reached:
            precision[batch] += 1.0 / sd**2
            pull[batch] += math.log(epochs) / sd**2
    base, pulls = inverse + np.diag(precision), prior @ inverse + pull
    spread = np.linalg.inv(base)[None]
    f = pulls @ spread[0]
    longer = [(batch, math.log(epochs)) for batch, epochs, reached in runs if not reached]
    evidence = np.zeros(len(prior))
    if longer:
        f, spread, evidence = _censored(f, base, pulls, longer, sd)
    off = f - prior
    evidence += f @ pull - 0.5 * f**2 @ precision - 0.5 * np.einsum("ki,ij,kj->k", off, inverse, off)
    evidence += np.log(weight) + 0.5 * np.linalg.slogdet(spread)[1]
    weight = np.exp(evidence - evidence.max())
    weight /= weight.sum()
    mean = weight @ f
    cov = (weight[: len(spread), None, None] * spread).sum(axis=0) if len(spread) > 1 else spread[0]
    return LogEpochs(mean=mean, cov=cov + (weight * (f - mean).T) @ (f - mean), run_sd_fraction=sd)


def _censored(
    f: Array, base: Array, pulls: Array, longer: Sequence[tuple[int, float]], sd: float
) -> tuple[Array, Array, Array]:
    """Newton's method, law by law: modes, covariances there, and the log probability of the censored runs."""
    import numpy as np

    at, logs = np.array([batch for batch, _ in longer]), np.array([log for _, log in longer])
    onto = np.zeros((len(longer), f.shape[1]))
    onto[np.arange(len(longer)), at] = 1.0
    spread: Array = np.asarray(np.linalg.inv(base))[None]
    for _ in range(60):
        z = (f[:, at] - logs) / sd
        ratio = np.exp(-0.5 * z**2 - 0.5 * math.log(2.0 * math.pi) - _log_below(z))  # density over distribution
        bend = ratio * (z + ratio) / sd**2 @ onto
        spread = np.asarray(np.linalg.inv(base + bend[:, :, None] * np.eye(f.shape[1])))
        slope = pulls - f @ base + ratio / sd @ onto
        step = (spread @ slope[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        f = f + step * np.minimum(1.0, 1.0 / np.maximum(longest, 1e-12))
        if float(longest.max()) < 1e-4:
            break
    return f, spread, np.asarray(_log_below((f[:, at] - logs) / sd).sum(axis=1))


def below(z: float) -> float:
    """Distribution function of the standard normal."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _log_below(z: Array) -> Array:
    import numpy as np

    tail = np.minimum(z, -8.0)
    near = np.vectorize(below, otypes=[float])(np.maximum(z, -8.0))
    return np.where(z > -8.0, np.log(near), -0.5 * tail**2 - np.log(-tail) - 0.5 * math.log(2.0 * math.pi))


def _log_law(octaves: float, critical: float, least: float) -> float:
    return math.log1p(2.0 ** (octaves - critical)) + math.log1p(4.0 ** (least - octaves))


def _spread(mean: float, sd: float, within: tuple[float, float]) -> dict[float, float]:
    """Weights of whole octaves: Student's t with four degrees of freedom, as few jobs tell of a mean and a spread."""
    weights: dict[float, float] = {}
    for i in range(-40, 41):
        z = i / 5
        at = float(round(min(max(mean + sd * z, within[0]), within[1])))
        weights[at] = weights.get(at, 0.0) + (1 + z * z / 4) ** -2.5
    total = math.fsum(weights.values())
    return {at: weight / total for at, weight in weights.items()}


def _law(job: Mapping[float, Sequence[float | None]]) -> tuple[float, float, float]:
    """Critical and least octaves of the law nearest to a job, and the root mean square of what it leaves.

    A batch size at which half or more of the runs missed counts as twice the epochs of the slowest that did not, if
    the law gives it less.
    """
    logs = {o: [math.log(e) for e in runs if e is not None] for o, runs in job.items()}
    reached = {o: _mean(v) for o, v in logs.items() if _mostly(job[o])}
    missed = [o for o in job if o not in reached]
    bound = max(reached.values()) + math.log(2.0)
    best = (math.inf, 0.0, 0.0)
    for critical in LAWS:
        for least in (x for x in LAWS if x < critical):
            level = _mean([y - _log_law(o, critical, least) for o, y in reached.items()])
            gaps = [y - level - _log_law(o, critical, least) for o, y in reached.items()]
            gaps += [max(0.0, bound - level - _log_law(o, critical, least)) for o in missed]
            best = min(best, (math.sqrt(_mean([g * g for g in gaps])), critical, least))
    # Laws that bend beyond what was tried are as good as that edge, plus a few octaves.
    return min(best[1], max(job) + EDGE_OCTAVES), max(best[2], min(job) - EDGE_OCTAVES), best[0]


def _mostly(runs: Sequence[float | None]) -> bool:
    """Whether more than half of some runs reached the target."""
    return 2 * sum(epochs is not None for epochs in runs) > len(runs)


def _run_sds(job: Mapping[float, Sequence[float | None]]) -> list[float]:
    logs = ([math.log(e) for e in runs if e is not None] for runs in job.values())
    return [_sd(v) for v in logs if len(v) > 1]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _sd(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))
