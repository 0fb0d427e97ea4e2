"""Meter: the open sensors of a host. Window: energy between two moments."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.host import Host
from negawatt.core.measurement import PowerPoint
from negawatt.core.reading import NotMeasured, Probe, Reading, Sensor, SensorInfo
from negawatt.hardware.host import this_host
from negawatt.metering.recording import Recording, snapshot
from negawatt.metering.select import Opened, fallback_last, open_best, open_named

TICK_S = 1.0
"""Once a second is often enough for a curve that people look at [s]."""
SHORTEST_TICK_S = 0.01
"""No probe is looked at more often than this [s], ..."""
LOOKS_PER_S, LOOKS = 10.0, 400.0
"""... nor on average more often than this, but for so many looks at young windows that were saved up before."""
LINGER_S = 1.0
"""How long the background thread stays behind the last window [s]."""
POLL_FRACTION = 0.02
"""Nor so often that it takes more than this part of the time: some drivers take milliseconds to answer."""


class Meter:
    """The open sensors of a host. Windows may nest and overlap, in one thread or several.

    A background thread runs only where some probe has to be read while a window is open, and a moment longer.

    Args:
        opened: sensors; `Meter.open` and `Meter.of` open them.
        clock: monotonic seconds, for the length of windows; a simulator brings its own.
        tick_s: longest time between two points of the power curve, where a window is polled at all [s].
        background: whether a thread polls; without it, a simulator calls `poll`.
    """

    def __init__(
        self,
        opened: Opened,
        clock: Callable[[], float] = time.perf_counter,
        *,
        tick_s: float = TICK_S,
        background: bool = True,
    ) -> None:
        self._opened = opened
        self._clock = clock
        self._tick_s = tick_s
        self._background = background
        self._period_s = min((p.period_s for p in opened.probes if p.period_s is not None), default=math.inf)
        self._look_fraction = min((getattr(p, "look_fraction", math.inf) for p in opened.probes), default=math.inf)
        self._looks = LOOKS
        self._poll_cost_s = 0.0
        self._polled_s = clock()
        self._lock = threading.RLock()
        self._recordings: list[Recording] = []
        self._poller: _Poller | None = None
        self._closed = False

    @classmethod
    def open(cls, host: Host | None = None, names: tuple[str, ...] = ()) -> Meter:
        """Open registered sensors.

        Args:
            host: the machine; None: this one.
            names: exactly these sensors; none: every available one, estimates only where nothing measures.

        Raises:
            UsageError: on an unknown or broken name.
            NoMeterError: if a named sensor, or without names any sensor, cannot be used here.
            NeedsPrivilegeError: if a named sensor is there and may not be read.
            ScopeMismatchError: if two of them would count the same joules.
        """
        from negawatt.core import registry

        found = registry.sensors()
        chosen = registry.pick(found, names, "sensor")
        host = host or this_host()
        opened = open_named(fallback_last(chosen), host) if names else open_best(chosen, host)
        others = [NotMeasured(what=n, why="not among the sensors asked for") for n in found.members if n not in chosen]
        broken = [
            NotMeasured(what=b.name, why=f"cannot be loaded ({b.distribution}): {b.reason}") for b in found.broken
        ]
        return cls(replace(opened, left_out=(*opened.left_out, *others, *broken)))

    @classmethod
    def of(
        cls, sensors: Sequence[Sensor], host: Host | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> Meter:
        """Open sensor objects with different names instead of registered ones, as `open` does without names."""
        return cls(open_best({sensor.info.name: sensor for sensor in sensors}, host or this_host()), clock)

    @property
    def sensors(self) -> tuple[SensorInfo, ...]:
        """The sensors that were opened."""
        return self._opened.sensors

    @property
    def scopes(self) -> tuple[str, ...]:
        """What is measured."""
        return tuple(probe.scope for probe in self._opened.probes)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The open probes, one per scope."""
        return self._opened.probes

    @property
    def unavailable(self) -> tuple[NotMeasured, ...]:
        """Every registered sensor that was not opened, and why."""
        return self._opened.left_out

    def start(self) -> Window:
        """A window that begins now.

        Raises:
            SensorError: if a sensor gives no reading.
            UsageError: if the meter is closed.
        """
        with self._lock:
            if self._closed:
                raise UsageError("this meter is closed", "its sensors are no longer read", "open another Meter")
            recording = Recording(self._opened.probes, self._clock)
            self._recordings.append(recording)
            if self._background and min(self._period_s, self._look_fraction) < math.inf:
                if self._poller is None:
                    self._poller = _Poller(self)
                elif self._look_fraction < math.inf or len(self._recordings) == 1:
                    self._poller.hurry()
        return Window(recording, self._lock, self._end)

    def close(self) -> None:
        """End all windows, and with them the background thread. Idempotent."""
        with self._lock:
            self._closed = True
            recordings = tuple(self._recordings)
            poller, self._poller = self._poller, None
        for recording in recordings:
            self._end(recording)
        if poller is not None:
            poller.stop()

    def retire(self) -> bool:
        """Let go of the background thread, unless it is needed; asked by itself."""
        with self._lock:
            if not self._recordings:
                self._poller = None
            return not self._recordings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether a window is open."""
        return bool(self._recordings)

    @property
    def poll_s(self) -> float:
        """How long to wait after a `poll` [s]: the shorter, the younger the youngest open window is (`looks.Looks`)."""
        with self._lock:
            youngest_s = min((recording.time_s for recording in self._recordings), default=math.inf)
        young_s = youngest_s * self._look_fraction if self._look_fraction < math.inf else math.inf
        shortest_s = SHORTEST_TICK_S if self._looks >= 1 else 1 / LOOKS_PER_S
        return min(max(young_s, shortest_s, self._poll_cost_s / POLL_FRACTION), self._tick_s, self._period_s)

    def poll(self) -> None:
        """Read every probe once and show the result to every open window: what the background thread does."""
        with self._lock:
            if not self._recordings:
                return
            tick_s, begin_s = self.poll_s, self._clock()
            self._looks = min(LOOKS, self._looks + (begin_s - self._polled_s) * LOOKS_PER_S) - 1
            self._polled_s = begin_s
            try:
                states = [snapshot(probe) for probe in self._opened.probes]
            except NegawattError as error:
                for recording in self._recordings:
                    recording.failed(error)  # told by a flag, if it passes
                return
            self._poll_cost_s = self._clock() - begin_s
            for recording in self._recordings:
                recording.advance(states, tick_s)

    def _end(self, recording: Recording) -> None:
        """End one window, whatever happens on the way."""
        try:
            with self._lock:
                recording.end()
        finally:
            with self._lock:
                if recording in self._recordings:
                    self._recordings.remove(recording)


class _Poller:
    """The background thread of a meter. It lingers behind the last window: to start one for each would be dear."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._wake = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="negawatt-meter", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        polled_s = time.monotonic()
        while not self._ended:
            if not self._meter.busy:
                if not self._wake.wait(LINGER_S) and self._meter.retire():
                    return
                self._wake.clear()
                polled_s = time.monotonic()
            elif self._wake.wait(max(0.0, polled_s + self._meter.poll_s - time.monotonic())):
                self._wake.clear()
            else:
                self._meter.poll()
                polled_s = time.monotonic()

    def hurry(self) -> None:
        """Ask anew how long to wait: a window was opened."""
        self._wake.set()

    def stop(self) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join()


class Window:
    """Energy from `Meter.start()` until `stop()`, or until the end of a `with` block."""

    def __init__(self, recording: Recording, lock: threading.RLock, end: Callable[[Recording], None]) -> None:
        self._recording = recording
        self._lock = lock
        self._end = end

    @property
    def time_s(self) -> float:
        """Length so far, or in the end [s]."""
        return self._recording.time_s

    @property
    def power_curve(self) -> tuple[PowerPoint, ...]:
        """Mean power of all scopes over time: a point per poll, and one at the end."""
        with self._lock:
            return self._recording.points

    def readings(self) -> tuple[Reading, ...]:
        """One reading per probe, so far or in the end. Raises SensorError if a sensor stopped giving readings."""
        with self._lock:
            return self._recording.readings()

    def stop(self) -> tuple[Reading, ...]:
        """End the window and return its readings. Idempotent.

        Raises:
            SensorError: if a sensor failed now or, in the background, since the start; the window is over all the same.
        """
        self._end(self._recording)
        return self.readings()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(self._recording)
        if error is None:  # else the error under way says more than the sensor's
            self.readings()
