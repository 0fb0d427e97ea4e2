"""Arithmetic common to energy counters: wrap, standstill, and the error at the edges of a window."""

from __future__ import annotations

import math
from dataclasses import dataclass

from negawatt.core.errors import SensorError


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """A counter's state.

    Attributes:
        time_s: monotonic time of the read [s].
        count: value of the counter, in its own unit.
        power_w: power that the hardware reported at that moment, 0.0 where it reports none [W].
    """

    time_s: float
    count: int
    power_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """What is known of an energy counter.

    Attributes:
        name: what it is called in errors.
        unit_j: joules per count.
        refresh_s: the hardware brings it up to date this often [s].
        limit_w: no real load draws more for long; a faster counter was reset or is broken [W].
        modulus: the value at which it wraps to 0, in counts; None: it never does.
    """

    name: str
    unit_j: float
    refresh_s: float
    limit_w: float
    modulus: int | None = None

    @property
    def period_s(self) -> float | None:
        """Half of the shortest time in which it can wrap once, so that it cannot wrap twice unseen [s]."""
        return None if self.modulus is None else self.modulus * self.unit_j / self.limit_w / 2

    def energy_j(self, start: Count, end: Count) -> float:
        """Joules between two reads, over at most one wrap.

        Raises:
            SensorError: if the counter jumped (reset by a reboot, suspend or driver reload) or stands still.
        """
        time_s, counts = end.time_s - start.time_s, end.count - start.count
        if counts < 0 and self.modulus is not None:
            counts += self.modulus
        energy_j = counts * self.unit_j
        # One second of slack: a counter that was late at the start may catch up in a window of any length.
        if counts < 0 or energy_j > self.limit_w * (time_s + 1.0):
            raise SensorError(
                f"{self.name} went from {start.count} to {end.count} in {time_s:.3f} s",
                f"that is no load below {self.limit_w:.0f} W: the counter was reset, and the joules between are lost",
                "run again; if it happens again, keep this sensor out with `--sensor NAME` for another one",
            )
        if counts == 0 and time_s > max(1.0, 20 * self.refresh_s):
            raise SensorError(
                f"{self.name} stood still at {end.count} for {time_s:.3f} s",
                "hardware that is on draws power, so a counter that stands still is broken or hidden by a hypervisor",
                "keep this sensor out with `--sensor NAME` for another one",
            )
        return energy_j

    def edge_sd_j(self, start_w: float, end_w: float) -> float:
        """Error of a window from the counter's age at both edges [J].

        The age is uniform in [0, refresh], so the joules missing at an edge have the standard deviation
        power * refresh / sqrt(12); the two edges are independent.
        """
        return math.hypot(start_w, end_w) * self.refresh_s / math.sqrt(12)
