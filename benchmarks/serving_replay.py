"""Replay: how much of the possible saving over "maximum throughput always on" a controller reaches, at equal p99.

A fleet of 12 replicas serves the Azure conversation and code traces of one hour (Patel et al., Splitwise, ISCA'24;
CC BY 4.0). Time per token and power over the batch size are measured on H100s (ML.ENERGY leaderboard v3); idle power,
sleeping power, wake time, what clocks do and what prompts cost are not in any table, and are swept. Each request comes
as many times as make the busiest ten seconds fill
the 12 replicas at the largest batch with at most 50 ms per token.

- baseline: all replicas awake at the highest clock, load spread evenly.
- promise: the baseline's own 99th percentile of the time per token (over tokens) and to the first one (over requests).
- ours: `tuning.serving.ServingController`, told the capacity and power of its levels by the table for the mean request
  of the first ten minutes; it sees counts of requests, late ones, and joules, second by second.
- possible: `serving_fleet.least_j`, the least energy of schedules that know the future; optimistic (no transients).
- autoscaler: replicas follow the load to 70 %, every 15 s, down only by the most of the last 300 s (the rule and
  defaults of Kubernetes' HorizontalPodAutoscaler).
- static: the fewest replicas that keep the promise when they are always awake; chosen in hindsight.

docs/serving-replay.md says what is assumed, and what this does not show.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from serving_fleet import (
    CLOCKS,
    Assumed,
    Fleet,
    Load,
    Played,
    Second,
    State,
    above,
    least_j,
    play,
    spread,
    tables,
    trace,
)

import negawatt
from negawatt.tuning.serving import Level, Seen, ServingController

REPLICAS = 12
TOLERANCE = 0.05
"""A p99 is equal to the baseline's if it is at most so much above."""
LEAST_POSSIBLE = 0.02
"""Where less than this can be saved, a part of it says nothing."""
MODELS = (
    ("Qwen/Qwen3-8B", "lm-arena-chat"),
    ("meta-llama/Llama-3.1-70B-Instruct", "lm-arena-chat"),
    ("openai/gpt-oss-20b", "gpqa"),
)
IDLES, SLEEPS, WAKES_S = (0.1, 0.4), (0.0, 1.0), (1.0, 120.0)
CLOCK_RESPONSES = ((1.0, 1.0), (3.0, 0.0))
"""Exponent of power, part of a token's time that slows down: clocks that save nothing, and clocks that save most."""
PREFILLS = (0.05, 0.2)
MIDDLE = Assumed(idle=0.2, sleep=0.2, wake_s=10.0, power_exponent=2.0, bound=0.5, prefill=0.1)


def swept() -> list[Assumed]:
    """The corners of the range, with the middle cost of prompts, the costs of prompts at the middle, and wake times."""
    corners = [
        Assumed(idle, sleep, wake_s, exponent, bound, MIDDLE.prefill)
        for idle, sleep, wake_s, (exponent, bound) in itertools.product(IDLES, SLEEPS, WAKES_S, CLOCK_RESPONSES)
    ]
    changes = [{"prefill": p} for p in PREFILLS] + [{"wake_s": w} for w in (1.0, 30.0, 120.0)] + [{"apart_s": 5.0}]
    return [MIDDLE, *(Assumed(**(asdict(MIDDLE) | change)) for change in changes), *corners]


