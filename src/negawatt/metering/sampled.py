"""Sampled power: its integral, the error of that, and what may have gone unseen between samples.

A sensor shows a number for a while, then another one. How often it does, and over how long each is a mean, is known
beforehand only roughly (`Shown`); a `PowerWatch` that looks again and again learns the rest. Two samples of one watch
can be subtracted however far apart they are, and know what happened in between.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field

from negawatt.metering.counters import watch_name

PACE_S = 0.1
"""A sensor shows a new number at least this often, where nothing else is known [s]."""
SLOW_PACE_S = 0.05
"""A sensor that does so less often is slow [s]."""
GAP_S = 5.0
"""Longer without a sample, nobody knows what happened [s]. A meter looks every second."""
STUCK_FACTOR, STUCK_CHANGES = 6.0, 10
"""A number that is shown six times as long as usual is suspicious; longer, where it is known from less than some ten
changes how long is usual."""
UNSEEN_FRACTION = 0.3
"""Assumption: a load that was steady changes by so much of its power while the sensor does not show it yet."""
CAUGHT_FRACTION = 1 / 20
"""A mean that ended somewhere in a jump shows a part of it that is uniform in [0, 1]: in 19 of 20 cases more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """How a sensor shows power, as far as it is known beforehand.

    Attributes:
        pace_s: it shows a new number at least this often; that it is faster is learnt [s].
        mean_s: the number is a mean over up to this long, or late by as much; 0.0: a mean over its pace at most [s].
        rest_s: hardware at rest may show exactly the same number for so long [s].
    """

    pace_s: float = PACE_S
    mean_s: float = 0.0
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Power as shown at a moment, and what the watch has made of all samples so far.

    Attributes:
        time_s: monotonic time of the read [s].
        power_w: power that was shown [W].
        watch: names the watch.
        sampled_j: power integrated by trapezoids since the watch began [J].
        square_w2s: its square, too, for the spread of the load [W^2 s].
        trapezoid_j2: variance of that: of a step between two samples, at an unknown moment [J^2].
        flicker_j2: variance of that: of a sensor that flickers around the true power [J^2]; may be negative.
        jumps_w2: sum of the squares of the changes from sample to sample [W^2].
        unread_s: sum of the gaps in which nobody read it for longer than GAP_S [s].
        pace_s: the shortest time between two changes that was seen: how old a shown power is at most [s].
        changes: how often it changed.
        changed_s: when it last changed [s].
        look_s: and how long before that nobody had looked [s].
        jump_w: by how much [W].
        change_j: the same, times how long the number before it counted [J].
        low_w: the least that was shown before [W].
        high_w: the most that was shown before [W].
    """

    time_s: float
    power_w: float
    watch: str
    pace_s: float
    changed_s: float
    low_w: float
    high_w: float
    sampled_j: float = 0.0
    square_w2s: float = 0.0  # W^2 s
    trapezoid_j2: float = 0.0  # J^2
    flicker_j2: float = 0.0  # J^2
    jumps_w2: float = 0.0  # W^2
    unread_s: float = 0.0
    changes: int = 0
    look_s: float = 0.0
    jump_w: float = 0.0
    change_j: float = 0.0


@dataclass(slots=True)
class PowerWatch:
    """Follows what one sensor shows, from sample to sample. Any thread may ask it to."""

    shown: Shown
    name: str = field(default_factory=watch_name)
    _last: Sample | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, time_s: float, power_w: float) -> Sample:
        """Take note of the power that is shown [W] at a time [s]."""
        with self._lock:
            last = self._last
            if last is not None and time_s <= last.time_s:
                return last
            self._last = self._first(time_s, power_w) if last is None else self._next(last, time_s, power_w)
            return self._last

    def _first(self, time_s: float, power_w: float) -> Sample:
        return Sample(
            time_s=time_s,
            power_w=power_w,
            watch=self.name,
            pace_s=self.shown.pace_s,
            changed_s=time_s,
            low_w=power_w,
            high_w=power_w,
        )

    def _next(self, last: Sample, time_s: float, power_w: float) -> Sample:
        span_s, jump_w = time_s - last.time_s, power_w - last.power_w
        shown_s = time_s - last.changed_s
        changed = jump_w != 0
        # A number counts for as long as sensor or reader take for the next; that it was equal for longer is no flicker.
        change_j = jump_w * min(shown_s, max(last.pace_s, span_s)) if changed else last.change_j
        return Sample(
            time_s=time_s,
            power_w=power_w,
            watch=self.name,
            sampled_j=last.sampled_j + (last.power_w + power_w) / 2 * span_s,
            trapezoid_j2=last.trapezoid_j2 + (jump_w * span_s) ** 2 / 12,
            square_w2s=last.square_w2s + (last.power_w**2 + power_w**2) / 2 * span_s,
            # White noise of variance v makes neighbouring changes correlate by -v; a load that rises, by more than 0.
            flicker_j2=last.flicker_j2 - (change_j * last.change_j if changed else 0.0),
            jumps_w2=last.jumps_w2 + jump_w**2,
            unread_s=last.unread_s + (span_s if span_s > GAP_S else 0.0),
            # Between two changes; the earlier one came at most one look before it was seen.
            pace_s=min(last.pace_s, shown_s + last.look_s) if changed and last.changes else last.pace_s,
            changes=last.changes + changed,
            changed_s=time_s if changed else last.changed_s,
            look_s=span_s if changed else last.look_s,
            jump_w=jump_w if changed else last.jump_w,
            change_j=change_j,
            low_w=min(last.low_w, last.power_w) if changed else last.low_w,
            high_w=max(last.high_w, last.power_w) if changed else last.high_w,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What lies between two samples of one watch.

    Attributes:
        shown: how the sensor shows power.
        start: the first sample.
        end: the second.
    """

    shown: Shown
    start: Sample
    end: Sample

    @property
    def time_s(self) -> float:
        """How long it is [s]."""
        return self.end.time_s - self.start.time_s

    @property
    def late_s(self) -> float:
        """How late the sensor may show a change [s]."""
        return max(self.end.pace_s, self.shown.mean_s)

    @property
    def energy_j(self) -> float:
        """Joules.

        A number that is shown is a mean over some time before it was brought up to date, so it lags. What was drawn in
        that lag is in the integral at the start and is missing at the end.
        """
        return self.end.sampled_j - self.start.sampled_j + (self.end.power_w - self.start.power_w) * self._lag()[0]

    @property
    def inside_sd_j(self) -> float:
        """Error of that from inside the stretch: steps, flicker, and a lag that is not known well [J]."""
        start, end = self.start, self.end
        variance_j2 = max(0.0, end.trapezoid_j2 - start.trapezoid_j2) + max(0.0, end.flicker_j2 - start.flicker_j2)
        return math.hypot(math.sqrt(variance_j2), (end.power_w - start.power_w) * self._lag()[1])

    def _lag(self) -> tuple[float, float]:
        """By how much what is shown lags, and the standard deviation of that [s].

        By half the pace if a number is instantaneous, by all of it if it is a mean over the pace. If it is a mean over
        longer, by half the pace and something uniform between nothing and that mean.
        """
        pace_s, mean_s = self.end.pace_s, self.shown.mean_s
        if mean_s:
            return (pace_s + mean_s) / 2, math.hypot(pace_s / 4, mean_s / math.sqrt(12))
        return 0.75 * pace_s, pace_s / 4

    def edges_j(self, age_s: float = math.inf) -> tuple[float, float]:
        """What the samples may have missed at the two edges: its standard deviation, and more than it can hardly be.

        A jump by W that happened a time t before the edge and is not shown yet hides W * t. With jumps of the same
        rate as inside the stretch, at t uniform in [0, age], the variance is rate * W^2 * age^3 / 3 at each edge. The
        age is the sensor's pace; at the end more, if it has not shown another number for longer. A sensor that shows a
        long mean smears the jumps: there the spread of what it shows stands in for them. Nor is the rate of jumps a
        comfort where a single one can hide much, in a slow sensor, or where one has just begun.

        Args:
            age_s: something else tells what was drawn before the last so many seconds [s].
        """
        start, end, time_s = self.start, self.end, self.time_s
        if time_s <= 0:
            return 0.0, 0.0
        mean_w = (end.sampled_j - start.sampled_j) / time_s
        pace_s, mean_s = min(end.pace_s, age_s), min(self.shown.mean_s, age_s)
        late_s = max(pace_s, mean_s)
        end_age_s = min(max(end.pace_s, end.time_s - end.changed_s), STUCK_FACTOR * end.pace_s, age_s)
        sd_j = math.sqrt((end.jumps_w2 - start.jumps_w2) / time_s * (pace_s**3 + end_age_s**3) / 3)
        most_j = max(4 * sd_j, self._begun_w() * late_s, UNSEEN_FRACTION * mean_w * late_s)
        spread_w = math.sqrt(max(0.0, (end.square_w2s - start.square_w2s) / time_s - mean_w**2))
        if mean_s > 0:
            spread_w = max(spread_w, abs(end.power_w - start.power_w) / 2)
            sd_j = max(sd_j, spread_w * mean_s / 2)
        if mean_s > 0 or pace_s > SLOW_PACE_S:
            most_j = max(most_j, 2 * spread_w * late_s)
        return sd_j, most_j

    def _begun_w(self) -> float:
        """What may be still to come of a jump that the last number shows the beginning of [W].

        Between numbers that were shown before, it comes to rest there; beyond them, nobody knows.
        """
        end = self.end
        if end.time_s - end.changed_s > end.pace_s:
            return 0.0
        left_w = end.high_w - end.power_w if end.jump_w > 0 else end.power_w - end.low_w
        if left_w < 0:
            left_w = math.inf if end.jump_w > 0 else end.power_w
        return min(left_w, abs(end.jump_w) * (1 / CAUGHT_FRACTION - 1))

    def flags(self) -> tuple[str, ...]:
        """What makes the stated error too small: a sensor that went on showing one number, or that nobody read."""
        start, end = self.start, self.end
        flags: list[str] = []
        unread_s, shown_s, changes = (
            end.unread_s - start.unread_s,
            end.time_s - end.changed_s,
            end.changes - start.changes,
        )
        if unread_s > 0:
            flags.append(f"power was not read for {unread_s:.0f} s, so what happened meanwhile is not in the energy")
        usual_s = (end.changed_s - start.time_s) / changes if changes else self.shown.rest_s or math.inf
        limit_s = STUCK_FACTOR * (1 + STUCK_CHANGES / changes) * usual_s if changes else usual_s
        if end.power_w > 0 and shown_s > max(limit_s, self.shown.rest_s):
            flags.append(f"the sensor has shown exactly {end.power_w:g} W for {shown_s:.2f} s: it may be stuck")
        return tuple(flags)
