"""Batch size and power limit: energy to a target quality over 40 runs of a recurring job, and of a job that runs once.

Measured traces are replayed: time and power of an epoch per batch size and limit, and epochs to the target per batch
size from several training runs. The j-th run at a batch size draws the same training run for every method. A
recurrence ends when the target is reached, so a run that misses it or is stopped is charged and followed by another.
A window lasts 20 s, at most a tenth of the default's epoch, and measures with 1 % noise. Windows at the batch size of
the run that follows are its first steps; others are lost.

- negawatt: `BatchTuner`. Its priors are fitted without any job of the network that it is tried on.
- thompson: Zeus as published (NSDI'23): batch sizes from the default down, then up, each until one misses, and this
  twice; then Gaussian Thompson sampling among those that reached the target; all limits swept in the first run at a
  batch size; a run is stopped at twice the least cost so far. Least energy is its cost here (eta = 1).
- grid: every batch size once with its limits swept, stopped at twice the least cost so far; then the cheapest.
- default: the default batch size under the highest limit. limit_only: the same batch size, its limits swept once.
- oracle: the expected energy of the best batch size and limit, known beforehand.

Input: `summary_train.csv` (dataset, network, batch_size, optimizer, run, target_metric, target_epoch; nan: missed) and
one `summary_power_GPU.csv` per GPU (dataset, network, batch_size, optimizer, power_limit, time_per_epoch,
average_power). Target, default batch size and epochs allowed of the six jobs of Zeus's paper are those of its
run_alibaba.py, the default at most as large as the GPU's memory takes. By the rule for other jobs, the default is the
middle one of the batch sizes, the target the one that takes it longest of those that it reaches in every run, and twice
the epochs of its slowest run are allowed. Metrics: jobs of Zeus's paper, those below 10 kJ (movielens-1m) apart as
tiny_; other_: the same traces with targets and defaults by the rule, which played no part when the constants of the
tuner were chosen.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from batch_traces import Lab, Traced, load

import negawatt
from negawatt.tuning.batch_costs import CostShape
from negawatt.tuning.batch_growth import Growth
from negawatt.tuning.batches import BatchJob, BatchProbe, BatchProbed, BatchRan, BatchTuner

RECURRENCES = 40
SEEDS = 5
STOP = 2.0
TINY_J = 1e4
"""Below this an untouched run is too small to matter: reported apart (movielens-1m: 3 to 8 kJ)."""
Setting = tuple[int, float]
Method = Callable[[Lab, "Priors", int], Setting]


@dataclass(frozen=True, slots=True, kw_only=True)
class Priors:
    """What other networks teach."""

    growth: Growth
    shape: CostShape

    @classmethod
    def without(cls, network: str, jobs: list[Traced]) -> Priors:
        """Fitted on the jobs of all other networks; the built-in ones where there are fewer than two."""
        others = [job for job in jobs if job.key[1] != network]
        tables = {job.key: job for job in others}
        if len(tables) < 2:
            return cls(growth=Growth(), shape=CostShape())
        growth = Growth.fit([{math.log2(b / j.default): e for b, e in j.epochs.items()} for j in tables.values()])
        curves, slopes = [], []
        for job in others:
            top = job.limits[-1]
            curves += [{u / top: c[u][1] / c[top][1] for u in job.limits} for c in job.cost.values()]
            octaves = [math.log2(b / job.default) for b in job.cost]
            slopes.append(float(np.polyfit(octaves, [math.log(c[top][1]) for c in job.cost.values()], 1)[0]))
        return cls(growth=growth, shape=CostShape.fit(curves, slopes))


def tuned(lab: Lab, priors: Priors, recurrences: int) -> Setting:
    """What is benchmarked: `BatchTuner`."""
    job = lab.job
    tuner = BatchTuner(
        BatchJob(
            batch_sizes=tuple(job.epochs),
            default=job.default,
            limits_w=job.limits,
            max_epochs=job.max_epochs,
            window_s=job.window_s,
        ),
        runs=recurrences,
        growth=priors.growth,
        shape=priors.shape,
    )
    done = 0
    while done < recurrences:
        asked = tuner.ask()
        if isinstance(asked, BatchProbe):
            time_s, energy_j = lab.window(asked.batch_size, asked.limit_w)
            tuner.tell(
                BatchProbed(batch_size=asked.batch_size, limit_w=asked.limit_w, time_s=time_s, energy_j=energy_j)
            )
        else:
            epochs, reached = lab.run(asked.batch_size, asked.limit_w, asked.max_epochs)
            tuner.tell(BatchRan(batch_size=asked.batch_size, epochs=epochs, reached=reached))
            done += reached
    return tuner.best


class Stopped:
    """Runs with the limit swept at the first of a batch size, stopped at twice the least cost of a recurrence."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.limit: dict[int, float] = {}
        self._least_j = math.inf
        self._began_j = lab.spent_j

    def attempt(self, batch: int) -> tuple[float, bool]:
        """Energy of a run and whether it reached the target, which ends the recurrence."""
        lab, before_j = self._lab, self._lab.spent_j
        if batch not in self.limit:
            self.limit[batch] = lab.swept(batch)
        per_epoch = lab.job.cost[batch][self.limit[batch]][1]
        epochs = STOP * self._least_j // per_epoch if math.isfinite(self._least_j) else math.inf
        if epochs < 1:  # Zeus does not begin such a run
            return 100 * STOP * self._least_j, False
        _, reached = lab.run(batch, self.limit[batch], epochs)
        if reached:
            self._least_j = min(self._least_j, lab.spent_j - self._began_j)
            self._began_j = lab.spent_j
        return lab.spent_j - before_j, reached


