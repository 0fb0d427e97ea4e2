"""Ready-made probes: of power alone, of an energy counter alone, and of a counter with power beside it.

A sensor says in a `Quantity` what it can read and what it knows of that, and picks the probe that fits.

Power beside a counter is worth reading: a counter that moves every 100 ms is off by up to a tenth of a second of power
at both edges of a window, 5 % of a window of 2 s. Power tells what was drawn since the counter last moved, and whether
the two agree at all.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from negawatt.core.reading import Reading, Source
from negawatt.metering.counters import Count, Counter, Watch
from negawatt.metering.looks import Looks
from negawatt.metering.sampled import PowerWatch, Sample, Shown, Stretch

PERIOD_S = 0.02
"""Power alone is read this often [s]: as often as the fastest sensors show a new one."""
CHECK_S = 600.0
"""A counter with power beside it is looked at in between, and at least this often [s]."""
POWER_LOOK_FRACTION = 1 / 400
COUNTER_LOOK_FRACTION = 1 / 100
"""A counter that freezes between two looks has lost at most 1 % of the window before it is noticed."""
CHECKED_LOOK_FRACTION = 1 / 200
"""What the counter's last move and the load did between two looks is then at most 0.5 % of the window."""
BLIND_FRACTION = 0.3
"""Assumption: standard deviation of the power where the sensor showed one number only, or nobody looked."""
COARSE_FRACTION = 0.01
"""A reading that may be off by more than this is flagged, ..."""
COARSE_FROM_S = 2.0
"""... from this length on [s]; of a shorter window nobody expects it."""
SHORT_S = 0.01
"""Below this the mean power of a window says nothing about the power at its edges [s]."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What can be read, and what is known of it.

    Attributes:
        scope: of its readings.
        sensor: name of the sensor.
        clock: monotonic seconds.
        power: power now [W]. Raises SensorError. None: it is not shown.
        shown: how power is shown.
        energy: value of the energy counter [counts]. Raises SensorError. None: there is none.
        counter: what is known of that.
        gain_sd_fraction: standard deviation of the unknown factor of counter and power.
        offset_sd_w: standard deviation of their unknown constant [W].
        typical_w: about what it draws at work, for the error of windows too short to tell [W].
        slice_fraction: the part of it that the work can use.
        flags: what makes all its readings doubtful.
    """

    scope: str
    sensor: str
    clock: Callable[[], float]
    power: Callable[[], float] | None = None
    shown: Shown = field(default_factory=Shown)
    energy: Callable[[], int] | None = None
    counter: Counter | None = None
    gain_sd_fraction: float
    offset_sd_w: float = 0.0
    typical_w: float = 100.0
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
            offset_sd_w=self.offset_sd_w,
            flags=self.flags + flags,
        )


class PowerProbe(Looks):
    """Power, integrated.

    Args:
        quantity: with power.
        period_s: power is read at least this often [s].
    """

    running = True
    look_fraction = POWER_LOOK_FRACTION

    def __init__(self, quantity: Quantity, period_s: float = PERIOD_S) -> None:
        self.scope = quantity.scope
        self.period_s = period_s
        self.slice_fraction = quantity.slice_fraction
        self._quantity = quantity
        self._power = _needed(quantity.power, f"{quantity.scope} shows no power")
        self._watch = PowerWatch(quantity.shown)

    def snapshot(self) -> Sample:
        """Power now. Raises SensorError if it cannot be read any more."""
        power_w = self._power()
        return self._watch.see(self._quantity.clock(), power_w)

    def reading(self, start: Sample, end: Sample) -> Reading:
        """Energy between two samples: of one watch, of all samples between them; else of these two."""
        between = Stretch(shown=self._quantity.shown, start=start, end=end)
        time_s = between.time_s
        if start.watch != end.watch:
            energy_j = (start.power_w + end.power_w) / 2 * time_s
            sd_j = math.hypot((end.power_w - start.power_w) * time_s / math.sqrt(12), BLIND_FRACTION * energy_j)
            return self._quantity.reading(energy_j, Source.SAMPLED, sd_j, ("nobody sampled the power in between",))
        energy_j, inside_sd_j = between.energy_j, between.inside_sd_j
        edges_sd_j, edges_most_j = between.edges_j()
        blind = time_s < 2 * end.pace_s and end.changes - start.changes < 2
        sd_j = math.hypot(edges_sd_j, inside_sd_j, BLIND_FRACTION * energy_j if blind else 0.0)
        coarse = coarse_flags(math.hypot(edges_most_j, 2 * inside_sd_j), energy_j, time_s, between.late_s)
        return self._quantity.reading(energy_j, Source.SAMPLED, sd_j, coarse + between.flags())


