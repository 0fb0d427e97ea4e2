"""Early stopping: of 27 configurations, how many epochs it takes to find the best, and how often it is found.

Curves: every table of `learning_curves/taskset_curves.npz` under --data (TaskSet as packed by DPL, Apache-2.0):
validation losses of many configurations of one task, all of one length; each point counts as an epoch. Per task 100
draws of 27 configurations, the same for every rule. A run is worth its lowest loss.

epochs_fraction: epochs used, of all. best_kept_fraction: draws in which the lowest loss of all was found (regret below
1e-6). regret_fraction: mean of (found - lowest) / (median last loss - lowest). ..._se: standard errors over draws.
Tasks are few and siblings: how much a further task would differ is told by ..._task_sd, the spread of the tasks' means.

What negawatt learns, it learns from the other tasks (leave one task out); they are siblings: text classifiers on the
same data, trained with the same list of Adam settings. `lcdb_` shows it with weights learnt from nothing of the kind:
accuracy of scikit-learn learners over growing training sets (LCDB, MIT). Its chances are far from sharp here, so it
has the budgets of keep-3 and (`tight_`) halving. The features, TRUST and the values of `chance_per_epoch` were chosen,
among some dozens tried, with the means over all tasks in view.

`single_`: one run with a target, ended when that is out of reach: how often wrongly, and what is saved on the others.

`tight_`: as many epochs as halving, or fewer. `sequential_`: one run after the other, none resumed, beside the median
rule. --fit learns from all tasks and writes what is shipped.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import repeat
from pathlib import Path
from random import Random

import numpy as np

import negawatt
from negawatt.tuning import forecast
from negawatt.tuning.chances import FEATURES, SHIPPED, Prior, seen
from negawatt.tuning.forecast import Forecast, forecast_rule
from negawatt.tuning.reach import lowest_in_reach
from negawatt.tuning.stopping import Curve, Grant, Halving, KeepBest, Race, median_rule, patience_rule

TASKSET, LCDB = "learning_curves/taskset_curves.npz", "learning_curves/lcdb_accuracy_mean.csv.gz"
RUNS, DRAWS, SEED = 27, 100, 0
EXPLODED = 1e3
"""The loss in place of one that is not finite."""
EPISODES = 250
"""Per task to learn from."""
RIDGE = 3.0
TRUST = 0.7
"""What fitted weights are multiplied by: on a task that they were not learnt from, the chances are less sharp."""
TARGETS = (2, 10, 30)
"""Percentiles of the lowest losses of a task: what a single run is asked to reach."""

Losses = Sequence[Sequence[float]]


# ---- curves ----------------------------------------------------------------------------------------------------------


def taskset(data: Path) -> dict[str, np.ndarray]:
    """Validation losses by task, (configurations, epochs)."""
    with np.load(data / TASKSET, allow_pickle=False) as tables:
        names = sorted(key.removesuffix("/valid") for key in tables if key.endswith("/valid"))
        found = {name: tables[f"{name}/valid"].astype(float) for name in names}
    return {name: np.where(np.isfinite(table), table, EXPLODED) for name, table in found.items()}


def lcdb(data: Path) -> list[np.ndarray]:
    """Error by data set, (learners, training-set sizes): learners that were trained on all sizes."""
    rows: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with gzip.open(data / LCDB, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows[row["openmlid"]][row["learner"]][int(row["size_train"])] = 1 - float(row["score_valid"])
    tables = []
    for learners in rows.values():
        sizes = sorted(set().union(*learners.values()))
        full = [[curve[size] for size in sizes] for curve in learners.values() if len(curve) == len(sizes)]
        if len(full) >= 10 and len(sizes) >= 10:
            tables.append(np.array(full))
    return tables


def draws(tables: dict[str, np.ndarray]) -> dict[str, list[Losses]]:
    """The draws of every task, from one generator, tasks in order of their names."""
    rng = np.random.default_rng(SEED)
    return {
        name: [table[rng.choice(len(table), RUNS, replace=False)].tolist() for _ in range(DRAWS)]
        for name, table in tables.items()
    }


# ---- learning --------------------------------------------------------------------------------------------------------


class Wander(Race):
    """Goes on with runs by rank and age, more or less at random, so that states of all kinds are met."""

    def __init__(self, rng: Random, *, runs: int, epochs: int) -> None:
        super().__init__(runs=runs, epochs=epochs)
        self.states: list[dict[int, list[float]]] = []
        self._rng = rng
        self._first = rng.randint(2, 3)
        self._greed, self._youth, self._whim = rng.uniform(0.3, 3), rng.uniform(0.2, 1.5), rng.uniform(0.2, 1.5)
        self._until = rng.uniform(0.08, 0.35) * runs * epochs

    def _next(self) -> Grant | None:
        """Somebody near the front, or young, or anybody."""
        if grant := self._up_to(self._first, range(len(self.curves))):
            return grant
        if self.spent_epochs >= self._until:
            return None
        scores = {}
        for run, curve in enumerate(self.curves):
            if self._open(run):
                age = len(curve)
                rank = sum(len(other) >= age and other.lows[age - 1] < curve.low for other in self.curves)
                whim = -math.log(-math.log(self._rng.random()))
                scores[run] = -self._greed * math.log1p(rank) - self._youth * math.log(age) + self._whim * whim
        if self._rng.random() < 0.25:
            self.states.append(seen(self.curves, self.epochs))
        run = max(scores, key=scores.__getitem__)
        age = len(self.curves[run])
        return Grant(run=run, epoch=min(self.epochs, age + self._rng.randint(1, 4) * max(1, age // 4)))


@dataclass
class Choices:
    """States met, (states, runs, features), which runs were there, and which of them ended best."""

    features: np.ndarray
    there: np.ndarray
    best: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Choices]) -> Choices:
        """All of them."""
        return cls(*(np.concatenate([getattr(p, n) for p in parts]) for n in ("features", "there", "best")))


def episodes(table: np.ndarray, number: int, seed: int) -> Choices:
    """States of random races between curves of one table."""
    rng, met = Random(seed), []
    for _ in range(number):
        drawn = table[rng.sample(range(len(table)), min(RUNS, len(table)))]
        race = Wander(rng, runs=len(drawn), epochs=drawn.shape[1])
        play(race, drawn.tolist())
        best = int(drawn.min(axis=1).argmin())
        met += [(state, best) for state in race.states if best in state]
    features = np.zeros((len(met), RUNS, len(FEATURES)), dtype=np.float32)
    there = np.zeros((len(met), RUNS), dtype=bool)
    for row, (state, _) in enumerate(met):
        for run, values in state.items():
            features[row, run], there[row, run] = values, True
    return Choices(features, there, np.array([best for _, best in met], dtype=int))


def fit(choices: Choices, source: str) -> Prior:
    """Weights of the conditional logit with a ridge, by Newton's method."""
    scale = choices.features[choices.there].std(axis=0) + 1e-9
    x = np.where(choices.there[:, :, None], choices.features / scale, 0.0)
    chosen = x[np.arange(len(x)), choices.best]
    weights = np.zeros(x.shape[2])
    for _ in range(30):
        scores = np.where(choices.there, x @ weights, -np.inf)
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        expected = np.einsum("sr,srf->sf", chances, x)
        gradient = (chosen - expected).sum(axis=0) - RIDGE * weights
        flat = x.reshape(-1, x.shape[2])
        curvature = (flat * chances.reshape(-1, 1)).T @ flat - expected.T @ expected
        step = np.linalg.solve(curvature + RIDGE * np.eye(len(weights)), gradient)
        weights = weights + step * min(1.0, 2.0 / np.abs(step).max())
        if np.abs(step).max() < 1e-4:
            break
    return Prior(weights=tuple((TRUST * weights / scale).tolist()), source=source)


