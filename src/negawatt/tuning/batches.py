"""BatchTuner: batch size and power limit of a training job, for least energy to a target quality, by ask and tell.

It asks for two kinds of things. A *probe* is a short window of steps at a batch size under a limit; what an epoch costs
is learnt from a few of them. A *run* is a training run, stopped after a number of epochs if it has not reached the
target by then; only runs tell how many epochs a batch size needs. A job that recurs is tuned over its runs: each is
chosen for what it costs itself plus what its outcome is worth to those that follow (one step of the knowledge gradient,
Frazier, Powell & Dayanik, INFORMS J. Computing 21 (2009) 599). A job that runs once is given the batch size that is
expected to cost least among those that hardly turn out worse than the default one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from negawatt.core.errors import UsageError
from negawatt.tuning.batch_costs import Costs, CostShape
from negawatt.tuning.batch_growth import PARTS, Growth, LogEpochs, below, learn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

STOPS = (*(i / 5 for i in range(-8, 16)), 6.0)
"""Where a run may be stopped, in standard deviations from the mean of log epochs."""
OWN = 0.25
"""Windows at the batch size of the next run are steps of it: this part is lost, to limits that are not the best."""
FEWER = 0.1
"""One-off: nobody knows how many epochs it takes; it may well be this part of those expected."""
SURE = 1.28
"""One-off: in nine of ten jobs like those of the prior the margin is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """A training job as the tuner sees it.

    Attributes:
        batch_sizes: to choose from, ascending.
        default: the batch size that the user would take; it is expected to reach the target.
        limits_w: power limits to choose from, ascending; the last one is that of the untouched device.
        max_epochs: after which a run that has not reached its target is given up.
        window_s: length of a probe.
        time_price_w: what a second is worth in joules; 0 for least energy. Zeus's cost with eta is this with
            (1 - eta) / eta times the highest limit (NSDI'23, equation 2).

    Raises:
        UsageError: on anything that cannot be so.
    """

    batch_sizes: tuple[int, ...]
    default: int
    limits_w: tuple[float, ...]
    max_epochs: int
    window_s: float = 20.0
    time_price_w: float = 0.0

    def __post_init__(self) -> None:
        for name, values in (("batch_sizes", self.batch_sizes), ("limits_w", self.limits_w)):
            if not values or not all(math.isfinite(v) and v > 0 for v in values):
                raise _bad(f"{name} is {values}", "give one or more numbers above 0")
            if any(a >= b for a, b in pairwise(values)):
                raise _bad(f"{name} is {values}", "give each once, from the smallest to the largest")
        if self.default not in self.batch_sizes:
            raise _bad(f"the default batch size {self.default} is not among {self.batch_sizes}", "add it to them")
        for name, low in (("max_epochs", 1.0), ("window_s", 0.0), ("time_price_w", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low):
                raise _bad(f"{name} is {value}", f"give a number from {low:g} on")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProbe:
    """Asked: a window of steps. May be the first steps of the run to come if that has this batch size."""

    batch_size: int
    limit_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """Asked: a training run, ended when it reaches the target and at the latest after `max_epochs`."""

    batch_size: int
    limit_w: float
    max_epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProbed:
    """Told: what a window gave, scaled to an epoch."""

    batch_size: int
    limit_w: float
    time_s: float
    energy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRan:
    """Told: a run that reached its target after these epochs, or ended after them without."""

    batch_size: int
    epochs: float  # passes over the training data
    reached: bool


class BatchTuner:
    """Least energy to the target over batch size and power limit.

    Args:
        job: what there is to choose from.
        runs: how often the job is to run to its target, this time included; what is learnt must pay within these. 1: a
            one-off job. Beyond them it goes on as if each run were the last.
        growth: what is believed of epochs by batch size.
        shape: what is believed of costs by batch size and limit.
        margin_fraction: one-off: how much worse than the default batch size, each under its best limit, another one may
            turn out in one of ten jobs; and how much probing may cost.

    It draws no random numbers: told the same, it asks the same. `state` is all that it knows.

    Raises:
        UsageError: if `runs` is below 1, or the margin is negative.
    """

    def __init__(
        self,
        job: BatchJob,
        *,
        runs: int,
        growth: Growth | None = None,
        shape: CostShape | None = None,
        margin_fraction: float = 0.05,
    ) -> None:
        if runs < 1:
            raise _bad(f"a job that runs {runs} times", "give a number from 1 on")
        if not (math.isfinite(margin_fraction) and margin_fraction >= 0):
            raise _bad(f"margin_fraction is {margin_fraction}", "give a number from 0 on")
        self._job, self._runs, self._margin = job, runs, margin_fraction
        self._growth = growth or Growth()
        self._octaves = tuple(math.log2(b / job.default) for b in job.batch_sizes)
        self._default = job.batch_sizes.index(job.default)
        limits = [limit / job.limits_w[-1] for limit in job.limits_w]
        self._costs = Costs(self._octaves, limits, shape or CostShape())
        self._probed: list[BatchProbed] = []
        self._ran: list[BatchRan] = []
        self._learnt: LogEpochs | None = None
        self._guess = job.max_epochs / 4
        self._excluded: set[int] = set()

    @property
    def state(self) -> dict[str, Any]:
        """All that was told, as plain values for JSON."""
        return {
            "probed": [asdict(x) for x in self._probed],
            "ran": [asdict(x) for x in self._ran],
            "excluded": sorted(self._job.batch_sizes[batch] for batch in self._excluded),
        }

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take in what another tuner of the same job was told.

        Raises:
            UsageError: if it is none of a tuner's states, or that of another job.
        """
        try:
            told: list[BatchProbed | BatchRan] = [
                *(BatchProbed(**x) for x in state["probed"]),
                *(BatchRan(**x) for x in state["ran"]),
            ]
            excluded = [*state["excluded"]]
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"a state that cannot be read: {error!r}",
                "what was learnt of the job would be lost",
                "give what `state` returned, or begin anew without one",
            ) from error
        for x in told:
            self.tell(x)
        for batch_size in excluded:
            self.exclude(batch_size)

    def exclude(self, batch_size: int) -> None:
        """Take a batch size out, for instance one that does not fit into memory.

        Raises:
            UsageError: if it is the default one, or none of the job's.
        """
        if batch_size == self._job.default:
            raise _bad(f"the default batch size {batch_size} cannot run", "begin anew with another default")
        self._excluded.add(self._index(batch_size))

    def ask(self) -> BatchProbe | BatchRun:
        """What to do next; the same until something is told."""
        job = self._job
        if not self._probed:
            return BatchProbe(batch_size=job.default, limit_w=job.limits_w[-1])
        epochs = self._epochs()
        probe = self._survey(epochs)
        if probe is None:
            batch, budget = self._choice(epochs)
            limit, gain = self._costs.gain(batch)
            if self._runs == 1 or gain * float(self._totals(epochs)[batch]) <= self._window_cost(next_run=True):
                best = job.limits_w[self._costs.best(batch)]
                return BatchRun(batch_size=job.batch_sizes[batch], limit_w=best, max_epochs=budget)
            probe = batch, limit
        return BatchProbe(batch_size=job.batch_sizes[probe[0]], limit_w=job.limits_w[probe[1]])

    def tell(self, told: BatchProbed | BatchRan) -> None:
        """What a window or a run gave, asked for or not.

        Raises:
            UsageError: if it has a batch size or limit that is not the job's, or a number that cannot be.
        """
        batch = self._index(told.batch_size)
        if isinstance(told, BatchProbed):
            if told.limit_w not in self._job.limits_w:
                raise _bad(f"limit {told.limit_w!r} W is none of {self._job.limits_w}", "tell what was asked")
            if not all(math.isfinite(v) and v > 0 for v in (told.time_s, told.energy_j)):
                raise _bad(f"a window of {told.time_s} s and {told.energy_j} J", "leave windows out that went wrong")
            limit = self._job.limits_w.index(told.limit_w)
            self._costs.add((batch, limit), told.energy_j + self._job.time_price_w * told.time_s)
            self._probed.append(told)
        else:
            if not (math.isfinite(told.epochs) and told.epochs > 0):
                raise _bad(f"a run of {told.epochs} epochs", "tell how many it had, above 0")
            self._ran.append(told)
            self._learnt = None

    @property
    def best(self) -> tuple[int, float]:
        """Batch size and limit [W] that are expected to cost least among those that have reached the target.

        Before any has: the choice of a one-off job, else the default batch size.
        """
        if not self._probed:
            return self._job.default, self._job.limits_w[-1]
        batch = self._best(self._epochs())
        return self._job.batch_sizes[batch], self._job.limits_w[self._costs.best(batch)]

    def _index(self, batch_size: int) -> int:
        if batch_size not in self._job.batch_sizes:
            raise _bad(f"batch size {batch_size!r} is none of {self._job.batch_sizes}", "tell what was asked")
        return self._job.batch_sizes.index(batch_size)

    @property
    def _open(self) -> list[int]:
        return [batch for batch in range(len(self._octaves)) if batch not in self._excluded]

    @property
    def _left(self) -> int:
        return max(1, self._runs - sum(ran.reached for ran in self._ran))

    def _epochs(self) -> LogEpochs:
        if self._learnt is None:
            runs = [(self._index(ran.batch_size), float(ran.epochs), ran.reached) for ran in self._ran]
            self._learnt = learn(self._growth, self._octaves, runs, self._guess)
        return self._learnt

    def _totals(self, epochs: LogEpochs) -> Array:
        """Expected cost of a run to the target, per batch size."""
        import numpy as np

        mean, sd = self._costs.by_batch()
        totals = np.exp(mean + sd**2 / 2) * epochs.expected()
        totals[sorted(self._excluded)] = math.inf
        return totals

    def _reached(self) -> list[int]:
        return sorted({self._index(ran.batch_size) for ran in self._ran if ran.reached} - self._excluded)

    def _best(self, epochs: LogEpochs) -> int:
        totals, reached = self._totals(epochs), self._reached()
        if reached:
            return min(reached, key=lambda batch: float(totals[batch]))
        if not self._ran:
            return self._once(epochs) if self._runs == 1 else self._default
        # Nothing has reached the target: the default batch size first, then those that missed it the least often.
        missed = [sum(ran.batch_size == size for ran in self._ran) for size in self._job.batch_sizes]
        if not missed[self._default]:
            return self._default
        return min(self._open, key=lambda batch: (missed[batch], float(totals[batch])))

    def _window_cost(self, *, next_run: bool) -> float:
        """What a window loses, as the first one suggests."""
        first = self._probed[0]
        whole = self._job.window_s * (first.energy_j / first.time_s + self._job.time_price_w)
        return OWN * whole if next_run else whole

    def _survey(self, epochs: LogEpochs) -> tuple[int, int] | None:
        """The probe that is most worth its while over all runs to come: (batch size, limit)."""
        import numpy as np

        if len(self._probed) == 1 and len(self._job.limits_w) > 1:  # where to look at the other batch sizes, too
            return self._default, self._costs.gain(self._default)[0]
        mean, sd = self._costs.by_batch()
        totals = self._totals(epochs)
        best = self._best(epochs)
        if self._runs == 1:
            own = self._job.batch_sizes[best]
            lost = math.fsum(self._window_cost(next_run=probed.batch_size == own) for probed in self._probed)
            if lost + self._window_cost(next_run=False) > self._margin * float(totals[best]) * FEWER:
                return None
        gap = epochs.mean - epochs.mean[best] + mean - mean[best]
        # How epochs differ is not learnt from a probe, but, if the job recurs, from the runs that a good one leads to.
        unsure = np.diag(epochs.cov) + epochs.cov[best, best] - 2 * epochs.cov[best]
        gap_sd = np.sqrt(np.maximum(sd**2 + (unsure if self._left > 1 else 0.0), 1e-9))
        found = None
        for batch in self._open:
            limit, gain = self._costs.gain(batch)
            z = -gap[batch] / gap_sd[batch]
            if not self._costs.measured(batch):
                gain = gap_sd[batch] * (z * below(z) + _density(z))
            elif batch != best:
                gain *= below(z)
            worth = gain * float(totals[best]) * self._left - self._window_cost(next_run=batch == best)
            if worth > 0 and (found is None or worth > found[0]):
                found = worth, batch, limit
        return None if found is None else found[1:]

    def _choice(self, epochs: LogEpochs) -> tuple[int, int]:
        """Batch size of the next run, and the epochs after which it is stopped."""
        reached = self._reached()
        if not reached or not self._ran[-1].reached:  # no second adventure before the target is reached
            return self._best(epochs), self._job.max_epochs
        totals = self._totals(epochs)
        costs = totals / epochs.expected()
        known = min(float(totals[batch]) for batch in reached)
        tried = ((*self._trial(epochs, b, costs, known), b) for b in self._open)
        _, budget, batch = min(tried)
        return batch, budget

    def _trial(self, epochs: LogEpochs, batch: int, costs: Array, known: float) -> tuple[float, int]:
        """Expected cost of trying a batch size now and of the runs that follow, and when to stop it.

        A run that is stopped is followed by one at the best batch size known, which costs `known`.
        """
        import numpy as np

        mean = float(epochs.mean[batch])
        sd = math.sqrt(float(epochs.cov[batch, batch]) + epochs.run_sd_fraction**2)
        logs = mean + sd * np.asarray(PARTS)
        later = [float((costs * e).min(axis=1).mean()) for e in epochs.after(batch, logs)] if self._left > 1 else []
        here = self._octaves[batch]
        never = self._growth.never(min(abs(here - self._octaves[other]) for other in self._reached()))
        options = []
        for edge in STOPS:
            stop = min(self._job.max_epochs, math.ceil(math.exp(min(mean + sd * edge, 20.0))))
            z = (math.log(stop) - mean) / sd
            missed = never + (1.0 - never) * (1.0 - below(z))
            # E[min(N, stop)] of a log-normal N
            run = (1.0 - never) * math.exp(mean + sd * sd / 2) * below(z - sd) + stop * missed
            score = float(costs[batch]) * run + missed * known
            if later:
                score += (self._left - 1) * later[int((logs <= math.log(stop)).sum())]
            options.append((score, stop))
        return min(options)

    def _once(self, epochs: LogEpochs) -> int:
        """Batch size of a one-off job: the least expected cost among those that keep the margin in a bad case."""
        mean, sd = self._costs.by_batch()
        default, cov = self._default, epochs.cov
        best = (float(mean[default]), default)
        for batch in self._open:
            ratio = float(epochs.mean[batch] - epochs.mean[default] + mean[batch])
            var = float(cov[batch, batch] + cov[default, default] - 2 * cov[batch, default] + sd[batch] ** 2)
            if ratio + SURE * math.sqrt(max(0.0, var)) <= float(mean[default]) + math.log1p(self._margin):
                # A run that never gets there is given up after all its epochs, four times those expected.
                miss = self._growth.never(self._octaves[batch]) * self._job.max_epochs / self._guess
                best = min(best, (ratio + var / 2 + math.log1p(miss), batch))
        return best[1]


def _density(z: float) -> float:
    return math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)


def _bad(got: str, fix: str) -> UsageError:
    return UsageError(got, "batch size and limit are chosen by it", fix)
