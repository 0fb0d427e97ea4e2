"""Serving settings: probes and gap of the search for the least joules per token under a latency promise.

Data: `mlenergy_v3_h100.csv` under --data, the rows with energy_per_token_joules (ML.ENERGY leaderboard v3: measured
configurations of language models on H100). For each model, task and GPU its rows are the settings: batch
(max_num_seqs), number of GPUs, and how they share the model. Rows alike in all of these are one setting measured more
than once; their means count. Before it probes, a search knows these settings and the promise; none is fitted to other
models, so there is nothing to leave out. The two powers of `ServingSearch` were chosen with this data in view; further
rows show it with others.

The promise is a time between two tokens of at most 50 or 100 ms, for its median, and for its 99th percentile in a
second table. A probe is one setting measured; latency and energy each carry normal noise (--noise, 1 % by default, the
same for all searches; further rows have none and 3 %), and each group is played 5 times. Every search keeps three
standard deviations away from the promise.

Gap: true joules per token of the pick over the least of those that truly keep the promise, less 1, and at least 0.
Violation: the pick truly breaks the promise, by however little. Missed: nothing was picked although something keeps the
promise, as may happen to settings inside the guard; the gap is of the picks alone. Groups where nothing keeps the
promise have no gap; picking nothing is right there. What was measured counts as truth, chance in it included.

Peers, in the same run: the full sweep; as many random probes as the search took; bisection of the batch, then fewer
GPUs; one step down after another from the largest batch; and without any probe the largest batch and the middle one.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import negawatt
from negawatt.tuning.serving_table import ServingChoice, ServingProbe, ServingSearch

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "serving"
FILE = "mlenergy_v3_h100.csv"
BOUNDS_MS = (50, 100)
METRICS = {"median": "median_itl_ms", "p99": "p99_itl_ms"}
REPEATS = 5
GUARD = 3.0
Pick = ServingChoice | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The settings of one model, task and GPU, with what each gave."""

    name: tuple[str, str, str]
    latencies_s: dict[str, dict[ServingChoice, float]]
    energies_j: dict[ServingChoice, float]


def read(folder: Path) -> list[Group]:
    """The groups of the table."""
    path = folder / FILE
    if not path.exists():
        raise SystemExit(f"no {FILE} in {folder}: its columns are told at the top of {Path(__file__).name}")
    found: dict[tuple[str, str, str], dict[ServingChoice, list[dict[str, str]]]] = defaultdict(dict)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["energy_per_token_joules"] and row["median_itl_ms"]:
                sharing = {key: row[f"parallelization.{key}_parallel"] for key in ("tensor", "expert", "data")}
                choice = ServingChoice(
                    batch=round(float(row["max_num_seqs"])),
                    devices=int(row["num_gpus"]),
                    parallel=" ".join(f"{key} {n}" for key, n in sharing.items() if n not in ("", "1")),
                )
                name = row["model_id"], row["task"], row["gpu_model"]
                found[name].setdefault(choice, []).append(row)

    def means(rows: dict[ServingChoice, list[dict[str, str]]], column: str, unit: float) -> dict[ServingChoice, float]:
        return {c: math.fsum(float(row[column]) * unit for row in some) / len(some) for c, some in rows.items()}

    return [
        Group(
            name=name,
            latencies_s={key: means(rows, column, 1e-3) for key, column in METRICS.items()},
            energies_j=means(rows, "energy_per_token_joules", 1.0),
        )
        for name, rows in sorted(found.items())
    ]


