"""A fleet of replicas that serve language models, in steps of one second, and the least energy that it could have used.

Used by serving_replay.py, which says what is assumed.
"""

from __future__ import annotations

import csv
import gzip
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from math import erf, log, sqrt
from pathlib import Path

import numpy as np

SPREAD = 0.05
"""Standard deviation of the logarithm of the time per token between replicas that are given the same load."""
LATE = 0.01
CLOCKS = (1.0, 0.85, 0.7)


@dataclass(frozen=True)
class Assumed:
    """What no table tells; swept."""

    idle: float  # power of an idle replica that is awake, as a part of the power at full batch
    sleep: float  # power of a sleeping one, as a part of that
    wake_s: float
    power_exponent: float  # of the clock, for what is drawn beyond idle
    bound: float  # part of a token's time that goes with one over the clock
    prefill: float  # time of a prompt's token, as a part of the time of a generated one at full batch
    apart_s: float = 30.0  # copies of a request come within this time


@dataclass(frozen=True)
class Table:
    """Measured at some batch sizes: seconds per token and sequence, and watts."""

    name: str
    batches: np.ndarray
    token_s: np.ndarray
    power_w: np.ndarray

    @property
    def full(self) -> float:
        """The largest batch with at most 50 ms per token."""
        return float(self.batches[self.token_s <= 0.05][-1])


