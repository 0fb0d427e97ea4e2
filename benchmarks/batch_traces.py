"""Traces of training jobs, and a lab that replays them: what `batch_and_limit.py` runs on."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

NOISE = 0.01
WINDOW_S, WINDOW_EPOCHS = 20.0, 0.1
ZEUS = {  # dataset: (target, default batch size, epochs allowed), examples/research_reproducibility of Zeus
    "cifar100": (0.60, 1024, 100),
    "imagenet": (0.65, 256, 100),
    "squad": (84.0, 32, 6),
    "librispeech": (40.0, 256, 16),
    "movielens-1m": (0.41, 1024, 100),
    "sentiment140": (0.84, 128, 10),
}
Key = tuple[str, str, str]
"""Dataset, network, optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A job on a GPU: what was measured of it."""

    gpu: str
    key: Key
    default: int
    max_epochs: int
    epochs: dict[int, tuple[float | None, ...]]
    cost: dict[int, dict[float, tuple[float, float]]]  # batch size: limit [W]: (s, J) per epoch

    @property
    def limits(self) -> tuple[float, ...]:
        """Those measured at every batch size."""
        return tuple(sorted(set.intersection(*(set(c) for c in self.cost.values()))))

    @property
    def window_s(self) -> float:
        """Length of a window."""
        return min(WINDOW_S, WINDOW_EPOCHS * self.cost[self.default][self.limits[-1]][0])

    def window(self, batch: int, limit: float) -> float:
        """Epochs that a window is long."""
        return self.window_s / self.cost[batch][limit][0]

    def expected_j(self, batch: int, limit: float) -> float:
        """Mean energy to the target, failed attempts included; infinite if it is never reached."""
        runs = [self.max_epochs if e is None or e > self.max_epochs else e for e in self.epochs[batch]]
        reached = sum(e is not None and e <= self.max_epochs for e in self.epochs[batch])
        return math.fsum(runs) / reached * self.cost[batch][limit][1] if reached else math.inf

    def oracle_j(self) -> float:
        """Least mean energy to the target of any batch size and limit."""
        return min(self.expected_j(b, limit) for b in self.epochs for limit in self.limits)


def load(data: Path, *, published: bool) -> list[Traced]:
    """The jobs that have both traces, with every batch size of at least two training runs.

    Args:
        data: folder with the files.
        published: whether targets and defaults are those of `ZEUS`, where it has them, or found by the rule.
    """
    trained: dict[Key, dict[float, dict[int, list[float | None]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in rows_of(data / "summary_train.csv"):
        epoch = float(row["target_epoch"] or "nan")
        found = trained[key_of(row)][float(row["target_metric"])][int(row["batch_size"])]
        found.append(None if math.isnan(epoch) else epoch)
    jobs = []
    for path in sorted(data.glob("summary_power_*.csv")):
        powered: dict[Key, dict[int, dict[float, tuple[float, float]]]] = defaultdict(lambda: defaultdict(dict))
        for row in rows_of(path):
            time_s, power_w = float(row["time_per_epoch"]), float(row["average_power"])
            cell = powered[key_of(row)][int(row["batch_size"])]
            cell[float(row["power_limit"])] = time_s, time_s * power_w
        for key, cost in powered.items():
            if key in trained:
                known = ZEUS.get(key[0]) if published else None
                jobs.append(traced(path.stem.removeprefix("summary_power_"), key, trained[key], cost, known))
    if not jobs:
        raise SystemExit(f"{data}: no job with both a power and a train trace")
    return jobs


def traced(
    gpu: str,
    key: Key,
    targets: dict[float, dict[int, list[float | None]]],
    cost: dict[int, dict[float, tuple[float, float]]],
    known: tuple[float, int, int] | None,
) -> Traced:
    """A job with its target and default: those known, or by the rule."""
    usable = {t: {b: r for b, r in by.items() if b in cost and len(r) > 1} for t, by in targets.items()}
    if known and known[0] in usable:
        target, default, max_epochs = known
        default = max(b for b in usable[target] if b <= default)
    else:
        sizes = sorted(next(iter(usable.values())))
        default = sizes[len(sizes) // 2]
        reached = {t: by[default] for t, by in usable.items() if by.get(default) and None not in by[default]}
        target = max(reached, key=lambda t: math.fsum(reached[t]))
        max_epochs = 2 * math.ceil(max(reached[target]))
    epochs = {b: tuple(runs) for b, runs in sorted(usable[target].items())}
    return Traced(
        gpu=gpu, key=key, default=default, max_epochs=max_epochs, epochs=epochs, cost={b: cost[b] for b in epochs}
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def key_of(row: dict[str, str]) -> Key:
    """Of which job a row tells."""
    return row["dataset"], row["network"], row["optimizer"]


@dataclass(slots=True)
class Lab:
    """A GPU on which a job runs, with a meter. All energy is charged."""

    job: Traced
    seed: int
    spent_j: float = 0.0
    probes: int = 0
    missed: int = 0
    begun: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    ahead: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # epochs of the windows since a run

    def window(self, batch: int, limit: float) -> tuple[float, float]:
        """Time [s] and energy [J] of an epoch as a window shows them."""
        time_s, energy_j = self.job.cost[batch][limit]
        rng = np.random.default_rng([self.seed, batch, int(limit), self.probes])
        self.probes += 1
        self.spent_j += self.job.window(batch, limit) * energy_j
        self.ahead[batch] += self.job.window(batch, limit)
        return time_s * (1 + NOISE * rng.normal()), energy_j * (1 + NOISE * rng.normal())

    def swept(self, batch: int) -> float:
        """The best limit by a sweep."""
        seen = {limit: self.window(batch, limit)[1] for limit in self.job.limits}
        return min(seen, key=lambda limit: seen[limit])

    def run(self, batch: int, limit: float, max_epochs: float = math.inf) -> tuple[float, bool]:
        """Epochs of the next training run at a batch size, and whether it reached the target."""
        rng = np.random.default_rng([self.seed, batch, self.begun[batch]])
        self.begun[batch] += 1
        path = self.job.epochs[batch]
        needs = path[rng.integers(len(path))]
        allowed = min(max_epochs, self.job.max_epochs)
        reached = needs is not None and needs <= allowed
        epochs = needs if reached else allowed
        self.missed += not reached
        self.spent_j += max(0.0, epochs - self.ahead[batch]) * self.job.cost[batch][limit][1]
        self.ahead.clear()
        return epochs, reached