@dataclass(slots=True, kw_only=True)
class Replay:
    """One group under one promise with one draw of noise: answers probes, and counts them."""

    group: Group
    metric: str
    bound_s: float
    noise: float
    draw: int
    probed: dict[ServingChoice, ServingProbe]

    @property
    def guard(self) -> float:
        """How far below the promise a measured latency has to be, as a fraction."""
        return GUARD * self.noise

    @property
    def allowed(self) -> dict[ServingChoice, float]:
        """Joules per token of what truly keeps the promise."""
        latencies_s = self.group.latencies_s[self.metric]
        return {c: e for c, e in self.group.energies_j.items() if latencies_s[c] <= self.bound_s}

    def probe(self, choice: ServingChoice) -> ServingProbe:
        """Measure a setting, with its noise in this draw."""
        rng = random.Random(f"{self.group.name} {self.metric} {choice} {self.draw}")
        latency_s = self.group.latencies_s[self.metric][choice] * math.exp(self.noise * rng.gauss(0, 1))
        energy_j = self.group.energies_j[choice] * math.exp(self.noise * rng.gauss(0, 1))
        self.probed[choice] = ServingProbe(choice=choice, latency_s=latency_s, energy_j=energy_j)
        return self.probed[choice]

    def best(self) -> Pick:
        """Of what was probed."""
        limit_s = self.bound_s * (1 - self.guard)
        kept = [probe for probe in self.probed.values() if probe.latency_s <= limit_s]
        return min(kept, key=lambda probe: probe.energy_j).choice if kept else None


def ours(replay: Replay, **powers: float) -> Pick:
    """ServingSearch as users run it."""
    search = ServingSearch(
        replay.group.energies_j, latency_s=replay.bound_s, guard_fraction=replay.guard, **powers
    )  # fmt: skip
    while (choice := search.ask()) is not None:
        search.tell(replay.probe(choice))
    return search.best


def down(replay: Replay) -> list[ServingChoice]:
    """The settings, largest batch first, of equals the one with fewer GPUs."""
    return sorted(replay.group.energies_j, key=lambda c: (-c.batch, c.devices, c.parallel))


def sweep(replay: Replay) -> Pick:
    """Everything."""
    for choice in down(replay):
        replay.probe(choice)
    return replay.best()


def at_random(replay: Replay) -> Pick:
    """As many settings as the search took in the same replay, drawn blindly."""
    as_many = Replay(**{name: getattr(replay, name) for name in Replay.__slots__} | {"probed": {}})
    ours(as_many)
    order = random.Random(f"{replay.group.name} {replay.draw}").sample(down(replay), len(as_many.probed))
    for choice in order:
        replay.probe(choice)
    return replay.best()


def bisection(replay: Replay) -> Pick:
    """The largest batch that keeps the promise, as if less were ever faster."""
    order, limit_s = down(replay), replay.bound_s * (1 - replay.guard)
    broken, kept = -1, len(order)
    while kept - broken > 1:
        middle = (broken + kept) // 2
        if replay.probe(order[middle]).latency_s <= limit_s:
            kept = middle
        else:
            broken = middle
    return replay.best()


def step_down(replay: Replay) -> Pick:
    """The largest batch first, then one down after another."""
    for choice in down(replay):
        if replay.probe(choice).latency_s <= replay.bound_s * (1 - replay.guard):
            break
    return replay.best()


