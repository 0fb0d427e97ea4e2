"""A service whose truth is known: a queue before replicas that answer in batches, with a power for each state."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from negawatt.tuning.serving import Seen


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a level really does: its replicas, the size of its batches, its speed, and how long it takes to come up."""

    replicas: int
    max_batch: int = 4
    speed: float = 1.0
    up_s: float = 0.0


class Queue:
    """M/G/k with batches: a call of b requests takes (0.05 + 0.01 b) s over the speed, times lognormal chance.

    A replica that is awake draws 50 W, and 150 W times the speed squared more while it works; a sleeping one 2 W.
    """

    def __init__(self, truths: list[Truth], *, promise_s: float, seed: int) -> None:
        self.truths, self.promise_s = truths, promise_s
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.level = 0
        self.awake = max(truth.replicas for truth in truths)
        self.up_at_s = math.inf
        self.waiting: deque[float] = deque()
        self.working: list[tuple[float, list[float]]] = []  # when each call ends, and when its requests came
        self.times_s: list[float] = []
        self.energy_j = 0.0

    def set(self, level: int) -> None:
        if level == self.level:
            return
        truth, self.level = self.truths[level], level
        if truth.replicas <= self.awake:
            self.awake, self.up_at_s = truth.replicas, math.inf
        elif self.up_at_s == math.inf:
            self.up_at_s = self.now_s + truth.up_s

    def play(self, arrivals_s: Iterator[float], until_s: float) -> Iterator[Seen]:
        """Windows of one second, one after the other; the level may be set between them."""
        coming = next(arrivals_s, math.inf)
        while self.now_s < until_s:
            end_s, level = self.now_s + 1.0, self.level
            self.times_s, self.energy_j, arrived = [], 0.0, 0
            while True:
                ends_s = self.working[0][0] if self.working else math.inf
                at_s = min(coming, ends_s, self.up_at_s, end_s)
                self._pass(at_s)
                if at_s == end_s:
                    break
                if at_s == self.up_at_s:
                    self.awake, self.up_at_s = self.truths[self.level].replicas, math.inf
                elif at_s == coming:
                    self.waiting.append(coming)
                    arrived, coming = arrived + 1, next(arrivals_s, math.inf)
                else:
                    self.times_s += [at_s - came for came in heapq.heappop(self.working)[1]]
                self._start()
            yield self._seen(level, arrived)

    def _pass(self, at_s: float) -> None:
        awake = self.awake if self.up_at_s == math.inf else self.truths[self.level].replicas  # coming up draws as awake
        asleep = max(t.replicas for t in self.truths) - awake
        power_w = 50.0 * awake + 2.0 * asleep + 150.0 * self.truths[self.level].speed ** 2 * len(self.working)
        self.energy_j += power_w * (at_s - self.now_s)
        self.now_s = at_s

    def _start(self) -> None:
        truth = self.truths[self.level]
        while self.waiting and len(self.working) < self.awake:
            batch = [self.waiting.popleft() for _ in range(min(truth.max_batch, len(self.waiting)))]
            time_s = (0.05 + 0.01 * len(batch)) / truth.speed * self.rng.lognormvariate(0.0, 0.2)
            heapq.heappush(self.working, (self.now_s + time_s, batch))

    def _seen(self, level: int, arrived: int) -> Seen:
        times_s = sorted(self.times_s)
        return Seen(
            level=level,
            time_s=1.0,
            arrived=arrived,
            finished=len(times_s),
            in_flight=len(self.waiting) + sum(len(batch) for _, batch in self.working),
            late=sum(time_s > self.promise_s for time_s in times_s),
            p99_s=times_s[math.ceil(0.99 * len(times_s)) - 1] if times_s else None,
            energy_j=self.energy_j,
        )


def poisson(rate_at: Callable[[float], float], most_per_s: float, seed: int) -> Iterator[float]:
    """Arrival times of a rate that changes (by thinning, Lewis and Shedler 1979)."""
    rng, now_s = random.Random(seed), 0.0
    while True:
        now_s += rng.expovariate(most_per_s)
        if rng.random() * most_per_s < rate_at(now_s):
            yield now_s