def thompson(lab: Lab, priors: Priors, recurrences: int) -> Setting:
    """Pruning, then Gaussian Thompson sampling."""
    del priors
    rng, runs = np.random.default_rng(lab.seed), Stopped(lab)
    costs: dict[int, list[float]] = defaultdict(list)
    sizes, default, done = sorted(lab.job.epochs), lab.job.default, 0
    for _ in range(2):
        good: list[int] = []
        least = math.inf
        start = sizes.index(default)
        for line in (sizes[start::-1], sizes[start + 1 :]):
            for batch in line:
                if done == recurrences:
                    break
                cost, reached = runs.attempt(batch)
                costs[batch].append(cost)
                if not reached:
                    break
                done += 1
                good.append(batch)
                if cost < least:
                    least, default = cost, batch
        sizes = sorted(good) or sizes
    while done < recurrences:
        drawn = {b: rng.normal(np.mean(costs[b]), np.std(costs[b]) / math.sqrt(len(costs[b]))) for b in sizes}
        batch = min(drawn, key=lambda b: drawn[b])
        cost, reached = runs.attempt(batch)
        costs[batch].append(cost)
        done += reached
    batch = min((b for b in sizes if costs[b]), key=lambda b: np.mean(costs[b]))
    return batch, runs.limit[batch]


def grid(lab: Lab, priors: Priors, recurrences: int) -> Setting:
    """Every batch size in turn, then the cheapest."""
    del priors
    runs, costs, done = Stopped(lab), {}, 0
    order = [lab.job.default, *(b for b in sorted(lab.job.epochs) if b != lab.job.default)]
    for batch in order:
        if done < recurrences:
            cost, reached = runs.attempt(batch)
            costs[batch] = cost if reached else math.inf
            done += reached
    batch = min(costs, key=lambda b: costs[b])
    while done < recurrences:
        done += runs.attempt(batch)[1]
    return batch, runs.limit[batch]


def fixed(lab: Lab, setting: Setting, recurrences: int) -> Setting:
    """One setting for all runs."""
    done = 0
    while done < recurrences:
        done += lab.run(*setting)[1]
    return setting


def default(lab: Lab, priors: Priors, recurrences: int) -> Setting:
    """The untouched job."""
    del priors
    return fixed(lab, (lab.job.default, lab.job.limits[-1]), recurrences)


def limit_only(lab: Lab, priors: Priors, recurrences: int) -> Setting:
    """The default batch size, its limits swept once."""
    del priors
    return fixed(lab, (lab.job.default, lab.swept(lab.job.default)), recurrences)


METHODS: dict[str, Method] = {
    "negawatt": tuned,
    "thompson": thompson,
    "grid": grid,
    "default": default,
    "limit_only": limit_only,
}


def replay(job: Traced, priors: Priors, methods: dict[str, Method], recurrences: int, seeds: int) -> dict[str, dict]:
    """Means over seeds of what each method spends and ends with."""
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for seed in range(seeds):
        for name, method in methods.items():
            lab = Lab(job, seed)
            setting = method(lab, priors, recurrences)
            near = job.expected_j(*setting) <= 1.05 * job.oracle_j()
            found[name].append((lab.spent_j, near, lab.probes, lab.missed))
    columns = ("energy_j", "within_5_fraction", "probes", "missed")
    return {n: dict(zip(columns, map(float, np.mean(v, axis=0)), strict=True)) for n, v in found.items()}


