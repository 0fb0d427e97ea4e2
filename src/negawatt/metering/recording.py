"""Recording: what one window knows of every probe. No threads here; the meter holds a lock around every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from negawatt.core.errors import NegawattError, SensorError
from negawatt.core.measurement import PowerPoint
from negawatt.core.reading import Probe, Reading

CURVE_S, CURVE_FRACTION = 1.0, 1 / 20
"""Where no probe has to be folded, a look adds a point to the curve only this long after the last one, or that part of
the window's age if it is shorter [s]."""
MISSED = "a sensor could not be read for a while ({}), so that some of its joules may be missing"
CURVE_POINTS = 1024
"""A longer power curve is halved by merging neighbours, so a day-long window keeps a bounded one."""


class Recording:
    """Readings and power curve of one window, from its creation until `end`.

    Args:
        probes: what to read.
        clock: monotonic seconds.

    Raises:
        SensorError: if a probe gives no reading.
    """

    def __init__(self, probes: Sequence[Probe], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start_s = self._drawn_s = clock()
        self._end_s: float | None = None
        self._tracks = [_Track(probe, self._start_s) for probe in probes]
        self._error: NegawattError | None = None
        self._missed = ""
        self._final: tuple[Reading, ...] | None = None
        self._points: list[PowerPoint] = []
        self._energy_j = 0.0

    @property
    def time_s(self) -> float:
        """Length so far, or in the end [s]."""
        return (self._clock() if self._end_s is None else self._end_s) - self._start_s

    @property
    def points(self) -> tuple[PowerPoint, ...]:
        """The power curve so far."""
        return tuple(self._points)

    def readings(self) -> tuple[Reading, ...]:
        """One per probe, so far or in the end. Raises SensorError, for good once two states could not be subtracted."""
        if self._error is not None:
            raise self._error
        if self._final is not None:
            return self._final
        flags = (MISSED.format(self._missed),) if self._missed else ()
        return tuple(track.now(flags) for track in self._tracks)

    def advance(self, states: Sequence[Any], tick_s: float) -> None:
        """Take over states of all probes that were read just now; the next come `tick_s` later."""
        if self._error is not None or self._end_s is not None:
            return
        now_s = self._clock()
        for track, state in zip(self._tracks, states, strict=True):
            track.settle(state)
        since_s = now_s - self._drawn_s
        if since_s < min(CURVE_S, CURVE_FRACTION * self.time_s) and all(track.running for track in self._tracks):
            return
        self._drawn_s = now_s
        pairs = zip(self._tracks, states, strict=True)
        try:
            energy_j = sum(track.advance(now_s, state, tick_s).energy_j for track, state in pairs)
        except NegawattError as error:
            self._error = error
        else:
            self._point(now_s, energy_j)

    def failed(self, error: NegawattError) -> None:
        """States could not be read for `advance`. The next ones go on from those before; readings are flagged."""
        self._missed = self._missed or error.got

    def end(self) -> None:
        """Take the last readings; an error is kept for `readings`. Idempotent."""
        if self._end_s is not None:
            return
        self._end_s = self._clock()
        try:
            self._final = self.readings()
        except NegawattError as error:
            self._error = error
        else:
            self._point(self._end_s, sum(reading.energy_j for reading in self._final))

    def _point(self, now_s: float, energy_j: float) -> None:
        """Add a point to the power curve."""
        time_s = now_s - self._start_s
        span_s = time_s - (self._points[-1].time_s if self._points else 0.0)
        if span_s <= 0:
            return
        self._points.append(PowerPoint(time_s=time_s, power_w=max(0.0, energy_j - self._energy_j) / span_s))
        self._energy_j = energy_j
        if len(self._points) > CURVE_POINTS:
            self._points = halved(self._points)


class _Track:
    """One probe: what was folded so far, and the state it was folded up to; `looks.Looks` says what may differ."""

    __slots__ = ("_folded", "_probe", "_settled", "_since_s", "_state", "running")

    def __init__(self, probe: Probe, now_s: float) -> None:
        self._probe = probe
        self.running: bool = getattr(probe, "running", False)
        self._settled = getattr(probe, "settled", None)
        self._since_s = now_s
        self._folded: Reading | None = None
        self._state = snapshot(probe)

    def now(self, flags: tuple[str, ...] = ()) -> Reading:
        """The reading up to now; the flags are those of a probe that has to be read in between."""
        reading = self._until(snapshot(self._probe))
        if not flags or self._probe.period_s is None:
            return reading
        return replace(reading, flags=(*reading.flags, *flags))

    def settle(self, state: Any) -> None:  # noqa: ANN401 -- opaque but to the probe
        """Replace the start state by a better one, where what was seen since then tells more about that moment."""
        if self._settled is not None and self._folded is None:
            self._state = self._settled(self._state, state)

    def advance(self, now_s: float, state: Any, tick_s: float) -> Reading:  # noqa: ANN401 -- opaque but to the probe
        """The reading up to now, folded if the probe cannot wait for another tick."""
        reading = self._until(state)
        period_s = None if self.running else self._probe.period_s
        # Folding only when due: every fold adds the error of two more edges.
        if period_s is not None and now_s + tick_s - self._since_s > period_s:
            self._folded, self._state, self._since_s = reading, state, now_s
        return reading

    def _until(self, state: Any) -> Reading:  # noqa: ANN401
        try:
            recent = self._probe.reading(self._state, state)
        except NegawattError:
            raise
        except Exception as error:
            raise _foreign(self._probe, error) from error
        return recent if self._folded is None else self._folded + recent


def snapshot(probe: Probe) -> Any:  # noqa: ANN401 -- opaque but to the probe
    """The probe's state now; whatever a plug-in raises comes out as SensorError."""
    try:
        return probe.snapshot()
    except NegawattError:
        raise
    except Exception as error:
        raise _foreign(probe, error) from error


def halved(points: Sequence[PowerPoint]) -> list[PowerPoint]:
    """The same curve with neighbours merged, keeping the energy under it."""
    merged: list[PowerPoint] = []
    begin_s = 0.0
    for one, two in zip(points[::2], points[1::2], strict=False):
        energy_j = one.power_w * (one.time_s - begin_s) + two.power_w * (two.time_s - one.time_s)
        merged.append(PowerPoint(time_s=two.time_s, power_w=energy_j / (two.time_s - begin_s)))
        begin_s = two.time_s
    return merged + list(points[len(merged) * 2 :])


def _foreign(probe: Probe, error: Exception) -> SensorError:
    """An error that a sensor should not have raised, in three parts."""
    return SensorError(
        f"the sensor of {probe.scope} raised {type(error).__name__}: {error}",
        "the energy of this window is unknown from here on",
        "run the contract test in negawatt.testing on that sensor, or choose others with `--sensor NAME`",
    )