# ---- racing ----------------------------------------------------------------------------------------------------------


def play(race: Race, losses: Losses) -> tuple[int, float]:
    """Run a race; epochs used and the lowest loss found."""
    while grant := race.ask():
        race.tell(grant.run, losses[grant.run][len(race.curves[grant.run])])
    return race.spent_epochs, min(curve.low for curve in race.curves)


def one_by_one(ends: Callable[[Curve, list[Curve], int], bool], losses: Losses) -> tuple[int, float]:
    """Train one run after the other under a rule; epochs used and the lowest loss found."""
    earlier: list[Curve] = []
    for run in losses:
        curve = Curve()
        for loss in run:
            curve.add(loss)
            if ends(curve, earlier, len(run)):
                break
        earlier.append(curve)
    return sum(map(len, earlier)), min(curve.low for curve in earlier)


def rules(own: Prior, other: Prior, *, quick: bool) -> dict[str, Callable[[Losses], tuple[int, float]]]:
    """What is compared, by the prefix of its metrics. `own`: learnt from the other tasks."""

    def race(kind: Callable[..., Race], **options: object) -> Callable[[Losses], tuple[int, float]]:
        return lambda losses: play(kind(runs=len(losses), epochs=len(losses[0]), **options), losses)

    found = {
        "": race(Forecast, prior=own),
        "tight_": race(Forecast, prior=own, chance_per_epoch=forecast.THRIFTY),
        "keep3_": race(KeepBest),
        "halving_": race(Halving),
        "median_": partial(one_by_one, lambda curve, earlier, _: median_rule(curve, earlier)),
        "patience_": partial(one_by_one, lambda curve, *_: patience_rule(curve)),
    }
    more = {
        "thorough_": race(Forecast, prior=own, chance_per_epoch=forecast.THOROUGH),
        "lcdb_": lambda losses: race(Forecast, prior=other, budget_epochs=race(KeepBest)(losses)[0])(losses),
        "lcdb_tight_": lambda losses: race(Forecast, prior=other, budget_epochs=race(Halving)(losses)[0])(losses),
        "hyperband_": race(Halving, brackets=3),
        "sequential_": partial(one_by_one, partial(forecast_rule, prior=own)),
    }
    return found | ({} if quick else more)


