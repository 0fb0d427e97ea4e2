"""Energy of one GPU: from a counter that is brought up to date now and then, or from power alone.

A counter that moves every 100 ms is off by up to a tenth of a second of power at both edges of a window, 5 % of a
window of 2 s. So power is read beside it: it tells what was drawn since the counter last moved, and whether the two
agree at all.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from negawatt.core.reading import Reading, Source
from negawatt.metering.counters import Count, Counter, Watch
from negawatt.metering.integral import Integral, Integrator, integrated_j, sampling_sd_j, stuck, unseen

PERIOD_S = 0.02
"""Power alone is read this often [s]: as often as the fastest sensors show a new one."""
CHECK_S = 600.0
"""A counter is looked at in between, and at least this often [s]."""
LOOK_FRACTION = 1 / 200
"""What the counter's last move and the load did between two looks is then at most 0.5 % of the window."""
BLIND_FRACTION = 0.3
"""Assumption: standard deviation of the power in a window so short that the sensor showed one number only."""
COARSE_FRACTION = 0.01
"""A reading that may miss more than this of its energy at the edges is flagged, ..."""
COARSE_FROM_S = 2.0
"""... from this length on [s]; of a shorter window nobody expects it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What is known of one GPU.

    Attributes:
        scope: of its readings.
        sensor: name of the sensor.
        power: power now [W]. Raises SensorError.
        energy: value of the energy counter [counts]. Raises SensorError. None: it has none.
        counter: the counter.
        clock: monotonic seconds.
        gain_sd_fraction: standard deviation of the unknown factor of counter and power.
        slow_s: the power that is shown is a mean over this long [s].
        slice_fraction: the part of it that the work can use; below 1 under MIG.
        flags: what makes all its readings doubtful.
    """

    scope: str
    sensor: str
    power: Callable[[], float]
    energy: Callable[[], int] | None = None
    counter: Counter
    clock: Callable[[], float]
    gain_sd_fraction: float
    slow_s: float = 0.0
    slice_fraction: float = 1.0
    flags: tuple[str, ...] = ()

    def reading(self, energy_j: float, source: Source, random_sd_j: float, flags: tuple[str, ...]) -> Reading:
        """A reading of it."""
        return Reading(
            scope=self.scope,
            energy_j=max(0.0, energy_j),
            source=source,
            sensor=self.sensor,
            random_sd_j=random_sd_j,
            gain_sd_fraction=self.gain_sd_fraction,
            offset_sd_w=0.0,
            flags=self.flags + flags,
        )