class Ours:
    """The controller as a policy of the fleet: a level is a number of replicas and a clock."""

    def __init__(self, fleet: Fleet, request: tuple[float, float], promise: tuple[float, float]) -> None:
        self._token_s, self._wait_s = promise
        prompt, output = request
        levels = []
        for n, clock in itertools.product(range(1, fleet.replicas + 1), CLOCKS):
            rate = n * capacity_per_s(fleet, request, clock, self._token_s)
            if rate <= 0:
                continue
            rates = np.array([0.4, 0.95]) * rate
            _, watts = fleet.steady(rates / n * output, rates / n * prompt * fleet.prefill_s, clock)
            watts = n * watts + (fleet.replicas - n) * fleet.sleep_w
            slope_j = float((watts[1] - watts[0]) / (rates[1] - rates[0]))
            levels.append(
                Level(
                    name=f"{n} replicas at {clock:.0%}",
                    capacity_per_s=rate,
                    idle_w=float(watts[0] - slope_j * rates[0]),
                    energy_per_request_j=slope_j,
                    awake=n,
                    up_s=fleet.assumed.wake_s,
                )
            )
        states = {level.name: (level.awake, float(level.name.split(" at ")[1][:-1]) / 100) for level in levels}
        levels.sort(key=lambda level: (-(level.capacity_per_s or 0.0), -level.awake))
        self._states = [states[level.name] for level in levels]
        self._request_s = self._wait_s + output * self._token_s
        self.controller = ServingController(levels, p99_s=self._request_s)
        self.late = 0.0

    def __call__(self, second: Second | None) -> State:
        """The state that is to be in force from now on."""
        if second is not None:
            fraction = above(second.token_s / self._token_s)
            slow = second.arrived if second.wait_s > self._wait_s else 0
            self.late += min(second.finished, max(fraction * second.finished, slow))
            late, self.late = int(self.late), self.late % 1.0
            self.controller.tell(
                Seen(
                    level=self.controller.level,
                    time_s=1.0,
                    arrived=second.arrived,
                    finished=second.finished,
                    in_flight=second.running,
                    late=late,
                    p99_s=self._request_s * second.token_s / self._token_s if second.finished else None,
                    energy_j=second.energy_j,
                )
            )
        return self._states[self.controller.level]


def capacity_per_s(fleet: Fleet, request: tuple[float, float], clock: float, token_s: float) -> float:
    """Requests of one size that a replica takes with at most 1 % of its tokens slower than promised [1/s]."""
    prompt, output = request
    low, high = 0.0, 1e4
    for _ in range(40):
        rate = 0.5 * (low + high)
        times_s, _ = fleet.steady(np.array([rate * output]), np.array([rate * prompt * fleet.prefill_s]), clock)
        fits = above(float(times_s[0]) / token_s) <= 0.01 if math.isfinite(times_s[0]) else False
        low, high = (rate, high) if fits else (low, rate)
    return low


def always(n: int) -> Callable[[Second | None], State]:
    """So many replicas at the highest clock."""
    return lambda _: (n, 1.0)


