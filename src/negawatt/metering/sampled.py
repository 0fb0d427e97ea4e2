"""Sampled power: its integral between samples, the error of that, and a probe for any power that can be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from negawatt.core.reading import Reading, Source

UNSEEN_FRACTION = 0.1
"""Assumption: between two reads the power differs from both by a tenth of it, standard deviation, and nobody sees it.
Work that repeats itself in step with the reads does that, as the steps of a training run may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Power at a moment.

    Attributes:
        time_s: monotonic time of the read [s].
        power_w: what was read [W].
        steady_s: for how long the same number has been read again and again [s].
    """

    time_s: float
    power_w: float
    steady_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What is known of a power that is read now and then.

    Attributes:
        period_s: time between two reads [s]; best not below `delay_s`.
        delay_s: the longest time from a change of power to a read that shows it, from the age of the number and from
            averaging in the hardware together [s].
        gain_sd_fraction: standard deviation of its unknown factor.
        offset_sd_w: standard deviation of its unknown constant, rounding included [W].
        steady_limit_s: a number above 0 W that stays the same for longer is not a live one [s].
    """

    period_s: float
    delay_s: float
    gain_sd_fraction: float
    offset_sd_w: float = 0.0
    steady_limit_s: float = math.inf

    def energy_j(self, start: Sample, end: Sample) -> float:
        """Joules between two samples by the trapezoid rule."""
        return (start.power_w + end.power_w) / 2 * (end.time_s - start.time_s)

    def random_sd_j(self, start: Sample, end: Sample) -> float:
        """Error of that if the power made one step, and for what no sample shows [J].

        The step is seen at a time that is uniform between the samples, and happened up to `delay_s` before, uniformly;
        the trapezoid puts it in the middle. So its time is off by sqrt(period^2 / 12 + delay^2 / 3), root mean square.
        """
        time_s = end.time_s - start.time_s
        step_j = abs(end.power_w - start.power_w) * math.sqrt(time_s**2 / 12 + self.delay_s**2 / 3)
        return math.hypot(step_j, UNSEEN_FRACTION * self.energy_j(start, end))

    def flags(self, start: Sample, end: Sample) -> tuple[str, ...]:
        """What makes the stated error too small: samples far apart, or a number that never changes."""
        flags: list[str] = []
        time_s = end.time_s - start.time_s
        if time_s > max(5.0, 10 * self.period_s):
            flags.append(f"power was not read for {time_s:.0f} s, so what happened between is not in the energy")
        if end.steady_s > self.steady_limit_s and end.power_w > 0:
            flags.append(f"the sensor has shown exactly {end.power_w:g} W for {end.steady_s:.0f} s: it may be stuck")
        return tuple(flags)


class Steady:
    """For how long a number has been the same."""

    def __init__(self) -> None:
        self._value: float | None = None
        self._since_s = 0.0

    def seconds(self, time_s: float, value: float) -> float:
        """Seconds since the first of the equal values up to this one."""
        if value != self._value:
            self._value, self._since_s = value, time_s
        return time_s - self._since_s


class SampledProbe:
    """Any power, integrated.

    Args:
        sensor: name of the sensor.
        scope: what it measures.
        read: gives the power now [W]; raises SensorError.
        known: period and errors.
        clock: monotonic seconds.
        flags: what makes every reading doubtful.
    """

    def __init__(
        self,
        *,
        sensor: str,
        scope: str,
        read: Callable[[], float],
        known: Sampling,
        clock: Callable[[], float],
        flags: tuple[str, ...] = (),
    ) -> None:
        self.scope = scope
        self.period_s = known.period_s
        self._sensor = sensor
        self._read = read
        self._known = known
        self._clock = clock
        self._flags = flags
        self._steady = Steady()

    def snapshot(self) -> Sample:
        """Power now. Raises SensorError if it cannot be read any more."""
        power_w, time_s = self._read(), self._clock()
        return Sample(time_s=time_s, power_w=power_w, steady_s=self._steady.seconds(time_s, power_w))

    def reading(self, start: Sample, end: Sample) -> Reading:
        """Energy between two samples."""
        return Reading(
            scope=self.scope,
            energy_j=self._known.energy_j(start, end),
            source=Source.SAMPLED,
            sensor=self._sensor,
            random_sd_j=self._known.random_sd_j(start, end),
            gain_sd_fraction=self._known.gain_sd_fraction,
            offset_sd_w=self._known.offset_sd_w,
            flags=self._flags + self._known.flags(start, end),
        )
