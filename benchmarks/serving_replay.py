"""Replay: how much of the possible saving over "maximum throughput always on" a controller reaches, at equal p99.

A fleet of 12 replicas serves the Azure conversation and code traces of one hour (Patel et al., Splitwise, ISCA'24;
CC BY 4.0). Time per token and power over the batch size are measured on H100s (ML.ENERGY leaderboard v3); idle power,
sleeping power, wake time, what clocks do and what prompts cost are not in any table, and are swept. Each request comes
as many times as make the busiest ten seconds fill the 12 replicas at the largest batch with at most 50 ms per token.

- baseline: all replicas awake at the highest clock, load spread evenly.
- promise: the baseline's own 99th percentile of the time per token (over tokens) and to the first token (over requests).
- ours: `tuning.serving.ServingController`, told the capacity and power of its levels by the table for the mean request
  of the first ten minutes; it sees counts of requests, late ones, and joules, second by second.
- possible: `serving_fleet.least_j`, a lower bound of the energy of any schedule that knows the future.
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
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from serving_fleet import CLOCKS, Assumed, Fleet, Load, Played, Second, State, above, least_j, play, tables, trace

import negawatt
from negawatt.tuning.serving import Level, Seen, ServingController

REPLICAS = 12
TOLERANCE = 0.02
"""A p99 is equal to the baseline's if it is at most so much above."""
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
    """Requests of one size that a replica takes without more than 1 % of its tokens being slower than promised [1/s]."""
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


def replayed(fleet: Fleet, rows: np.ndarray, peers: bool) -> dict:
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
    possible = 1.0 - least_j(fleet, load, promise[0]) / base.energy_j
    saved = 1.0 - ours.energy_j / base.energy_j
    row = {
        "copies": copies,
        "token_ms": 1e3 * promise[0],
        "wait_ms": 1e3 * promise[1],
        "possible_fraction": possible,
        "saved_fraction": saved,
        "reached_fraction": saved / possible,
        "token_p99_ratio": ours.token_p99_s() / promise[0],
        "wait_p99_ratio": ours.wait_p99_s() / promise[1],
        "awake_mean": float(ours.awake.mean()),
    }
    if peers:
        scaled = play(fleet, load, Autoscaler(REPLICAS), drain_s)
        row |= {
            "autoscaler_reached_fraction": (1.0 - scaled.energy_j / base.energy_j) / possible,
            "autoscaler_token_p99_ratio": scaled.token_p99_s() / promise[0],
            "autoscaler_wait_p99_ratio": scaled.wait_p99_s() / promise[1],
        }
        for n in range(REPLICAS, 0, -1):
            static = play(fleet, load, always(n), 0.0)
            if not equal(static, promise):
                break
            row |= {"static_reached_fraction": (1.0 - static.energy_j / base.energy_j) / possible, "static_replicas": n}
    return row