SEARCHES: dict[str, Callable[[Replay], Pick]] = {
    "search": ours,
    "sweep": sweep,
    "random": at_random,
    "bisection": bisection,
    "step_down": step_down,
    "largest": lambda replay: down(replay)[0],
    "middle": lambda replay: down(replay)[len(down(replay)) // 2],
}
OTHERS: dict[str, Callable[[Replay], Pick]] = {
    "search, slope 0.3": lambda replay: ours(replay, slope=0.3),
    "search, slope 0.8": lambda replay: ours(replay, slope=0.8),
    "search, spread 0.25": lambda replay: ours(replay, spread=0.25),
    "search, spread 0": lambda replay: ours(replay, spread=0.0),
    "search, spread 1": lambda replay: ours(replay, spread=1.0),
}


def played(
    groups: Sequence[Group], search: Callable[[Replay], Pick], metric: str, noise: float, bounds_ms: Sequence[int]
) -> dict[str, float | int]:
    """All groups under some bounds, as the figures of a row."""
    probes, gaps, missed, broken, right = [], [], 0, 0, 0
    plays = [(group, ms, draw) for group in groups for ms in bounds_ms for draw in range(REPEATS if noise else 1)]
    for group, ms, draw in plays:
        replay = Replay(group=group, metric=metric, bound_s=1e-3 * ms, noise=noise, draw=draw, probed={})
        pick, allowed = search(replay), replay.allowed
        probes.append(len(replay.probed))
        if pick is None:
            missed += bool(allowed)
            right += not allowed
            continue
        broken += pick not in allowed
        if allowed:
            gaps.append(max(0.0, group.energies_j[pick] / min(allowed.values()) - 1))
    gaps.sort()
    figures = {
        "probes_mean": math.fsum(probes) / len(probes),
        "probes_max": max(probes),
        "gap_mean_fraction": math.fsum(gaps) / len(gaps),
        "gap_p95_fraction": gaps[math.ceil(0.95 * len(gaps)) - 1],
        "violations_fraction": broken / len(plays),
        "missed_fraction": missed / len(plays),
        "none_allowed_fraction": right / len(plays),
    }
    return {name: round(value, 5) for name, value in figures.items()}


def rows(groups: Sequence[Group], *, noise: float, quick: bool) -> list[dict[str, str | float | int]]:
    """All searches, metrics and bounds; quick: without other noise and other powers."""
    table: list[dict[str, str | float | int]] = []

    def add(name: str, search: Callable[[Replay], Pick], metric: str, sd: float, bounds_ms: Sequence[int]) -> None:
        said = {"search": name, "latency": metric, "bound_ms": " and ".join(map(str, bounds_ms)), "noise_fraction": sd}
        table.append(said | played(groups, search, metric, sd, bounds_ms))

    for metric in METRICS:
        for name, search in SEARCHES.items():
            for bounds_ms in (BOUNDS_MS, *((ms,) for ms in BOUNDS_MS)):
                add(name, search, metric, noise, bounds_ms)
        if quick:
            continue
        for sd in {0.0, 0.01, 0.03} - {noise}:
            for name in ("search", "sweep"):
                add(name, SEARCHES[name], metric, sd, BOUNDS_MS)
        for name, search in OTHERS.items():
            add(name, search, metric, noise, BOUNDS_MS)
    return table


def report(data: Path, *, noise: float, quick: bool) -> dict[str, object]:
    """The result, as all benchmarks give it."""
    groups = read(data)
    table = rows(groups, noise=noise, quick=quick)
    metrics = {}
    for row in table:
        if row["search"] in SEARCHES and row["noise_fraction"] == noise:
            start = "" if row["search"] == "search" else f"{row['search']}_"
            start += "p99_" if row["latency"] == "p99" else ""
            bound = "" if " " in str(row["bound_ms"]) else f"_{row['bound_ms']}"
            for name in ("probes_mean", "gap_mean_fraction", "violations_fraction", "missed_fraction"):
                stem, dot, unit = name.partition("_fraction")
                metrics[f"{start}{stem}{bound}{dot}{unit}"] = row[name]
    return {
        "benchmark": "serving_table",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {"negawatt": negawatt.__version__, "python": platform.python_version()},
        "data": {
            "groups": len(groups),
            "models": len({group.name[0] for group in groups}),
            "settings": sum(len(group.energies_j) for group in groups),
            "repeats": REPEATS,
        },
        "metrics": metrics,
        "table": table,
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder that holds {FILE} (%(default)s)")
    parser.add_argument("--noise", type=float, default=0.01, help="sd of what a probe measures, as a fraction")
    parser.add_argument("--quick", action="store_true", help="leave out other noise and other powers")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    if not 0 <= options.noise < 0.3:
        parser.error(f"--noise {options.noise}: give a fraction from 0 to below 0.3, as 0.01 for 1 %")
    result = report(options.data, noise=options.noise, quick=options.quick)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(result["data"])
    print(
        f"{'latency':8}{'ms':11}{'noise':>6} {'search':21}{'probes':>7}{'gap':>8}{'p95':>7}{'broken':>8}{'missed':>8}"
    )
    for row in result["table"]:
        line = f"{row['latency']:8}{row['bound_ms']:11}{row['noise_fraction']:6.0%} {row['search']:21}"
        line += f"{row['probes_mean']:7.2f}{row['gap_mean_fraction']:8.2%}{row['gap_p95_fraction']:7.1%}"
        print(f"{line}{row['violations_fraction']:8.1%}{row['missed_fraction']:8.1%}")


if __name__ == "__main__":
    main()
