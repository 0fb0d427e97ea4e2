"""Arithmetic common to energy counters: wrap, reset, standstill, and the error at the edges of a window.

A `Counter` is what is known of one from the start; a `Watch` is what is learned by reading it again and again. Two
states of one watch can be subtracted however far apart they are, and know what happened in between.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from os import urandom

from negawatt.core.errors import SensorError

SLACK_S = 1.0
"""A counter that was late may catch up this much in a window of any length [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A counter's state.

    Attributes:
        time_s: monotonic time of the read [s].
        count: value of the counter, in its own unit.
        power_w: power at that moment: as the hardware reports it or, with a watch, since the last read; 0.0: not known
            [W].
        watch: names the watch; "": none, a single read.
        counted_j: joules that the watch has seen since it began [J].
        moved_s: when the counter was last seen to have moved [s].
        still_s: how long it stood still although it should have moved, since the watch began [s].
        resets: how often it was set back, since the watch began.
    """

    time_s: float
    count: int
    power_w: float = 0.0
    watch: str = ""
    counted_j: float = 0.0
    moved_s: float = 0.0
    still_s: float = 0.0
    resets: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """What is known of an energy counter.

    Attributes:
        name: what it is called in errors.
        unit_j: joules per count.
        refresh_s: the hardware brings it up to date this often [s].
        limit_w: no real load draws more for long; a faster counter was reset or is broken [W].
        modulus: the value at which it wraps to 0, in counts; None: it never does.
        late_s: longer without a move is later than expected [s].
        delay_s: what it counts may have been drawn up to this long ago, refresh aside [s].
    """

    name: str
    unit_j: float
    refresh_s: float
    limit_w: float
    modulus: int | None = None
    late_s: float = math.inf
    delay_s: float = 0.0

    @property
    def period_s(self) -> float | None:
        """Half of the shortest time in which it can wrap once, so that it cannot wrap twice unseen [s]."""
        return None if self.modulus is None else self.modulus * self.unit_j / self.limit_w / 2

    def step_j(self, start: Count, end: Count) -> float | None:
        """Joules between two reads, over at most one wrap; None if no load explains them."""
        counts = end.count - start.count
        if counts < 0 and self.modulus is not None:
            counts += self.modulus
        return self._possible_j(counts * self.unit_j, end.time_s - start.time_s)

    def _possible_j(self, energy_j: float, time_s: float) -> float | None:
        slack_s = min(SLACK_S, 50 * self.refresh_s)
        return energy_j if 0 <= energy_j <= self.limit_w * (time_s + slack_s) else None

    def energy_j(self, start: Count, end: Count) -> float:
        """Joules between two states: of one watch, over any time; of none or of two, over at most one wrap.

        Raises:
            SensorError: if the counter jumped (reset by a reboot, suspend or driver reload) or stands still.
        """
        time_s = end.time_s - start.time_s
        watched = start.watch == end.watch != ""
        if watched:
            energy_j = self._possible_j(end.counted_j - start.counted_j, time_s) if start.resets == end.resets else None
        else:
            energy_j = self.step_j(start, end)
        if energy_j is None:
            raise SensorError(
                f"{self.name} went from {start.count} to {end.count} in {time_s:.3f} s",
                f"that is no load below {self.limit_w:.0f} W: the counter was reset, and the joules between are lost",
                "run again; if it happens again, keep this sensor out with `--sensor NAME` for another one",
            )
        if end.count == start.count and energy_j == 0 and time_s > max(1.0, 20 * self.refresh_s):
            raise SensorError(
                f"{self.name} stood still at {end.count} for {time_s:.3f} s",
                "hardware that is on draws power, so a counter that stands still is broken or hidden by a hypervisor",
                "keep this sensor out with `--sensor NAME` for another one",
            )
        return energy_j

    def edge_sd_j(self, start_w: float, end_w: float) -> float:
        """Error of a window from the counter's age at both edges, root mean square [J].

        The age is uniform in [0, refresh], so the joules missing at an edge have the mean power * refresh / 2 and the
        standard deviation power * refresh / sqrt(12). The two edges are independent, and their means cancel where the
        power is the same at both.
        """
        spread_j = math.hypot(start_w, end_w) * self.refresh_s / math.sqrt(12)
        return math.hypot(spread_j, (end_w - start_w) * self.refresh_s / 2, self.delay_sd_j(start_w, end_w))

    def delay_sd_j(self, start_w: float, end_w: float) -> float:
        """Error of a window from its delay, uniform in [0, delay] and the same at both edges, root mean square [J]."""
        return abs(end_w - start_w) * self.delay_s / math.sqrt(3)

    def flags(self, start: Count, end: Count) -> tuple[str, ...]:
        """What a watch noticed between two of its states."""
        still_s = end.still_s - start.still_s
        if start.watch != end.watch or still_s <= 0:
            return ()
        return (f"{self.name} stood still for {still_s:.2f} s although it should move every {self.refresh_s:g} s",)


def watch_name() -> str:
    """A name that no other watch of this host has, in whatever process: states are written down and read by others."""
    return urandom(8).hex()


@dataclass(slots=True)
class Watch:
    """Follows one counter from read to read. Any thread may ask it to."""

    counter: Counter
    name: str = field(default_factory=watch_name)
    _last: Count | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, time_s: float, count: int) -> Count:
        """Take note of a read [counts] at a time [s]."""
        with self._lock:
            new = self._next(self._last, Count(time_s=time_s, count=count, watch=self.name, moved_s=time_s))
            if self._last is None or time_s >= self._last.time_s:
                self._last = new
            return new

    def _next(self, last: Count | None, read: Count) -> Count:
        if last is None or read.time_s < last.time_s:
            return read if last is None else last
        span_s = read.time_s - last.time_s
        step_j = self.counter.step_j(last, read)
        moved_s, still_s, power_w = read.time_s, last.still_s, last.power_w
        if step_j == 0:
            moved_s = last.moved_s
            late_s = read.time_s - moved_s - self.counter.late_s
            still_s += min(span_s, late_s) if late_s > 0 else 0.0
        if step_j is not None and span_s >= 5 * self.counter.refresh_s:
            power_w = step_j / span_s
        return Count(
            time_s=read.time_s,
            count=read.count,
            power_w=power_w,
            watch=self.name,
            counted_j=last.counted_j + (step_j or 0.0),
            moved_s=moved_s,
            still_s=still_s,
            resets=last.resets + (step_j is None),
        )
