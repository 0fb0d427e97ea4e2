"""Fleet: share one mean slow-down among jobs that come one after another, of which nothing is known before.

All jobs are given the same price of time: slowing a job down is worth it where it saves more than that. One price
spends a budget best (the Lagrangian relaxation; H. Everett, Operations Research 11 (1963) 399). Which price spends it
is worked out from what the jobs so far could have saved, as they measured it, rather than groped for. Beside the price
stands a guard: no job may lose more than what keeps the mean within the budget, whatever comes later.

Pure: a `Fleet` holds a `FleetState`, a plain value. Hosts of a cluster share it through a file that they lock
(`core.codec` makes it JSON and back). How many jobs are to come need not be known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from negawatt.core.errors import UsageError
from negawatt.tuning.limits import Probed
from negawatt.tuning.objective import Goal, Objective
from negawatt.tuning.tradeoff import Step, hull, spend

TYPICAL = 0.05
"""Mean slow-down times price of a fleet of which nothing is known: at 5 % slower, another 1 % saves another 1 %.

A guess of the right size, which the first jobs outweigh; docs/fleet.md has what half and twice as much do.
"""
TYPICAL_JOBS = 5.0
"""As many jobs are taken to be typical before their own figures outweigh the guess."""
HORIZON_JOBS = 60.0
"""Over as many jobs what was spent too much, or too little, is made up for. Longer is steadier."""
TOLERANCE = 0.001
"""The mean, as measured, may be above the budget by so much at any time. What is measured has an error, too."""
MOST_OF_BUDGET = 5.0
"""No job is given more than this many times the budget, so that none takes the whole of it from those beside it."""
SEEN = 500
"""Of as many jobs, the latest, the figures are kept."""
_PRICES = tuple(2.0 ** (6 - quarter / 4) for quarter in range(61))
_TYPICAL_STEPS = tuple(
    Step(option=0, lost=TYPICAL * (1 / low - 1 / high), gained=TYPICAL * (high / low - 1))
    for high, low in pairwise(_PRICES)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A job that runs.

    Attributes:
        name: of the job.
        length_s: how long it is expected to take with untouched devices [s].
        until_s: when it is given up, if nothing was heard of it [s].
        reserved_fraction: slow-down that is set aside for it.
        expected_fraction: slow-down that it is expected to have.
        steps: what it measured, as trade-off of slow-down for energy; None before it chose.
    """

    name: str
    length_s: float
    until_s: float
    reserved_fraction: float
    expected_fraction: float
    steps: tuple[Step, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a job that is over could have traded: steps of slow-down for energy, weighted by its length [s]."""

    length_s: float
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """All that a fleet remembers.

    Attributes:
        budget_fraction: mean slow-down that may be spent, weighted by the jobs' lengths.
        jobs: number that are over.
        length_s: sum of how long these would have taken with untouched devices [s].
        lost_s: sum of how much longer they took [s].
        admitted: the jobs that run.
        seen: what the jobs that are over could have traded, the latest last.
    """

    budget_fraction: float
    jobs: int = 0
    length_s: float = 0.0
    lost_s: float = 0.0
    admitted: tuple[Admitted, ...] = ()
    seen: tuple[Seen, ...] = ()

    def __post_init__(self) -> None:
        _number("budget_fraction", self.budget_fraction, 0.0)


class Fleet:
    """Admit each job, let it choose when it has measured some limits, and take back what it lost.

    Args:
        state: what the fleet remembers, at first `FleetState(budget_fraction=0.05)`.
    """

    def __init__(self, state: FleetState) -> None:
        self.state = state

    @property
    def slowdown_fraction(self) -> float | None:
        """Mean slow-down of the jobs that are over, as counted; None before the first."""
        return self.state.lost_s / self.state.length_s if self.state.length_s else None

    @property
    def price(self) -> float:
        """The part of its energy that a job has to save to be slowed down by its whole length."""
        state = self.state
        total_s = state.length_s + sum(job.length_s for job in state.admitted)
        mean_s = total_s / (state.jobs + len(state.admitted)) if total_s else 1.0
        left_s = state.budget_fraction * state.length_s - state.lost_s
        left_s += sum((state.budget_fraction - job.expected_fraction) * job.length_s for job in state.admitted)
        target = state.budget_fraction + left_s / (HORIZON_JOBS * mean_s)
        target = min(max(target, 0.2 * state.budget_fraction), 2.0 * state.budget_fraction)
        typical_s = TYPICAL_JOBS * mean_s
        steps = [(step, typical_s) for step in _TYPICAL_STEPS]
        steps += [(step, seen.length_s) for seen in state.seen for step in seen.steps]
        return spend(steps, target * (typical_s + sum(seen.length_s for seen in state.seen)))

    def admit(self, name: str, *, length_s: float, now_s: float, lease_s: float = 86_400.0) -> Objective:
        """Let a job in: what its search is to want.

        Args:
            name: of the job, not that of one that runs.
            length_s: how long it is expected to take with untouched devices [s].
            now_s: the time, on one clock for all jobs [s].
            lease_s: after so long without `choose` or `finish` it is given up, and counts as having lost what was set
                aside for it [s].

        Raises:
            UsageError: if the name is taken, or a time is no usable number.
        """
        _number("length_s", length_s, 1e-9)
        self._lapse(now_s)
        if any(job.name == name for job in self.state.admitted):
            raise UsageError(
                f"a second job named {name!r} while the first runs",
                "what one of them loses would be counted for the other",
                "give each job a name of its own, such as its Slurm job id",
            )
        safe = self._safe(length_s, self.state.admitted)
        job = Admitted(
            name=name,
            length_s=length_s,
            until_s=now_s + _number("lease_s", lease_s, 0.0),
            reserved_fraction=safe,
            expected_fraction=min(safe, self.state.budget_fraction),
        )
        self.state = replace(self.state, admitted=(*self.state.admitted, job))
        return Objective(goal=Goal.WEIGHTED, time_weight=self.price, max_slowdown_fraction=safe)

    def choose(self, name: str, probed: Sequence[Probed], *, now_s: float, lease_s: float = 86_400.0) -> float:
        """The limit that a job is to hold, of those it measured, at the price as it is now.

        What was set aside for the job shrinks to what it will lose. Call it again when more is known of a limit, and
        during long jobs, before the lease ends: this renews it.

        Args:
            name: of a job that runs.
            probed: mean figures of each limit measured; the first is the limit as found.
            now_s: the time [s].
            lease_s: as for `admit`, from now on [s].

        Raises:
            UsageError: if no such job runs, or a figure is not a finite number above zero.
        """
        self._lapse(now_s)
        job, others = self._take(name)
        found = [
            (p.limit, _number("time_s", p.time_s, 1e-300), _number("energy_j", p.energy_j, 1e-300)) for p in probed
        ]
        if not found:
            raise UsageError("no limit measured", "there is nothing to choose from", "give the limit as found first")
        ratios = [(max(0.0, time_s / found[0][1] - 1.0), energy_j / found[0][2]) for _, time_s, energy_j in found]
        safe = self._safe(job.length_s, others)
        objective = Objective(goal=Goal.WEIGHTED, time_weight=self.price, max_slowdown_fraction=safe)
        picked = min(range(len(ratios)), key=lambda i: (objective.cost(1.0 + ratios[i][0], ratios[i][1]), i))
        lost = ratios[picked][0]
        job = replace(
            job,
            until_s=now_s + _number("lease_s", lease_s, 0.0),
            reserved_fraction=lost,
            expected_fraction=lost,
            steps=hull(ratios)[1],
        )
        self.state = replace(self.state, admitted=(*others, job))
        return found[picked][0]

    def finish(
        self, name: str, slowdown_fraction: float | None, *, now_s: float, length_s: float | None = None
    ) -> float:
        """A job is over: count what it lost; gives the slow-down that was counted.

        Args:
            name: of a job that runs.
            slowdown_fraction: how much longer it took, as a part of its length, windows of probing included. Below
                zero it counts as zero: luck earns nobody a right to be slow. None (not known): what was set aside.
            now_s: the time [s].
            length_s: how long it would have taken with untouched devices; None: as expected [s].

        Raises:
            UsageError: if no such job runs (it was counted, or given up), or a figure is no number; the job then stays
                in, at what was set aside for it.
        """
        self._lapse(now_s)
        job, others = self._take(name)
        length_s = job.length_s if length_s is None else _number("length_s", length_s, 0.0)
        lost = job.reserved_fraction if slowdown_fraction is None else slowdown_fraction
        lost = max(0.0, _number("slowdown_fraction", lost, -math.inf))
        self.state = replace(self.state, admitted=others)
        self._count(replace(job, length_s=length_s), lost)
        return lost

    def _count(self, job: Admitted, lost: float) -> None:
        state = self.state
        # A job with nothing to trade counts, too: it leaves its part of the budget to others.
        seen = state.seen if job.steps is None else (*state.seen, Seen(length_s=job.length_s, steps=job.steps))
        self.state = replace(
            state,
            jobs=state.jobs + 1,
            length_s=state.length_s + job.length_s,
            lost_s=state.lost_s + lost * job.length_s,
            seen=seen[-SEEN:],
        )

    def _safe(self, length_s: float, others: Sequence[Admitted]) -> float:
        """The slow-down that a job may have so that the mean is kept, whenever and however the others end.

        Jobs that run count where they were given more than the budget. What they may leave over is not there yet.
        """
        state = self.state
        allowed = state.budget_fraction + TOLERANCE
        left_s = allowed * (state.length_s + length_s) - state.lost_s
        left_s -= sum(max(0.0, job.reserved_fraction - allowed) * job.length_s for job in others)
        return min(max(0.0, left_s / length_s), MOST_OF_BUDGET * state.budget_fraction)

    def _take(self, name: str) -> tuple[Admitted, tuple[Admitted, ...]]:
        others = tuple(job for job in self.state.admitted if job.name != name)
        for job in self.state.admitted:
            if job.name == name:
                return job, others
        raise UsageError(
            f"no job named {name!r} runs",
            "it was counted before, given up because nothing was heard of it, or never admitted; twice would be wrong",
            "admit a job once, choose within its lease, and finish it once",
        )

    def _lapse(self, now_s: float) -> None:
        """Give up the jobs of which nothing was heard: they may have lost all that was set aside for them."""
        _number("now_s", now_s, -math.inf)
        gone = [job for job in self.state.admitted if job.until_s < now_s]
        if gone:
            self.state = replace(self.state, admitted=tuple(job for job in self.state.admitted if job not in gone))
        for job in gone:
            self._count(job, max(job.reserved_fraction, self.state.budget_fraction))


def _number(name: str, value: float, low: float) -> float:
    if not (math.isfinite(value) and value >= low):
        raise UsageError(
            f"{name} {value}",
            "the slow-down of all jobs is reckoned with it",
            "give a finite number" + ("" if low == -math.inf else " above zero" if low > 0 else " from 0 on"),
        )
    return value