def rows(jobs: list[Traced], *, seeds: int, quick: bool) -> list[dict]:
    """One row per job: energies, and what the methods end with."""
    priors = {job.key[1]: Priors.without(job.key[1], jobs) for job in jobs}
    methods = {name: METHODS[name] for name in ("negawatt", "thompson", "default")} if quick else METHODS
    table = []
    for job in jobs:
        found = replay(job, priors[job.key[1]], methods, RECURRENCES, seeds)
        ours_j = found["negawatt"]["energy_j"]
        row = {
            "gpu": job.gpu,
            "job": "/".join(job.key),
            "default_batch": job.default,
            "tiny": found["default"]["energy_j"] / RECURRENCES < TINY_J,
            "oracle_j": RECURRENCES * job.oracle_j(),
            "energy_vs_oracle_ratio": ours_j / RECURRENCES / job.oracle_j(),
        }
        for name, values in found.items():
            row |= {f"{name}_{column}": value for column, value in values.items()}
            if name != "negawatt":
                row[f"energy_vs_{name}_ratio"] = ours_j / values["energy_j"]
        if not quick:
            once = replay(job, priors[job.key[1]], {"negawatt": tuned, "default": default}, 1, seeds)
            row["one_off_energy_vs_default_ratio"] = once["negawatt"]["energy_j"] / once["default"]["energy_j"]
            row["one_off_oracle_vs_default_ratio"] = job.oracle_j() / job.expected_j(job.default, job.limits[-1])
            row["one_off_probes"] = once["negawatt"]["probes"]
        table.append({key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()})
    return table


def metrics_of(table: list[dict]) -> dict[str, float]:
    """Means over jobs, largest values, and ratios of the sums of energies."""
    found = {"jobs": len(table), "within_5_fraction": float(np.mean([r["negawatt_within_5_fraction"] for r in table]))}
    for peer in ("oracle", *METHODS):
        if peer != "negawatt" and f"energy_vs_{peer}_ratio" in table[0]:
            ratios = [row[f"energy_vs_{peer}_ratio"] for row in table]
            ours_j, theirs_j = (
                math.fsum(row[name] for row in table)
                for name in ("negawatt_energy_j", "oracle_j" if peer == "oracle" else f"{peer}_energy_j")
            )
            found[f"energy_vs_{peer}_ratio"] = float(np.mean(ratios))
            found[f"energy_vs_{peer}_max_ratio"] = max(ratios)
            found[f"energy_total_vs_{peer}_ratio"] = ours_j / theirs_j
            if peer != "oracle" and peer not in ("default", "limit_only"):
                found[f"{peer}_within_5_fraction"] = float(np.mean([r[f"{peer}_within_5_fraction"] for r in table]))
    if "one_off_probes" in table[0]:
        once = [row["one_off_energy_vs_default_ratio"] for row in table]
        oracle = [row["one_off_oracle_vs_default_ratio"] for row in table]
        found["one_off_energy_vs_default_ratio"] = float(np.mean(once))
        found["one_off_energy_vs_default_max_ratio"] = max(once)
        found["one_off_oracle_reached_fraction"] = (1 - float(np.mean(once))) / (1 - float(np.mean(oracle)))
        found["one_off_probes"] = float(np.mean([row["one_off_probes"] for row in table]))
    return {key: round(value, 4) for key, value in found.items()}


def report(data: Path, *, seeds: int, quick: bool) -> dict:
    """The JSON object of this benchmark. `quick` leaves grid, limit_only, one-off jobs and the other targets out."""
    table = [
        row | {"published": published}
        for published in ((True,) if quick else (True, False))
        for row in rows(load(data, published=published), seeds=seeds, quick=quick)
    ]
    metrics = {}
    for prefix, published, tiny in (("", True, False), ("tiny_", True, True), ("other_", False, False)):
        chosen = [row for row in table if row["published"] is published and row["tiny"] is tiny]
        if chosen:
            metrics |= {f"{prefix}{key}": value for key, value in metrics_of(chosen).items()}
    return {
        "benchmark": "batch_and_limit",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {"negawatt": negawatt.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "metrics": metrics,
        "table": table,
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the traces")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="only negawatt, Thompson and default on published targets")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"repeats of each replay ({SEEDS})")
    options = parser.parse_args()
    result = report(options.data, seeds=options.seeds, quick=options.quick)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    names = [key for key in result["table"][0] if key.startswith(("energy_vs_", "one_off_energy"))]
    print(" ".join([f"{'gpu':<6} {'job':<34}", *(n.removesuffix("_ratio").removeprefix("energy_") for n in names)]))
    for row in result["table"]:
        values = (f"{row[n]:>{max(5, len(n.removesuffix('_ratio').removeprefix('energy_')))}.3f}" for n in names)
        print(f"{row['gpu']:<6} {row['job']:<34}", *values)
    for key, value in result["metrics"].items():
        print(f"{key:<46} {value:g}")


if __name__ == "__main__":
    main()