def tables(folder: Path, names: Sequence[tuple[str, str]]) -> list[Table]:
    """Of the H100 table: the series of a model and task with the most batch sizes."""
    rows: dict[tuple, list[dict]] = {}
    with (folder / "mlenergy_v3_h100.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["max_num_seqs"] and (row["model_id"], row["task"]) in names:
                key = (row["model_id"], row["task"], row["num_gpus"], row["parallelization.tensor_parallel"])
                rows.setdefault(key, []).append(row)
    found = []
    for name in names:
        series = max((v for k, v in rows.items() if k[:2] == name), key=len, default=None)
        if series is None:
            raise SystemExit(f"no rows of {name} in {folder}; give the folder of the table with --data")
        points = sorted(
            (float(r["avg_batch_size"]), float(r["output_throughput_tokens_per_sec"]), float(r["avg_power_watts"]))
            for r in series
        )
        batches, throughputs, powers = np.array(points).T
        token_s = np.maximum.accumulate(batches / throughputs)
        found.append(Table(f"{name[0].split('/')[-1]} {name[1]}", batches, token_s, np.maximum.accumulate(powers)))
    return found


def trace(path: Path) -> np.ndarray:
    """Rows of arrival time [s], prompt tokens, generated tokens."""
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        rows = [
            (
                datetime.fromisoformat(r["TIMESTAMP"][:26]).timestamp(),
                int(r["ContextTokens"]),
                int(r["GeneratedTokens"]),
            )
            for r in csv.DictReader(file)
        ]
    found = np.array(rows, dtype=float)
    found[:, 0] -= found[0, 0]
    return found


def _loglog(x: np.ndarray, at: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Between measured points straight in logarithms; below and above with the slope of the outermost two."""
    lx, la, lv = np.log(x), np.log(at), np.log(values)
    i = np.clip(np.searchsorted(la, lx) - 1, 0, len(la) - 2)
    slope = (lv[i + 1] - lv[i]) / np.maximum(la[i + 1] - la[i], 1e-9)
    return np.exp(lv[i] + slope * (lx - la[i]))


@dataclass(frozen=True)
class Fleet:
    """Replicas of one model under one set of assumptions."""

    table: Table
    assumed: Assumed
    replicas: int
    grid: np.ndarray = field(default_factory=lambda: np.geomspace(1e-3, 4096.0, 600))

    @cached_property
    def prefill_s(self) -> float:
        """Of a replica, for each token of a prompt at the highest clock."""
        return (
            self.assumed.prefill
            * float(np.interp(self.table.full, self.table.batches, self.table.token_s))
            / (self.table.full)
        )

    @cached_property
    def full_w(self) -> float:
        """Watts of a replica at full batch."""
        return float(np.interp(self.table.full, self.table.batches, self.table.power_w))

    @cached_property
    def idle_w(self) -> float:
        """Watts of one that is awake and has nothing to do."""
        return self.assumed.idle * self.full_w

    @cached_property
    def sleep_w(self) -> float:
        """Watts of one that sleeps."""
        return self.assumed.sleep * self.idle_w

    @cached_property
    def curves(self) -> dict[float, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each clock, over the grid of batches: seconds per token, tokens per second, watts."""
        made, b = {}, np.maximum(self.grid, 1.0)
        token_s = _loglog(b, self.table.batches, self.table.token_s)
        busy_w = np.maximum(self.idle_w, np.minimum(_loglog(b, self.table.batches, self.table.power_w), self.most_w))
        for clock in CLOCKS:
            slower_s = token_s * (self.assumed.bound / clock + 1.0 - self.assumed.bound)
            lower_w = self.idle_w + (busy_w - self.idle_w) * clock**self.assumed.power_exponent
            power_w = self.idle_w + np.minimum(self.grid, 1.0) * (lower_w - self.idle_w)
            made[clock] = slower_s, np.maximum.accumulate(self.grid / slower_s * (1.0 + 1e-9 * self.grid)), power_w
        return made

    @cached_property
    def most_w(self) -> float:
        """Watts at the largest batch measured."""
        return float(self.table.power_w[-1])

    def prefilling_w(self, clock: float) -> float:
        """While it reads prompts: as at the largest batch measured."""
        return self.idle_w + (self.most_w - self.idle_w) * clock**self.assumed.power_exponent

    def at_batch(self, batch: float, clock: float) -> tuple[float, float]:
        """Seconds per token and watts of a replica with so many sequences."""
        token_s, _, power_w = self.curves[clock]
        x = (log(max(batch, 1e-3)) - log(1e-3)) / (log(4096.0) - log(1e-3)) * (len(self.grid) - 1)
        i = min(int(x), len(self.grid) - 2)
        part = min(x - i, 1.0)
        return float(token_s[i] + part * (token_s[i + 1] - token_s[i])), float(
            power_w[i] + part * (power_w[i + 1] - power_w[i])
        )

    def steady(self, tokens_ps: np.ndarray, prefill: np.ndarray, clock: float) -> tuple[np.ndarray, np.ndarray]:
        """Seconds per token and watts of a replica that makes tokens at a rate and reads prompts for a part of time."""
        token_s, rates, power_w = self.curves[clock]
        share = np.minimum(prefill / clock, 0.95)
        wanted = tokens_ps / (1.0 - share)
        batch = np.interp(wanted, rates, self.grid, right=np.inf)
        over = ~np.isfinite(batch) | (prefill / clock > 0.95)
        batch = np.where(over, self.grid[-1], batch)
        times_s = np.where(over, np.inf, np.interp(batch, self.grid, token_s) / (1.0 - share))
        return times_s, share * self.prefilling_w(clock) + (1.0 - share) * np.interp(batch, self.grid, power_w)


def above(ratio: float) -> float:
    """Part of the tokens that take longer than a promise, when the mean one takes `ratio` of it."""
    return 0.5 * (1.0 + erf(log(max(ratio, 1e-9)) / SPREAD / sqrt(2.0)))


@dataclass
class Played:
    """What came of a replay: energy, and per second the time per token, the tokens, the wait, and the arrivals."""

    energy_j: float
    token_s: np.ndarray
    tokens: np.ndarray
    wait_s: np.ndarray
    arrived: np.ndarray
    awake: np.ndarray

    def token_p99_s(self) -> float:
        """99th percentile of the time per token, over tokens, spread between replicas included [s]."""
        low, high = 1e-4, 100.0
        for _ in range(40):
            middle = sqrt(low * high)
            late = sum(n * above(t / middle) for t, n in zip(self.token_s, self.tokens, strict=True) if n)
            low, high = (middle, high) if late > LATE * self.tokens.sum() else (low, middle)
        return high

    def wait_p99_s(self) -> float:
        """The same of the time to the first token, over requests [s]."""
        order = np.argsort(self.wait_s)
        return float(self.wait_s[order][np.searchsorted(np.cumsum(self.arrived[order]), 0.99 * self.arrived.sum())])


@dataclass(frozen=True)
class Load:
    """Requests by the second in which they come."""

    prompts: list[np.ndarray]
    outputs: list[np.ndarray]

    @classmethod
    def scaled(cls, rows: np.ndarray, copies: int, apart_s: float) -> Load:
        """Each request `copies` times, at random within a time after its own."""
        rng = np.random.default_rng(1)
        many = np.repeat(rows, copies, axis=0)
        seconds = (many[:, 0] + rng.uniform(0.0, apart_s, len(many))).astype(int)
        order = np.argsort(seconds, kind="stable")
        cuts = np.searchsorted(seconds[order], np.arange(1, seconds.max() + 1))
        many = many[order]
        return cls(np.split(many[:, 1], cuts), np.split(many[:, 2].astype(int), cuts))


State = tuple[int, float]
"""Replicas that are to be awake, and their clock."""


@dataclass(frozen=True)
class Second:
    """What a policy is told after each second."""

    arrived: int
    finished: int
    running: int
    token_s: float
    wait_s: float
    energy_j: float
    load: float  # the busy part of the most that the replicas awake could do


def play(fleet: Fleet, load: Load, policy: Callable[[Second | None], State], drain_s: float) -> Played:
    """Replay a load. The replicas awake share it evenly; one that is to sleep is drained first."""
    n, up = fleet.replicas, deque[tuple[int, int]]()  # awake; when how many more come up
    down: tuple[int, int] | None = None
    ends = np.zeros(4_000_000, dtype=np.int64)  # sequences that end when each has made so many tokens since the start
    virtual, running, backlog_s, energy_j = 0.0, 0, 0.0, 0.0
    log_: list[tuple[float, float, float, float, float]] = []
    wanted, clock = policy(None)
    n = wanted
    for now, (prompts, outputs) in enumerate(zip(load.prompts, load.outputs, strict=True)):
        while up and up[0][0] <= now:
            n += up.popleft()[1]
        coming = sum(count for _, count in up)
        if wanted > n + coming:
            up.append((now + int(fleet.assumed.wake_s), wanted - n - coming))
        while up and wanted < n + sum(count for _, count in up):
            at, count = up.pop()
            if (keep := count - (n + sum(c for _, c in up) + count - wanted)) > 0:
                up.append((at, keep))
        if wanted < n:
            down = (down[0] if down else now + round(drain_s), wanted)
            if down[0] <= now:
                n, down = wanted, None
        else:
            down = None
        coming = sum(count for _, count in up)
        f = clock if n >= wanted else 1.0  # what is awake makes up for what is coming up
        backlog_s += float(prompts.sum()) * fleet.prefill_s / f
        wait_s = backlog_s / n
        share = min(wait_s, 0.9)
        backlog_s -= share * n
        slow = 1.0 / (1.0 - share)
        mean = running + 0.5 * len(outputs)  # over the second; it comes half-way on average
        for _ in range(2):  # what ends, ends half-way as well; what is shorter than a second lasts what it lasts
            token_s, power_w = fleet.at_batch(mean / n, f)
            token_s *= slow
            first, came, last = (int(virtual + part / token_s) for part in (0.0, 0.5, 1.0))
            short = outputs[came + outputs <= last]
            ended = int(ends[first + 1 : last + 1].sum())
            mean = max(0.0, running + 0.5 * (len(outputs) - len(short) - ended) + token_s * short.sum())
        tokens = mean / token_s
        lasting = outputs[came + outputs > last]
        finished = ended + len(outputs) - len(lasting)
        np.add.at(ends, came + lasting, 1)
        running, virtual = running + len(outputs) - finished, virtual + 1.0 / token_s
        replica_w = share * fleet.prefilling_w(f) + (1.0 - share) * power_w
        joules = n * replica_w + coming * fleet.idle_w + (fleet.replicas - n - coming) * fleet.sleep_w
        energy_j += joules
        log_.append((token_s, tokens, wait_s + token_s, len(outputs), n))
        busy = share + (1.0 - share) * min(1.0, mean / n / fleet.table.full)
        wanted, clock = policy(Second(len(outputs), finished, running, token_s, wait_s + token_s, joules, busy))
    columns = np.array(log_).T
    return Played(energy_j, *columns)


SLOT = 2
"""Seconds of a step of the schedule in hindsight."""


def spread(load: Load, token_s: float) -> np.ndarray:
    """Tokens per second if each request took as long as the promise allows."""
    seconds = len(load.prompts)
    changes = np.zeros(seconds + 1)
    for now, outputs in enumerate(load.outputs):
        changes[now] += len(outputs)
        np.add.at(changes, np.minimum(now + (outputs * token_s).astype(int) + 1, seconds), -1.0)
    made = np.cumsum(changes)[:seconds] / token_s
    return made * min(1.0, sum(int(o.sum()) for o in load.outputs) / made.sum())


def least_j(fleet: Fleet, load: Load, made: np.ndarray, token_s: float) -> float:
    """The least energy of a schedule that knows what comes, with at most 1 % of the tokens slower than `token_s` [J].

    Tokens are made when `made` says. In each slot the replicas are in balance with them; a change costs only the energy
    of waking, and its time is foreseen. The late 1 %, or what is late in balance when all are awake, are priced
    (Lagrange), and the highest dual value is returned: no schedule of such slots takes less.
    """
    slots = len(load.prompts) // SLOT
    reading = np.array([p.sum() for p in load.prompts]) * fleet.prefill_s
    made, reading = (x[: slots * SLOT].reshape(slots, SLOT).mean(axis=1) for x in (made, reading))
    counts = np.arange(1, fleet.replicas + 1)
    late_of = np.vectorize(above)
    energies, lates = [], []
    for clock in CLOCKS:
        times_s, power_w = fleet.steady(made[:, None] / counts, reading[:, None] / counts, clock)
        energies.append(SLOT * (counts * power_w + (fleet.replicas - counts) * fleet.sleep_w))
        lates.append(late_of(np.minimum(times_s / token_s, 100.0)) * made[:, None] * SLOT)
    energy, late = np.array(energies), np.array(lates)
    waking_w = fleet.idle_w - fleet.sleep_w  # what it draws asleep is in `energy` already
    wake_j = np.maximum(0, counts[None, :] - counts[:, None]) * fleet.assumed.wake_s * waking_w
    allowed = max(LATE * made.sum() * SLOT, late[0, :, -1].sum())
    best, low, high = 0.0, 1e-3, 1e3
    for _ in range(16):
        price = sqrt(low * high)
        cost, used = _schedule(energy, late, price, wake_j)
        best = max(best, cost - price * allowed)
        low, high = (price, high) if used > allowed else (low, price)
    return best


def _schedule(energy: np.ndarray, late: np.ndarray, price: float, wake_j: np.ndarray) -> tuple[float, float]:
    """The cheapest path over slots at a price of a late token: its cost, and its late tokens."""
    priced = energy + price * late
    clock = priced.argmin(axis=0)
    step = np.take_along_axis(priced, clock[None], axis=0)[0]
    tokens = np.take_along_axis(late, clock[None], axis=0)[0]
    cost, used = step[0], tokens[0]
    for t in range(1, len(step)):
        came = cost[:, None] + wake_j
        source = came.argmin(axis=0)
        cost, used = came[source, np.arange(len(cost))] + step[t], used[source] + tokens[t]
    end = int(cost.argmin())
    return float(cost[end]), float(used[end])