def judged(drawn: list[Losses], own: Prior, other: Prior, *, quick: bool) -> dict[str, np.ndarray]:
    """Epochs, best kept and regret of every rule on the draws of a task, (draws, 3)."""
    results: dict[str, np.ndarray] = {}
    for name, rule in rules(own, other, quick=quick).items():
        rows = []
        for losses in drawn:
            spent, found = rule(losses)
            best = min(map(min, losses))
            regret = (found - best) / (float(np.median([run[-1] for run in losses])) - best + 1e-9)
            rows.append((spent / (len(losses) * len(losses[0])), regret < 1e-6, regret))
        results[name] = np.array(rows, dtype=float)
    return results


def single(table: np.ndarray, percentile: float) -> tuple[float, float]:
    """Runs that would reach a target but are ended as out of reach, of those; epochs saved of those that would not.

    Args:
        table: losses of a task.
        percentile: of the lowest losses of all runs: the target.
    """
    lows = table.min(axis=1)
    target, epochs = float(np.percentile(lows, percentile)), table.shape[1]
    wrong, saved = [], []
    for run, low in zip(table.tolist(), lows.tolist(), strict=True):
        curve = Curve()
        for loss in run:
            curve.add(loss)
            if curve.low <= target or lowest_in_reach(curve, epochs) > target:
                break
        if low <= target:
            wrong.append(curve.low > target)
        else:
            saved.append(1 - len(curve) / epochs)
    return float(np.mean(wrong)), float(np.mean(saved))


# ---- report ----------------------------------------------------------------------------------------------------------

COLUMNS = ("epochs_fraction", "best_kept_fraction", "regret_fraction")