class Autoscaler:
    """Horizontal scaling by utilisation."""

    def __init__(self, replicas: int) -> None:
        self._most = self._n = replicas
        self._wished: deque[int] = deque(maxlen=300 // 15)
        self._loads: list[float] = []

    def __call__(self, second: Second | None) -> State:
        """The state that is to be in force from now on."""
        if second is not None:
            self._loads.append(second.load)
        if len(self._loads) == 15:
            ratio = float(np.mean(self._loads)) / 0.7
            wish = self._n if abs(ratio - 1.0) <= 0.1 else math.ceil(self._n * ratio)
            self._wished.append(min(self._most, max(1, wish)))
            self._n, self._loads = max(self._wished), []
        return self._n, 1.0


def equal(played: Played, promise: tuple[float, float]) -> bool:
    """Whether both p99 are at most the tolerance above the promise."""
    got = played.token_p99_s(), played.wait_p99_s()
    return all(p99 <= (1.0 + TOLERANCE) * most for p99, most in zip(got, promise, strict=True))


def replayed(fleet: Fleet, rows: np.ndarray) -> dict:
    """One row of the result."""
    token_s, _ = fleet.at_batch(fleet.table.full, 1.0)
    work_s = rows[:, 2] * token_s / fleet.table.full + rows[:, 1] * fleet.prefill_s
    slots = np.bincount(rows[:, 0].astype(int), work_s)
    apart = max(1, round(fleet.assumed.apart_s))
    busiest = np.convolve(np.convolve(slots, np.full(apart, 1.0 / apart)), np.full(10, 0.1)).max()
    copies = max(1, round(REPLICAS / busiest))
    load = Load.scaled(rows, copies, fleet.assumed.apart_s)
    request = tuple(rows[rows[:, 0] < 600.0, 1:].mean(axis=0))
    base = play(fleet, load, always(REPLICAS), 0.0)
    promise = base.token_p99_s(), base.wait_p99_s()
    drain_s = rows[:, 2].mean() * promise[0]
    ours = play(fleet, load, Ours(fleet, request, promise), drain_s)
    token_s = max(promise[0], ours.token_p99_s())  # what ours is forgiven, hindsight is as well
    demands = base.tokens, ours.tokens, spread(load, token_s)
    least = min(ours.energy_j, *(least_j(fleet, load, made, token_s) for made in demands))
    possible = 1.0 - least / base.energy_j
    row: dict[str, object] = {
        "copies": copies,
        "token_ms": 1e3 * promise[0],
        "wait_ms": 1e3 * promise[1],
        "possible_fraction": possible,
    }
    autoscaled = play(fleet, load, Autoscaler(REPLICAS), drain_s)
    static = base
    for n in range(REPLICAS - 1, 0, -1):
        fewer = play(fleet, load, always(n), 0.0)
        if not equal(fewer, promise):
            break
        static = fewer
    for name, played in (("", ours), ("autoscaler_", autoscaled), ("static_", static)):
        row |= {
            f"{name}reached_fraction": (1.0 - played.energy_j / base.energy_j) / possible if possible else 0.0,
            f"{name}equal_p99": equal(played, promise),
            f"{name}token_p99_ratio": played.token_p99_s() / promise[0],
            f"{name}wait_p99_ratio": played.wait_p99_s() / promise[1],
            f"{name}awake_mean": float(played.awake.mean()),
        }
    return row


def one(task: tuple[Path, int, str, Assumed]) -> dict:
    """One model, trace and set of assumptions."""
    folder, model, name, assumed = task
    table = tables(folder, MODELS)[model]
    rows = trace(folder / f"AzureLLMInferenceTrace_{name}.csv.gz")
    return {"model": table.name, "trace": name} | asdict(assumed) | replayed(Fleet(table, assumed, REPLICAS), rows)


def metrics(table: list[dict]) -> dict[str, float]:
    """Over the whole range: a row without equal p99 reaches nothing."""
    rows = [row for row in table if row["possible_fraction"] >= LEAST_POSSIBLE]
    equals = [row["equal_p99"] for row in rows]
    strict = [row["reached_fraction"] if row["equal_p99"] else 0.0 for row in rows]
    found = {
        "possible_saving_fraction": min(strict),
        "possible_saving_mean_fraction": float(np.mean(strict)),
        "equal_p99_fraction": float(np.mean(equals)),
        "reached_whatever_p99_min_fraction": min(row["reached_fraction"] for row in rows),
        "reached_whatever_p99_mean_fraction": float(np.mean([row["reached_fraction"] for row in rows])),
    }
    for name, wake_s in itertools.product(("conv", "code"), sorted({row["wake_s"] for row in rows})):
        some = [s for s, row in zip(strict, rows, strict=True) if (row["trace"], row["wake_s"]) == (name, wake_s)]
        if some:
            found[f"{name}_wake_{wake_s:g}_s_mean_fraction"] = float(np.mean(some))
            found[f"{name}_wake_{wake_s:g}_s_min_fraction"] = min(some)
    for peer in ("autoscaler", "static"):
        reached = [r[f"{peer}_reached_fraction"] if r[f"{peer}_equal_p99"] else 0.0 for r in rows]
        found[f"{peer}_possible_saving_mean_fraction"] = float(np.mean(reached))
        found[f"{peer}_equal_p99_fraction"] = float(np.mean([r[f"{peer}_equal_p99"] for r in rows]))
    return found


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with serving/, or that folder")
    parser.add_argument("--quick", action="store_true", help="the middle and the wake times, one model")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="it is always JSON")
    args = parser.parse_args()
    folder = args.data / "serving" if (args.data / "serving").is_dir() else args.data
    begun = time.monotonic()
    range_, models = (swept()[:7], range(1)) if args.quick else (swept(), range(len(MODELS)))
    tasks = [(folder, m, name, assumed) for m in models for name in ("conv", "code") for assumed in range_]
    if args.processes > 1:
        with ProcessPoolExecutor(args.processes) as pool:
            table = list(pool.map(one, tasks))
    else:
        table = [one(task) for task in tasks]
    found = metrics(table)
    if args.quick:  # the names of the whole range belong to the whole range
        found = {f"quick_{name}": value for name, value in found.items()}
    print(
        json.dumps(
            {
                "benchmark": "serving_replay",
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "host": platform.processor() or platform.machine(),
                "load": os.getloadavg()[0],
                "time_s": time.monotonic() - begun,
                "versions": {"negawatt": negawatt.__version__, "numpy": np.__version__},
                "metrics": found,
                "table": table,
            }
        )
    )


if __name__ == "__main__":
    main()