class PowerProbe:
    """Power, integrated. Its states carry a running total, so that any two of them can be subtracted."""

    running = True
    period_s = PERIOD_S
    look_fraction = LOOK_FRACTION / 2

    def __init__(self, gpu: Gpu) -> None:
        self.scope = gpu.scope
        self.slice_fraction = gpu.slice_fraction
        self._gpu = gpu
        self._watch = Integrator(slow_s=gpu.slow_s)

    def snapshot(self) -> Integral:
        """Power now. Raises SensorError if the GPU is gone."""
        power_w = self._gpu.power()
        return self._watch.see(self._gpu.clock(), power_w)

    def reading(self, start: Integral, end: Integral) -> Reading:
        """Energy between two samples: of one watch, of all samples between them; else of these two."""
        time_s = end.time_s - start.time_s
        if start.watch != end.watch:
            jump_w = abs(end.power_w - start.power_w)
            energy_j, sd_j = (start.power_w + end.power_w) / 2 * time_s, jump_w * time_s / math.sqrt(12)
            return self._gpu.reading(energy_j, Source.SAMPLED, sd_j, ("nobody sampled the power in between",))
        missed = unseen(start, end)
        inside_sd_j = sampling_sd_j(start, end)
        energy_j = integrated_j(start, end)
        blind_sd_j = BLIND_FRACTION * energy_j if end.changes - start.changes < 2 else 0.0
        sd_j = math.hypot(missed.sd_j, inside_sd_j, blind_sd_j if time_s < 2 * end.pace_s else 0.0)
        flags = (
            *coarse(math.hypot(missed.most_j, 2 * inside_sd_j), energy_j, time_s, max(end.pace_s, end.slow_s)),
            *stuck(start, end),
        )
        return self._gpu.reading(energy_j, Source.SAMPLED, sd_j, flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A counter with the power beside it.

    Attributes:
        counter: as read.
        power: as read.
        since_j: what was drawn since the counter last moved, by power [J].
        since_sd_j: standard deviation of that [J].
        settled: whether it is known when the counter last moved.
    """

    counter: Count
    power: Integral
    since_j: float
    since_sd_j: float
    settled: bool


class CounterProbe:
    """An energy counter, completed by power at the edges of a window and checked against it."""

    running = True
    period_s = CHECK_S
    look_fraction = LOOK_FRACTION

    def __init__(self, gpu: Gpu) -> None:
        if gpu.energy is None:
            raise ValueError(f"{gpu.scope} has no energy counter")
        self.scope = gpu.scope
        self.slice_fraction = gpu.slice_fraction
        self._gpu = gpu
        self._energy = gpu.energy
        self._counter_watch = Watch(gpu.counter)
        self._power_watch = Integrator(slow_s=gpu.slow_s)
        self._refresh_s = gpu.counter.refresh_s
        self._last: State | None = None
        self._lock = threading.Lock()

    def snapshot(self) -> State:
        """Counter and power now. Raises SensorError if the GPU is gone."""
        with self._lock:
            power_w, count = self._gpu.power(), self._energy()
            now_s = self._gpu.clock()
            power = self._power_watch.see(now_s, power_w)
            self._last = self._next(self._last, self._counter_watch.see(now_s, count), power)
            return self._last

    def _next(self, last: State | None, counter: Count, power: Integral) -> State:
        """The state after the last one: how long ago did the counter move, and what was drawn since?"""
        if last is not None and counter.count == last.counter.count:
            # It is late: from now on it may be this late at any time.
            self._refresh_s = max(self._refresh_s, counter.time_s - counter.moved_s)
            sd_j = abs(power.power_w - last.power.power_w) * (power.time_s - last.power.time_s) / math.sqrt(12)
            return State(
                counter=counter,
                power=power,
                since_j=last.since_j + power.sampled_j - last.power.sampled_j,
                since_sd_j=math.hypot(last.since_sd_j, sd_j),
                settled=last.settled,
            )
        looked_s = -math.inf if last is None else last.counter.time_s
        age_s = min(self._refresh_s, counter.time_s - looked_s)  # it moved at most this long ago
        edge_w = power.power_w
        if last is not None and age_s < self._refresh_s:
            edge_w = (power.power_w + last.power.power_w) / 2
        return State(
            counter=counter,
            power=power,
            since_j=edge_w * age_s / 2,
            since_sd_j=edge_w * age_s / math.sqrt(12),
            settled=age_s < self._refresh_s,
        )

    def settled(self, start: State, later: State) -> State:
        """A better start state, once the counter has moved: what was drawn from the start until then is known by power.

        That is better than what is known of the time before the start, when nobody looked.
        """
        if start.settled or not later.settled or start.power.watch != later.power.watch:
            return start
        if later.counter.count == start.counter.count:
            return start
        sampled_j = later.power.sampled_j - start.power.sampled_j
        counted_j = later.counter.counted_j - start.counter.counted_j
        return replace(
            start,
            since_j=counted_j + later.since_j - sampled_j,
            since_sd_j=math.hypot(later.since_sd_j, sampling_sd_j(start.power, later.power)),
            settled=True,
        )

    def reading(self, start: State, end: State) -> Reading:
        """Energy between two states. Raises SensorError if the counter was reset between them, or is dead."""
        time_s = end.counter.time_s - start.counter.time_s
        energy_j = self._gpu.counter.energy_j(start.counter, end.counter) + end.since_j - start.since_j
        edges_sd_j = math.hypot(start.since_sd_j, end.since_sd_j)
        if start.power.watch != end.power.watch:
            return self._gpu.reading(energy_j, Source.COUNTER, edges_sd_j, ())
        missed = unseen(start.power, end.power)
        sd_j = math.hypot(edges_sd_j, missed.sd_j)
        flags = (
            *self._gpu.counter.flags(start.counter, end.counter),
            *coarse(math.hypot(missed.most_j, 2 * edges_sd_j), energy_j, time_s, end.power.pace_s),
            *self._disagreement(start, end, energy_j, sd_j),
        )
        return self._gpu.reading(energy_j, Source.COUNTER, sd_j, flags)

    def _disagreement(self, start: State, end: State, energy_j: float, sd_j: float) -> tuple[str, ...]:
        """Whether counter and integrated power differ by more than three times what both state."""
        sampled_j = integrated_j(start.power, end.power)
        gain_sd_j = math.sqrt(2) * self._gpu.gain_sd_fraction * energy_j
        if abs(energy_j - sampled_j) <= 3 * math.hypot(gain_sd_j, sd_j, sampling_sd_j(start.power, end.power)):
            return ()
        return (f"its counter says {energy_j:.0f} J and its power, integrated, {sampled_j:.0f} J",)


def coarse(most_j: float, energy_j: float, time_s: float, pace_s: float) -> tuple[str, ...]:
    """The flag of a window that is too short for what its sensor shows of its load."""
    if time_s < COARSE_FROM_S or most_j <= COARSE_FRACTION * energy_j:
        return ()
    share = f"{most_j / energy_j:.1%}" if energy_j > 0 else "all"
    return (
        (
            f"{share} of the energy of this short window may have been missed at its edges, where the sensor shows a "
            f"load that changes up to {pace_s:.2g} s late"
        ),
    )
