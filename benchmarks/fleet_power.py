"""Fleet power: how much of what could be saved at one mean slow-down is saved, when jobs come one by one, unknown.

Each job is a curve of time and power over power limits, measured once by the authors of Zeus (NSDI'23): one for each
GPU, network, optimizer and batch size (`summary_power_*.csv`). Time is forced to be monotone in the limit, so that
nobody gains from a lucky measurement. A job lasts 200 windows; all are played, those of probing included, and each
gives time and energy per step with 1 % noise. The first three are under the limit as found, which costs no time and
stands below every ratio. What is reported is true time and energy. The ceiling is what the best single price of time
saves in hindsight, on true curves, without probes, within the budget.

- ours: `tuning.fleet.Fleet` with `tuning.climb.Climb`. Nothing in them is fitted to single curves: a few round numbers
  (the start at 0.9 of the draw, the first guess of the price) were set with these curves in view.
- dual ascent: the same search and guard, but the price takes a step after each job, by what that lost above the budget.
- bound per job: the budget as a bound for each job, by bisection.
- static cap: the same part of the highest limit for all jobs, the best in hindsight on true curves, interpolated.

Streams of 200 jobs are drawn from all curves in random order, all of them before any comes again; the 24 jobs from
those with the default batch size. "8 at once": that many jobs run beside one another. Rows of site power: 24 jobs with
known curves, held to a part of what they draw.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

import negawatt
from negawatt.tuning.climb import Climb
from negawatt.tuning.fleet import TOLERANCE, TYPICAL, Fleet, FleetState
from negawatt.tuning.limits import LimitSearch, Probed
from negawatt.tuning.objective import Goal, Objective
from negawatt.tuning.plain import Bisection
from negawatt.tuning.site_power import Option, share_power
from negawatt.tuning.tradeoff import hull

BUDGETS = (0.05, 0.08, 0.02)  # --quick: the first two
WINDOWS = 200
AS_FOUND = 3  # windows under the limit as found, before others are tried
LOOKS = (10, 20, 40)  # windows after which a choice is looked at again
ORDERS = {"stream of 200": 20, "24 jobs": 40}
DEFAULTS = {  # optimizer and batch size of Zeus' own run_alibaba.py (Apache-2.0); other data sets: the largest batch
    "cifar100": ("adadelta", 1024),
    "imagenet": ("adadelta", 256),
    "librispeech": ("adamw", 256),
    "movielens-1m": ("adam", 1024),
    "squad": ("adamw", 32),
    "sentiment140": ("adamw", 128),
}


@dataclass(frozen=True)
class Curve:
    """Time and energy under each limit, highest first, relative to the highest."""

    gpu: str
    dataset: str
    optimizer: str
    batch: int
    limits_w: np.ndarray
    times: np.ndarray
    energies: np.ndarray
    draw_w: float

    @property
    def powers_w(self) -> np.ndarray:
        """Mean draw under each limit."""
        return self.draw_w * self.energies / self.times


def load(folder: Path) -> list[Curve]:
    """All curves of the files summary_power_GPU.csv."""
    curves = []
    folder = folder if any(folder.glob("summary_power_*.csv")) else folder / "power_limit"
    for path in sorted(folder.glob("summary_power_*.csv")):
        rows: dict[tuple, dict[float, list]] = defaultdict(lambda: defaultdict(list))
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                key = (row["dataset"], row["network"], row["optimizer"], int(row["batch_size"]))
                rows[key][float(row["power_limit"])].append(
                    [float(row[c]) for c in ("time_per_epoch", "average_power")]
                )
        for (dataset, _, optimizer, batch), found in sorted(rows.items()):
            limits = np.array(sorted(found, reverse=True))
            times, powers = np.array([np.mean(found[limit], axis=0) for limit in limits]).T
            times = np.maximum.accumulate(times)
            energies = times * powers / (times[0] * powers[0])
            gpu = path.stem.removeprefix("summary_power_")
            curves.append(Curve(gpu, dataset, optimizer, batch, limits, times / times[0], energies, float(powers[0])))
    if not curves:
        raise SystemExit(f"no summary_power_*.csv in {folder}; give their folder with --data")
    return curves


def default_jobs(curves: Sequence[Curve]) -> list[Curve]:
    """One curve for each GPU and data set: with the default batch size, or what fits below it, else the largest."""
    groups: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in curves:
        groups[curve.gpu, curve.dataset].append(curve)
    jobs = []
    for (_, dataset), group in sorted(groups.items()):
        optimizer, batch = DEFAULTS.get(dataset, (group[0].optimizer, max(c.batch for c in group)))
        alike = [c for c in group if c.optimizer == optimizer] or group
        jobs.append(max([c for c in alike if c.batch <= batch] or alike, key=lambda c: c.batch))
    return jobs


def drawn(pool: Sequence[Curve], count: int, rng: np.random.Generator) -> list[Curve]:
    """Jobs in random order; all of the pool come before any comes again."""
    order = np.concatenate([rng.permutation(len(pool)) for _ in range(-(-count // len(pool)))])
    return [pool[i] for i in order[:count]]


class Job:
    """A job that runs: windows played, what they truly took and what was measured."""

    def __init__(self, curve: Curve, noise: float, rng: np.random.Generator) -> None:
        self.curve, self._noise, self._rng = curve, noise, rng
        self.left, self.probes = WINDOWS, 0
        self.time = self.energy = self._measured = 0.0
        self._sums: dict[int, np.ndarray] = {}

    def play(self, limit: float, count: int) -> Probed:
        """Some windows under a limit; what they gave per step, in seconds of the untouched step and joules."""
        i = int(np.flatnonzero(self.curve.limits_w == limit)[0])
        count = min(count, self.left)
        true = np.array([self.curve.times[i], self.curve.energies[i]])
        seen = true * np.exp(self._noise / np.sqrt(max(count, 1)) * self._rng.standard_normal(2))
        self.left -= count
        self.time, self.energy = self.time + count * true[0], self.energy + count * true[1]
        self._measured += count * seen[0]
        self._sums[i] = self._sums.get(i, np.zeros(3)) + count * np.array([*seen, 1.0])
        return Probed(limit=limit, time_s=float(seen[0]), energy_j=float(seen[1] * self.curve.draw_w))

    def probe(self, search: LimitSearch) -> None:
        """Measure what the search asks for."""
        while self.left and (limit := search.ask()) is not None:
            count = 1 if self.probes else AS_FOUND
            search.tell(self.play(limit, count))
            self.probes += count

    def hold(self, choose: Callable[[], float]) -> None:
        """Play the rest, looking at the choice again when more was measured."""
        for count in (*LOOKS, WINDOWS):
            if self.left:
                self.play(choose(), count)

    @property
    def probed(self) -> list[Probed]:
        """Mean figures of each limit, that as found first."""
        return [
            Probed(limit=float(self.curve.limits_w[i]), time_s=float(t / n), energy_j=float(e / n))
            for i, (t, e, n) in sorted(self._sums.items())
        ]

    @property
    def slowdown(self) -> float:
        """As measured, over the whole job."""
        time, _, count = self._sums[0]
        return float(self._measured / WINDOWS / (time / count) - 1)


def ours(jobs: Sequence[Curve], budget: float, noise: float, rng: np.random.Generator, beside: int = 1) -> list[Job]:
    """The fleet of negawatt, so many jobs beside one another."""
    fleet, running, done = Fleet(FleetState(budget_fraction=budget)), deque(), []

    def finish() -> None:
        name, job = running.popleft()
        fleet.finish(name, job.slowdown, now_s=0.0)
        done.append(job)

    for number, curve in enumerate(jobs):
        name, job = str(number), Job(curve, noise, rng)
        job.probe(Climb(curve.limits_w.tolist(), fleet.admit(name, length_s=WINDOWS, now_s=0.0)))
        job.hold(lambda name=name, job=job: fleet.choose(name, job.probed, now_s=0.0))
        running.append((name, job))
        if len(running) == beside:
            finish()
    while running:
        finish()
    return done


def dual_ascent(jobs: Sequence[Curve], budget: float, noise: float, rng: np.random.Generator) -> list[Job]:
    """The price moves after each job; the guard is that of the fleet."""
    price, lost, done = TYPICAL / budget, 0.0, []
    for number, curve in enumerate(jobs, 1):
        safe = max(0.0, (budget + TOLERANCE) * number - lost)
        objective = Objective(goal=Goal.WEIGHTED, time_weight=price, max_slowdown_fraction=safe)
        done.append(alone(Job(curve, noise, rng), Climb, objective))
        lost += max(0.0, done[-1].slowdown)
        price = min(max(price + done[-1].slowdown - budget, 0.02), 8.0)
    return done


def bound_per_job(jobs: Sequence[Curve], budget: float, noise: float, rng: np.random.Generator) -> list[Job]:
    """Each job keeps the budget on its own."""
    return [alone(Job(curve, noise, rng), Bisection, Objective(max_slowdown_fraction=budget)) for curve in jobs]


def alone(job: Job, search: Callable[..., LimitSearch], objective: Objective) -> Job:
    """Play a job that holds the best limit as measured up to now."""

    def best() -> float:
        base = job.probed[0]
        return min(job.probed, key=lambda p: objective.cost(p.time_s / base.time_s, p.energy_j / base.energy_j)).limit

    job.probe(search(job.curve.limits_w.tolist(), objective))
    job.hold(best)
    return job


def ceiling(jobs: Sequence[Curve], budget: float) -> float:
    """What the best price in hindsight saves within the budget."""
    saved, lost, steps = 0.0, 0.0, []
    for curve in jobs:
        free, own = hull(list(zip((curve.times - 1).tolist(), curve.energies.tolist(), strict=True)))
        saved += 1 - float(curve.energies[free])
        steps += own
    for step in sorted(steps, key=lambda s: -s.price):
        lost += step.lost
        if lost > budget * len(jobs):
            break
        saved += step.gained
    return saved / len(jobs)


def static_caps(jobs: Sequence[Curve]) -> np.ndarray:
    """Slow-down, saving and watts of caps that are the same part of the highest limit for all, the highest first."""
    parts, rows = np.linspace(1, 0.4, 601), []
    for curve in jobs:
        columns = (curve.times - 1, 1 - curve.energies, curve.powers_w)
        rows.append([np.interp(parts, (curve.limits_w / curve.limits_w[0])[::-1], y[::-1]) for y in columns])
    return np.mean(rows, axis=0).T


def static_cap(jobs: Sequence[Curve], budget: float) -> tuple[float, float]:
    """Saving and slow-down of the best single cap within the budget."""
    caps = static_caps(jobs)
    slowdown, saved, _ = max(caps[caps[:, 0] <= budget].tolist(), key=lambda cap: cap[1])
    return saved, slowdown


def cost_of(jobs: Sequence[Curve], saved: float) -> dict:
    """The least mean slow-down at which a saving is had in hindsight: with limits for each job, and with one cap."""
    caps = static_caps(jobs)
    enough = caps[caps[:, 1] >= saved]
    slowdowns = np.linspace(0, 0.3, 601)
    return {
        "jobs": f"{len(jobs)} default jobs",
        "policy": "what a saving costs",
        "saved_fraction": saved,
        "slowdown_fraction": next((rounded(s) for s in slowdowns if ceiling(jobs, s) >= saved), None),
        "static_slowdown_fraction": rounded(enough[:, 0].min()) if len(enough) else None,
    }


def rounded(value: float) -> float:
    """To a hundredth of a percent."""
    return round(float(value), 4)


POLICIES = {
    "ours": ours,
    "ours, 8 at once": partial(ours, beside=8),
    "dual ascent": dual_ascent,
    "bound per job": bound_per_job,
}
ROWS = (  # beginning of the metrics' names, policy, and what is not as usual; --quick has the first two
    ("", "ours", {}),
    ("static_", "static cap", {}),
    ("bound_", "bound per job", {}),
    ("dual_", "dual ascent", {}),
    ("beside8_", "ours, 8 at once", {}),
    ("seed2_", "ours", {"seed": 2}),
    ("noise2_", "ours", {"noise": 0.02}),
)


def row(name: str, pool: Sequence[Curve], kind: str, budget: float, noise: float = 0.01, seed: int = 1) -> dict:
    """One policy on all orders of a kind of stream."""
    count, play = (24 if kind == "24 jobs" else 200), POLICIES.get(name)
    reached, slowdowns, ceilings, probes = [], [], [], []
    for order in range(ORDERS[kind]):
        jobs = drawn(pool, count, np.random.default_rng([seed, order]))
        rng = np.random.default_rng([seed, order, 1])
        most = ceiling(jobs, budget)
        if play is None:
            saved, slowdown = static_cap(jobs, budget)
        else:
            done = play(jobs, budget, noise, rng)
            saved = 1 - float(np.mean([job.energy for job in done])) / WINDOWS
            slowdown = float(np.mean([job.time for job in done])) / WINDOWS - 1
            probes.append(np.mean([job.probes for job in done]))
        for values, value in ((reached, saved / most), (slowdowns, slowdown), (ceilings, most)):
            values.append(value)
    return {
        "jobs": kind,
        "budget_fraction": budget,
        "policy": name,
        "noise_fraction": noise,
        "seed": seed,
        "orders": ORDERS[kind],
        "ceiling_fraction": rounded(np.mean(ceilings)),
        "ceiling_reached_fraction": rounded(np.mean(reached)),
        "ceiling_reached_worst_fraction": rounded(min(reached)),
        "slowdown_fraction": rounded(np.mean(slowdowns)),
        "slowdown_worst_fraction": rounded(max(slowdowns)),
        "probing_windows": round(float(np.mean(probes)), 2) if probes else 0.0,
    }


def site_power(jobs: Sequence[Curve], part: float) -> dict:
    """Jobs held to a part of what they draw: limits shared out, and one cap for all, on true curves."""
    options = {
        str(number): [
            Option(limit=float(limit), power_w=float(power), slowdown_fraction=float(time - 1))
            for limit, power, time in zip(curve.limits_w, curve.powers_w, curve.times, strict=True)
        ]
        for number, curve in enumerate(jobs)
    }
    budget_w = part * sum(curve.draw_w for curve in jobs)
    shared = share_power(options, budget_w).values()
    caps = static_caps(jobs)
    enough = caps[caps[:, 2] * len(jobs) <= budget_w]
    return {
        "jobs": f"{len(jobs)} at once",
        "policy": "site power",
        "power_fraction": part,
        "slowdown_fraction": rounded(np.mean([option.slowdown_fraction for option in shared])),
        "static_slowdown_fraction": rounded(enough[0, 0]) if len(enough) else None,
    }


def report(folder: Path, *, quick: bool) -> dict:
    """The JSON object of this benchmark. `quick` leaves out all but what the bars need."""
    curves = load(folder)
    defaults = default_jobs(curves)
    metrics, table = {}, []
    for kind, pool in (("stream of 200", curves), ("24 jobs", defaults)):
        for budget in BUDGETS[:2] if quick else BUDGETS:
            end = f"{budget * 100:.0f}_fraction"
            for name, policy, options in ROWS[:2] if quick else ROWS:
                head = ("jobs24_" if kind == "24 jobs" else "") + name
                table.append(row(policy, pool, kind, budget, **options))
                metrics[f"{head}{'ceiling_' * (not name)}reached_{end}"] = table[-1]["ceiling_reached_fraction"]
                metrics[f"{head}slowdown_{end}"] = table[-1]["slowdown_fraction"]
                metrics[f"{head}slowdown_worst_{end}"] = table[-1]["slowdown_worst_fraction"]
    costs = {f"saving_{100 * saved:.0f}": cost_of(defaults, saved) for saved in (0.1, 0.12, 0.15)}
    costs |= {f"site_power_{100 * part:.0f}": site_power((defaults * 24)[:24], part) for part in (0.9, 0.8, 0.7)}
    for name, found in costs.items():
        table.append(found)
        metrics[f"{name}_slowdown_fraction"] = found["slowdown_fraction"]
    return {
        "benchmark": "fleet_power",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": os.getloadavg(),
        "versions": {"negawatt": negawatt.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "data": {"curves": len(curves), "default_jobs": len(defaults)},
        "metrics": metrics,
        "table": table,
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="leave out other policies, seeds and noise")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds summary_power_*.csv")
    options = parser.parse_args()
    result = report(options.data, quick=options.quick)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'jobs':<14} budget {'policy':<16} noise seed ceiling reached  worst slower  worst windows of probing")
    for line in result["table"]:
        if "orders" not in line:
            print(", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in line.items()))
            continue
        shown = (f"{line[key]:>6.2%}" for key in ("slowdown_fraction", "slowdown_worst_fraction"))
        print(
            f"{line['jobs']:<14} {line['budget_fraction']:>6.0%} {line['policy']:<16} {line['noise_fraction']:>5.0%} "
            f"{line['seed']:>4} {line['ceiling_fraction']:>7.1%} {line['ceiling_reached_fraction']:>7.3f} "
            f"{line['ceiling_reached_worst_fraction']:>6.3f} {' '.join(shown)} {line['probing_windows']:>5.2f}"
        )


if __name__ == "__main__":
    main()
