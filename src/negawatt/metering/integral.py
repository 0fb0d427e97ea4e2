"""Arithmetic common to sensors that show power: its integral, and what may have gone unseen between samples."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from itertools import count as numbers
from os import getpid

SLOW_FIRST_S = 0.1
"""Until a sensor's own pace is known, its power is taken to be this old [s]."""

SLOW_PACE_S = 0.05
"""A sensor that shows a new power less often is slow [s]."""
LAG_FRACTION = 0.75
"""A shown power lags by half its pace if it is instantaneous, by all of it if it is a mean over its pace."""
STUCK_FACTOR, STUCK_CHANGES = 6.0, 10
"""A number that is shown six times as long as usual is suspicious; longer, where it is known from less than some ten
changes how long is usual."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integral:
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
        pace_s: the shortest time between two changes that was seen: how old a shown power is at most [s].
        slow_s: the sensor shows a mean over this long, 0.0 if it is not known to [s].
        changes: how often it changed.
        changed_s: when it last changed [s].
        look_s: and how long before that nobody had looked [s].
        change_j: by how much, times how long the number before it was shown [J].
    """

    time_s: float
    power_w: float
    watch: str
    sampled_j: float = 0.0
    square_w2s: float = 0.0  # W^2 s
    trapezoid_j2: float = 0.0  # J^2
    flicker_j2: float = 0.0  # J^2
    jumps_w2: float = 0.0  # W^2
    pace_s: float = SLOW_FIRST_S
    slow_s: float = 0.0
    changes: int = 0
    changed_s: float = 0.0
    look_s: float = 0.0
    change_j: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """What the samples of a window may have missed at its two edges.

    Attributes:
        sd_j: standard deviation for a load that goes on jumping as often as it did [J].
        most_j: more than it can hardly be [J].
    """

    sd_j: float
    most_j: float


_WATCHES = numbers()


@dataclass(slots=True)
class Integrator:
    """Integrates what one sensor shows, from sample to sample. Any thread may ask it to.

    Args:
        slow_s: the sensor averages over this long, whatever its pace [s].
    """

    slow_s: float = 0.0
    name: str = field(default_factory=lambda: f"{getpid()}-{next(_WATCHES)}")
    _last: Integral | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def see(self, time_s: float, power_w: float) -> Integral:
        """Take note of the power that is shown [W] at a time [s]."""
        with self._lock:
            last = self._last
            if last is None:
                new = Integral(time_s=time_s, power_w=power_w, watch=self.name, changed_s=time_s, slow_s=self.slow_s)
            elif time_s <= last.time_s:
                return last
            else:
                new = self._next(last, time_s, power_w)
            self._last = new
            return new

    def _next(self, last: Integral, time_s: float, power_w: float) -> Integral:
        span_s, jump_w = time_s - last.time_s, power_w - last.power_w
        shown_s = time_s - last.changed_s
        changed = jump_w != 0
        change_j = jump_w * shown_s if changed else last.change_j
        return Integral(
            time_s=time_s,
            power_w=power_w,
            watch=self.name,
            sampled_j=last.sampled_j + (last.power_w + power_w) / 2 * span_s,
            trapezoid_j2=last.trapezoid_j2 + (jump_w * span_s) ** 2 / 12,
            square_w2s=last.square_w2s + (last.power_w**2 + power_w**2) / 2 * span_s,
            # White noise of variance v makes neighbouring changes correlate by -v; a load that rises, by more than 0.
            flicker_j2=last.flicker_j2 - (change_j * last.change_j if changed else 0.0),
            jumps_w2=last.jumps_w2 + jump_w**2,
            # Between two changes; the earlier one came at most one look before it was seen.
            pace_s=min(last.pace_s, shown_s + last.look_s) if changed and last.changes else last.pace_s,
            slow_s=self.slow_s,
            changes=last.changes + changed,
            changed_s=time_s if changed else last.changed_s,
            look_s=span_s if changed else last.look_s,
            change_j=change_j,
        )


def integrated_j(start: Integral, end: Integral) -> float:
    """Joules between two samples of one watch.

    A number that is shown is the mean over some time before it was brought up to date: it lags by half to all of its
    pace. What was drawn in that lag is in the integral at the start and is missing at the end.
    """
    return end.sampled_j - start.sampled_j + (end.power_w - start.power_w) * _lag_s(end)


def sampling_sd_j(start: Integral, end: Integral) -> float:
    """Error of that from inside the window: steps, flicker, and a lag that is not known well [J]."""
    variance_j2 = max(0.0, end.trapezoid_j2 - start.trapezoid_j2) + max(0.0, end.flicker_j2 - start.flicker_j2)
    return math.hypot(math.sqrt(variance_j2), (end.power_w - start.power_w) * _lag_s(end) / 3)


def _lag_s(end: Integral) -> float:
    return end.slow_s / 2 or LAG_FRACTION * end.pace_s


def stuck(start: Integral, end: Integral) -> tuple[str, ...]:
    """The flag of a sensor that went on showing one number for far longer than it did before."""
    shown_s, changes = end.time_s - end.changed_s, end.changes - start.changes
    if changes == 0:
        return ()
    usual_s = (end.changed_s - start.time_s) / changes
    if shown_s <= STUCK_FACTOR * (1 + STUCK_CHANGES / changes) * usual_s:
        return ()
    return (f"the sensor has shown exactly {end.power_w:g} W for {shown_s:.2f} s: it may be stuck",)


def unseen(start: Integral, end: Integral) -> Unseen:
    """What went unseen between two samples of one watch, at the edges of the window that they bound.

    A jump by W that happened a time t before the edge and is not shown yet hides W * t. With jumps of the same rate as
    inside the window, at t uniform in [0, age], the variance is rate * W^2 * age^3 / 3 at each edge. The age is the
    sensor's pace; at the end more, if it has not shown another number for longer. A sensor that shows a long mean
    smears the jumps: there the spread of what it shows stands in for them. Nor is the rate of jumps a comfort where a
    single one can hide much, in a slow sensor.
    """
    time_s, age_s = end.time_s - start.time_s, end.pace_s
    end_age_s = min(max(age_s, end.time_s - end.changed_s), STUCK_FACTOR * age_s)
    squares = end.jumps_w2 - start.jumps_w2
    if squares <= 0 or time_s <= 0:
        return Unseen(sd_j=0.0, most_j=0.0)
    sd_j = math.sqrt(squares / time_s * (age_s**3 + end_age_s**3) / 3)
    most_j = 4 * sd_j
    mean_w = (end.sampled_j - start.sampled_j) / time_s
    spread_w = math.sqrt(max(0.0, (end.square_w2s - start.square_w2s) / time_s - mean_w**2))
    if end.slow_s > 0:
        spread_w = max(spread_w, abs(end.power_w - start.power_w) / 2)
        sd_j = max(sd_j, spread_w * end.slow_s / 2)
    if end.slow_s > 0 or age_s > SLOW_PACE_S:
        most_j = max(most_j, 2 * spread_w * max(end.slow_s, age_s))
    return Unseen(sd_j=sd_j, most_j=most_j)