class CounterProbe(Looks):
    """An energy counter alone.

    Args:
        quantity: with an energy counter.
    """

    running = True
    look_fraction = COUNTER_LOOK_FRACTION

    def __init__(self, quantity: Quantity) -> None:
        self._counter = _needed(quantity.counter, f"{quantity.scope} has no energy counter")
        self._energy = _needed(quantity.energy, f"{quantity.scope} has no energy counter")
        self.scope = quantity.scope
        self.period_s = self._counter.period_s
        self.slice_fraction = quantity.slice_fraction
        self._quantity = quantity
        self._watch = Watch(self._counter)

    def snapshot(self) -> Count:
        """The counter now. Raises SensorError if it cannot be read any more."""
        return self._watch.see(self._quantity.clock(), self._energy())

    def settled(self, start: Count, later: Count) -> Count:
        """A start state that knows the power behind it, where that before it was not known."""
        if start.power_w > 0 or later.power_w <= 0 or start.watch != later.watch:
            return start
        return replace(start, power_w=later.power_w)

    def reading(self, start: Count, end: Count) -> Reading:
        """Energy between two states, corrected for wraps. Raises SensorError if the counter was reset or is dead."""
        energy_j = self._counter.energy_j(start, end)
        time_s = end.time_s - start.time_s
        mean_w = energy_j / time_s if time_s > SHORT_S else self._quantity.typical_w
        sd_j = self._counter.edge_sd_j(start.power_w or mean_w, end.power_w or mean_w)
        return self._quantity.reading(energy_j, Source.COUNTER, sd_j, self._counter.flags(start, end))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A counter with the power beside it.

    Attributes:
        counter: as read.
        power: as read.
        since_j: what was drawn since the counter last moved, by power [J].
        since_sd_j: standard deviation of that [J].
        settled: whether it is known when the counter last moved.
    """

    counter: Count
    power: Sample
    since_j: float
    since_sd_j: float
    settled: bool


class CheckedCounterProbe(Looks):
    """An energy counter, completed by power at the edges of a window and checked against it.

    Args:
        quantity: with power and an energy counter.
        period_s: both are read at least this often [s].
    """

    running = True
    look_fraction = CHECKED_LOOK_FRACTION

    def __init__(self, quantity: Quantity, period_s: float = CHECK_S) -> None:
        self._counter = _needed(quantity.counter, f"{quantity.scope} has no energy counter")
        self._energy = _needed(quantity.energy, f"{quantity.scope} has no energy counter")
        self._power = _needed(quantity.power, f"{quantity.scope} shows no power")
        self.scope = quantity.scope
        self.period_s = period_s
        self.slice_fraction = quantity.slice_fraction
        self._quantity = quantity
        self._counter_watch = Watch(self._counter)
        self._power_watch = PowerWatch(quantity.shown)
        self._refresh_s = self._counter.refresh_s
        self._last: Checked | None = None
        self._lock = threading.Lock()

    def snapshot(self) -> Checked:
        """Counter and power now. Raises SensorError if they cannot be read any more."""
        with self._lock:
            power_w, count = self._power(), self._energy()
            now_s = self._quantity.clock()
            power = self._power_watch.see(now_s, power_w)
            self._last = self._next(self._last, self._counter_watch.see(now_s, count), power)
            return self._last

    def _next(self, last: Checked | None, counter: Count, power: Sample) -> Checked:
        """The state after the last one: how long ago did the counter move, and what was drawn since?"""
        if last is not None and counter.count == last.counter.count:
            # It is late: from now on it may be this late at any time.
            self._refresh_s = max(self._refresh_s, counter.time_s - counter.moved_s)
            sd_j = abs(power.power_w - last.power.power_w) * (power.time_s - last.power.time_s) / math.sqrt(12)
            return Checked(
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
        return Checked(
            counter=counter,
            power=power,
            since_j=edge_w * age_s / 2,
            since_sd_j=edge_w * age_s / math.sqrt(12),
            settled=age_s < self._refresh_s,
        )

    def settled(self, start: Checked, later: Checked) -> Checked:
        """A better start state, once the counter has moved: what was drawn from the start until then is known by power.

        That is better than what is known of the time before the start, when nobody looked.
        """
        if start.settled or not later.settled or start.power.watch != later.power.watch:
            return start
        if later.counter.count == start.counter.count:
            return start
        sampled_j = later.power.sampled_j - start.power.sampled_j
        counted_j = later.counter.counted_j - start.counter.counted_j
        between = Stretch(shown=self._quantity.shown, start=start.power, end=later.power)
        return replace(
            start,
            since_j=counted_j + later.since_j - sampled_j,
            since_sd_j=math.hypot(later.since_sd_j, between.inside_sd_j),
            settled=True,
        )

    def reading(self, start: Checked, end: Checked) -> Reading:
        """Energy between two states. Raises SensorError if the counter was reset between them, or is dead."""
        energy_j = self._counter.energy_j(start.counter, end.counter) + end.since_j - start.since_j
        moved_sd_j = math.hypot(start.since_sd_j, end.since_sd_j)
        if start.power.watch != end.power.watch:
            return self._quantity.reading(energy_j, Source.COUNTER, moved_sd_j, ())
        between = Stretch(shown=self._quantity.shown, start=start.power, end=end.power)
        edges_sd_j, edges_most_j = between.edges_j(self._refresh_s + self._counter.delay_s)
        delay_sd_j = self._counter.delay_sd_j(start.power.power_w, end.power.power_w)
        sd_j = math.hypot(moved_sd_j, edges_sd_j, delay_sd_j)
        most_j = math.hypot(edges_most_j, 2 * moved_sd_j, 2 * delay_sd_j)
        late_s = min(between.late_s, self._refresh_s + self._counter.delay_s)
        flags = (
            *self._counter.flags(start.counter, end.counter),
            *coarse_flags(most_j, energy_j, between.time_s, late_s),
            *self._disagreement(between, energy_j, sd_j),
        )
        return self._quantity.reading(energy_j, Source.COUNTER, sd_j, flags)

    def _disagreement(self, between: Stretch, energy_j: float, sd_j: float) -> tuple[str, ...]:
        """Whether counter and integrated power differ by more than three times what both state."""
        gain_sd_j = math.sqrt(2) * self._quantity.gain_sd_fraction * energy_j
        if abs(energy_j - between.energy_j) <= 3 * math.hypot(gain_sd_j, sd_j, between.inside_sd_j):
            return ()
        return (f"its counter says {energy_j:.0f} J and its power, integrated, {between.energy_j:.0f} J",)


def coarse_flags(most_j: float, energy_j: float, time_s: float, late_s: float) -> tuple[str, ...]:
    """The flag of a window that is too short for what its sensor shows of its load."""
    if time_s < COARSE_FROM_S or most_j <= COARSE_FRACTION * energy_j:
        return ()
    share = f"{most_j / energy_j:.1%}" if energy_j > 0 else "all"
    return (
        (
            f"{share} of the energy of this window may have been missed at its edges, where the sensor shows a load "
            f"that changes up to {late_s:.2g} s late"
        ),
    )


def _needed(given: _T | None, missing: str) -> _T:
    if given is None:
        raise ValueError(missing)
    return given
