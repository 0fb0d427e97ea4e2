"""Load: power of a piece of simulated hardware over time, what simulated counters count. `random_load` draws one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from random import Random

Point = tuple[float, float]
"""Time [s] and power [W]."""


class Load:
    """Power that is linear between points; two points at one time are a step. It can be prolonged, not changed.

    Args:
        points: times ascending; the first power holds before them, the last behind them.

    Raises:
        ValueError: if there is no point, times descend or a power is negative.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.times_s: list[float] = []
        self.powers_w: list[float] = []
        self.joules_j: list[float] = []
        """Joules from the first point to each point."""
        if not points:
            raise ValueError("a load needs at least one point")
        self.extend(points)

    @property
    def points(self) -> list[Point]:
        """All of it."""
        return list(zip(self.times_s, self.powers_w, strict=True))

    def extend(self, points: Sequence[Point]) -> None:
        """Go on along more points. Raises ValueError as the constructor."""
        for time_s, power_w in points:
            step_s = time_s - self.times_s[-1] if self.times_s else 0.0
            if step_s < 0 or power_w < 0:
                raise ValueError(f"times ascend and powers are not negative, got {power_w} W at {time_s} s")
            before = self.joules_j[-1] + (self.powers_w[-1] + power_w) / 2 * step_s if self.times_s else 0.0
            self.times_s.append(time_s)
            self.powers_w.append(power_w)
            self.joules_j.append(before)

    def power_w(self, time_s: float) -> float:
        """Power at a time; at a step, the power behind it."""
        at = bisect_right(self.times_s, time_s) - 1
        if at < 0:
            return self.powers_w[0]
        if at == len(self.times_s) - 1:
            return self.powers_w[at]
        slope = (self.powers_w[at + 1] - self.powers_w[at]) / (self.times_s[at + 1] - self.times_s[at])
        return self.powers_w[at] + slope * (time_s - self.times_s[at])

    def joules_to(self, time_s: float) -> float:
        """Joules from the first point to a time; negative before it."""
        at = bisect_right(self.times_s, time_s) - 1
        if at < 0:
            return self.powers_w[0] * (time_s - self.times_s[0])
        return self.joules_j[at] + (self.powers_w[at] + self.power_w(time_s)) / 2 * (time_s - self.times_s[at])


KINDS = ("idle", "steps", "bursts", "sawtooth", "training")


def random_load(rng: Random, length_s: float, idle_w: float, full_w: float, kind: str = "") -> Load:
    """A load of one of KINDS: work as processors and GPUs see it.

    Args:
        rng: source of randomness.
        length_s: how long it is.
        idle_w: power without work.
        full_w: the most it draws.
        kind: one of KINDS; "": a random one.
    """
    kind = kind or rng.choice(KINDS)
    span_w = full_w - idle_w
    if kind == "idle":
        return Load([(0.0, idle_w * rng.uniform(1.0, 1.5))])
    points: list[Point] = []
    time_s = 0.0
    if kind == "training":  # steps of one length, with a pause for data or synchronisation in each
        # Every second one beats with a sensor that is brought up to date every 100 ms.
        period_s = 0.1 * rng.randint(1, 20) * (1 + rng.uniform(-1e-3, 1e-3)) if rng.random() < 0.5 else 0.0
        period_s = period_s or rng.uniform(0.1, 3.0)
        pause = rng.uniform(0.05, 0.3)
        high_w = idle_w + span_w * rng.uniform(0.5, 1.0)
        low_w = high_w * rng.uniform(0.5, 0.9)
        while time_s < length_s:
            pause_s = pause * period_s
            points += [(time_s, low_w), (time_s + pause_s, low_w), (time_s + pause_s, high_w)]
            time_s += period_s
            points.append((time_s, high_w))
        return Load(points)
    scale_s = rng.uniform(1.0, 20.0)
    while time_s < length_s:
        span_s, low_w, high_w = rng.expovariate(1 / scale_s), idle_w, idle_w + span_w * rng.random()
        if kind == "steps":
            low_w = high_w
        elif kind == "bursts":
            burst_s = rng.uniform(0.05, 1.0)
            points += [(time_s, high_w), (time_s + burst_s, high_w)]
            time_s, high_w = time_s + burst_s, idle_w
        points += [(time_s, low_w), (time_s + span_s, high_w)]
        time_s += span_s
    return Load(points)