def tabulate(results: dict[str, dict[str, np.ndarray]]) -> tuple[dict[str, float], list[dict]]:
    """Metrics over all draws, and a row per rule and task."""
    metrics: dict[str, float] = {}
    table: list[dict] = []
    for rule in next(iter(results.values())):
        parts = {task: result[rule] for task, result in results.items()}
        rows = np.concatenate(list(parts.values()))
        means = np.array([part.mean(axis=0) for part in parts.values()])
        for column, name in enumerate(COLUMNS):
            metrics[f"{rule}{name}"] = float(rows[:, column].mean())
            within = sum(part[:, column].var(ddof=1) / len(part) for part in parts.values())
            metrics[f"{rule}{name}_se"] = math.sqrt(within) / len(parts)
            metrics[f"{rule}{name}_task_sd"] = float(means[:, column].std(ddof=1)) if len(means) > 1 else math.nan
        for task, part in parts.items():
            values = dict(zip(COLUMNS, part.mean(axis=0).tolist(), strict=True))
            table.append({"rule": rule.rstrip("_") or "forecast", "task": task, **values})
    for bar, ours in (("keep3_", ""), ("halving_", "tight_")):
        better = (results[task][ours][:, 1] - results[task][bar][:, 1] for task in results)
        gains = np.concatenate(list(better))  # the same draws: the difference is paired
        metrics[f"{ours}best_kept_above_{bar}fraction"] = float(gains.mean())
        metrics[f"{ours}best_kept_above_{bar}fraction_se"] = float(gains.std(ddof=1) / math.sqrt(len(gains)))
    return metrics, table


def learnt(data: Path, pool: ProcessPoolExecutor) -> tuple[dict[str, np.ndarray], dict[str, Choices], Prior]:
    """Curves of all tasks, states to learn from in each, and the prior of LCDB."""
    tables, others = taskset(data), lcdb(data)
    count = [EPISODES] * len(tables) + [5] * len(others)
    every = [*tables.values(), *others]
    choices = list(pool.map(episodes, every, count, range(len(every))))
    prior = fit(
        Choices.joined(choices[len(tables) :]), "LCDB 0.1.0 (MIT): errors of scikit-learn learners by data size"
    )
    return tables, dict(zip(tables, choices[: len(tables)], strict=True)), prior


def ship(choices: dict[str, Choices]) -> None:
    """Write the prior of all tasks into the package."""
    source = (
        f"TaskSet validation curves of {len(choices)} tasks as packed by DPL (Apache-2.0); benchmarks/early_stopping.py"
    )
    prior = fit(Choices.joined(list(choices.values())), source)
    weights = dict(zip(FEATURES, (round(weight, 4) for weight in prior.weights), strict=True))
    path = Path(forecast.__file__).parent / "data" / SHIPPED
    path.write_text(json.dumps({"source": source, "weights": weights}, indent=1) + "\n", encoding="utf-8")


def report(data: Path, jobs: int, *, ships: bool, quick: bool) -> dict:
    """The JSON object of this benchmark."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    with ProcessPoolExecutor(jobs) as pool:
        tables, choices, other = learnt(data, pool)
        if ships:
            ship(choices)
        own = {
            task: fit(Choices.joined([part for name, part in choices.items() if name != task]), "the other tasks")
            for task in tables
        }
        drawn = draws(tables)
        judge = pool.map(partial(judged, quick=quick), drawn.values(), (own[task] for task in drawn), repeat(other))
        results = dict(zip(drawn, judge, strict=True))
        reach = [pool.map(single, tables.values(), repeat(percentile)) for percentile in TARGETS]
        wrong, saved = np.array([pair for part in reach for pair in part]).mean(axis=0).tolist()
    metrics, table = tabulate(results)
    metrics |= {"single_ended_wrongly_fraction": wrong, "single_hopeless_saved_fraction": saved}
    return {
        "benchmark": "early_stopping",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": load,
        "versions": {"negawatt": negawatt.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "metrics": metrics,
        "table": table,
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {TASKSET} and {LCDB}")
    parser.add_argument("--fit", action="store_true", help="also write the shipped prior, learnt from all tasks")
    parser.add_argument("--quick", action="store_true", help="only the rules that bars are set for")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    result = report(options.data, options.jobs, ships=options.fit, quick=options.quick)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for name, value in result["metrics"].items():
        print(f"{name} {value:.4f}")


if __name__ == "__main__":
    main()
