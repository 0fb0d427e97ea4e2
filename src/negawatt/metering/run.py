"""LiveRun: a named run under the meter, for `with negawatt.meter(...)`, the callbacks and `negawatt run` alike.

A run measures the host (its readings), knows what of that it answers for (its attribution), and on request keeps itself
in the ledger: a checkpoint every few seconds and the final record, so that a run that is killed is not lost.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

from negawatt.core.errors import NegawattError, SensorError, UsageError
from negawatt.core.measurement import PowerPoint
from negawatt.core.reading import Reading, Source, total, weakest
from negawatt.core.run import Attribution, Run, Work
from negawatt.core.tuned import Tuned
from negawatt.hardware.host import this_host
from negawatt.metering.attribute import Attributor
from negawatt.metering.kept import Kept, log_error
from negawatt.metering.session import Meter

PULSE_S = 10.0
"""How often a run is brought up to date on the board and, if it is recorded, in the ledger [s]."""
FIRST_PULSE_S = 1.0
"""A young run is brought up to date when it is this old, and then each time it is twice as old [s]."""

OLD_SHARES_S = 1.0
"""Shares that a run inside another one of its process is given may be this old [s]."""

_current: ContextVar[LiveRun | None] = ContextVar("negawatt_run", default=None)


class LiveRun:
    """A run that goes on until `stop`.

    A run that begins inside another one of the same process and context is a part of it: the outer one's joules hold
    its own, and it answers for the same part of the host as that one.

    Args:
        name: what the user calls it.
        sensors: names of sensors; none: every available one, estimates only where nothing measures.
        record: whether it is kept in the ledger.
        meter: an open meter of the caller's, instead of `sensors`; it stays open.
        argv: the command, where it is one.

    Raises:
        NoMeterError, NeedsPrivilegeError, UsageError, ScopeMismatchError: as `Meter.open`.
        SensorError: if a sensor gives no reading.
        LedgerError: if it is to be kept and there is no place for a ledger.
    """

    def __init__(
        self,
        name: str,
        *,
        sensors: Sequence[str] = (),
        record: bool = False,
        meter: Meter | None = None,
        argv: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self._pid = os.getpid()
        self._argv = argv
        self._work: dict[str, float] = {}
        self._tuned: tuple[Tuned, ...] = ()
        self._ended: Run | None = None
        self._seen: tuple[Reading, ...] = ()
        self._pulse_at_s = FIRST_PULSE_S
        self._lock = threading.RLock()  # a signal handler may stop a run that is just being stopped
        self._work_lock = threading.RLock()
        self._started_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._meter = meter or shared_meter(tuple(sensors))
        self._outer = current_run()
        self._kept = Kept(name) if record else None
        self.key = self._kept.key if self._kept else f"{self._pid}-{os.urandom(4).hex()}"
        self._attributor: Attributor | None = None
        try:
            if self._outer is None:
                self._attributor = Attributor(self.key, self._meter.probes, recorded=record)
            self._window = self._meter.start()
        except BaseException as error:
            if isinstance(error, SensorError):
                shared_meter.cache_clear()  # hardware that went away is looked for anew next time
            self._never_was()
            raise
        _current.set(self)
        if self._kept or self._attributor:
            _PULSE.add(self)

    @property
    def here(self) -> bool:
        """Whether it runs in this process; not so in a forked child."""
        return self._pid == os.getpid()

    @property
    def running(self) -> bool:
        """Whether it goes on."""
        return self._ended is None

    @property
    def time_s(self) -> float:
        """Length so far, or in the end [s]."""
        return self._window.time_s

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The host's, one per scope, whoever caused them. Raises SensorError, and UsageError in a forked child."""
        if not self.here:  # the meter's lock may be held for ever by a thread that was not forked
            if self._ended:
                return self._ended.readings
            raise UsageError(
                f"run {self.name!r} is read in a forked child",
                "it goes on in the process that began it",
                "write `with negawatt.meter(...)` in the child, too: its run will be a part of this one",
            )
        return self._window.readings()

    @property
    def power_curve(self) -> tuple[PowerPoint, ...]:
        """Mean power of all scopes over time."""
        return self._window.power_curve

    @property
    def energy_j(self) -> float:
        """Joules that this run answers for: all of the host's, unless others are metered too. Raises SensorError."""
        if not self.readings or (part := self.attribution) is None:
            return 0.0
        return part.energy_j

    @property
    def energy_sd_j(self) -> float:
        """Standard deviation of the meter's error of `energy_j` [J]; the rule of sharing has none stated."""
        host_j, host_sd_j = total(self.readings, self.time_s)
        return host_sd_j * self.energy_j / host_j if host_j > 0 else host_sd_j

    @property
    def host_energy_j(self) -> float:
        """Joules of the host while it ran, whoever caused them. Raises SensorError."""
        return total(self.readings, self.time_s)[0]

    @property
    def source(self) -> Source:
        """The weakest source among the readings."""
        return weakest(reading.source for reading in self.readings)

    @property
    def attribution(self) -> Attribution | None:
        """What of the host's joules this run answers for; None without readings. Raises SensorError."""
        if self._ended:
            return self._ended.attribution
        return self._attribute(self.readings)

    @property
    def wall_j(self) -> tuple[float, float] | None:
        """The host's joules at the wall and their standard deviation; None if this host was not calibrated [J].

        Raises SensorError, or UsageError if the calibration cannot be read.
        """
        return self._at_the_wall(self.readings)

    def did(self, quantity: float, unit: str) -> None:
        """Count useful work: `m.did(4096, "token")`; from any thread, but a forked child's is not counted.

        Raises ValueError if it is negative or not finite.
        """
        if not self.here:  # and its lock may be held for ever by a thread that was not forked
            return
        with self._work_lock:
            done = Work(unit=unit, quantity=quantity).quantity + self._work.get(unit, 0.0)
            self._work[unit] = Work(unit=unit, quantity=done).quantity

    def tuned(self, tuned: Tuned, instead: Tuned | None = None) -> None:
        """Keep with the run how a limit was tuned during it, in place of what was told before."""
        self._tuned = (*(one for one in self._tuned if one is not instead), tuned)

    def stop(self, *, error: BaseException | None = None) -> Run | None:
        """End the run, and keep it if it is recorded. Idempotent; raises nothing that would hide the user's work.

        Args:
            error: what ended it, if it was an exception.

        Returns:
            The run; how a sensor failed is in its `fault`. None in a forked child: there it is the parent's run.
        """
        return self.end(error=error) if self.here else None

    def end(self, *, error: BaseException | None = None, exit_code: int | None = None, signal: str = "") -> Run:
        """As `stop`, for a command and in the process that began the run.

        Args:
            error: what ended it, if it was an exception.
            exit_code: of a command.
            signal: name of the signal that killed a command.
        """
        with self._lock:
            if self._ended:
                return self._ended
            _PULSE.remove(self)
            if _current.get() is self:
                _current.set(self._outer)
            try:
                with contextlib.suppress(NegawattError):  # kept by the window, and told in the run's fault
                    self._window.stop()
                run = self._now(leave=True, exit_code=exit_code, signal=signal, error=error)
            except BaseException:  # Ctrl-C at this very moment; the ledger has the last checkpoint
                self._leave()
                raise
            if self._ended is None:  # else by a signal handler meanwhile
                self._ended = run
                if self._kept:
                    self._kept.finish(run, self._window.power_curve)
            return self._ended

    def discard(self) -> None:
        """End the run as if it had never begun; nothing in a forked child, or when it is over."""
        if not self.here:
            return
        with self._lock:
            if self._ended is None and self._kept:
                self._kept.drop()
                self._kept = None
        self.end()

    def pulse(self) -> None:
        """Bring the board and the ledger up to date, if it is time."""
        with self._lock:
            if self._ended or self.time_s < self._pulse_at_s:
                return
            self._pulse_at_s = min(2 * self.time_s, self.time_s + PULSE_S)
            run = self._now()
            if self._kept:  # under the lock: a run that has ended meanwhile has no checkpoints
                self._kept.checkpoint(run)

    @property
    def parent(self) -> str:
        """Key of the nearest recorded run around this one, or ""."""
        if self._attributor:
            return self._attributor.parent
        outer = self._outer
        return "" if outer is None else outer.key if outer.recorded else outer.parent

    @property
    def recorded(self) -> bool:
        """Whether it is kept in the ledger."""
        return self._kept is not None

    def _outermost(self) -> LiveRun:
        """The run of this process that this one is inside of, itself inside of none."""
        return self if self._outer is None else self._outer._outermost()  # noqa: SLF001

    def _leave(self) -> None:
        """Leave the board, whatever state the run is in."""
        if self._attributor:
            with contextlib.suppress(NegawattError):  # a sensor that failed: then the board forgets it with the process
                self._attributor.update(leave=True)

    def _never_was(self) -> None:
        """Take back what was announced."""
        self._leave()
        if self._kept:
            self._kept.drop()

    def _attribute(self, readings: Sequence[Reading], *, leave: bool = False) -> Attribution | None:
        inside = self._outer is not None
        attributor = self._outermost()._attributor  # noqa: SLF001 -- this class's own
        if attributor is None:  # it could not begin
            return None
        with contextlib.suppress(NegawattError):  # the window meets the same sensor and says so
            attributor.update(leave=leave and not inside, older_than_s=OLD_SHARES_S if inside else 0.0)
        return attributor.attribution(readings, inside=inside) if readings else None

    def _at_the_wall(self, readings: Sequence[Reading]) -> tuple[float, float] | None:
        from negawatt.metering.calibration import load

        if not readings:
            return None
        known = load(this_host(), self._meter.scopes, [sensor.name for sensor in self._meter.sensors])
        return known.wall_energy_j(readings, self.time_s) if known else None

    def _now(
        self, *, leave: bool = False, exit_code: int | None = None, signal: str = "", error: BaseException | None = None
    ) -> Run:
        fault = ""
        try:
            self._seen = readings = self._window.readings()
        except NegawattError as failed:
            fault = str(failed)
            readings = tuple(replace(seen, flags=(*seen.flags, "a part only: a sensor failed")) for seen in self._seen)
        wall_j, wall_sd_j = None, None  # type: float | None, float | None
        try:
            wall_j, wall_sd_j = self._at_the_wall(readings) or (None, None)
        except NegawattError as failed:
            fault = fault or str(failed)
        with self._work_lock:
            work = tuple(Work(unit=unit, quantity=quantity) for unit, quantity in self._work.items())
        return Run(
            name=self.name,
            started_utc=self._started_utc,
            time_s=self.time_s,
            readings=readings,
            attribution=self._attribute(readings, leave=leave),
            work=work,
            argv=self._argv,
            exit_code=exit_code,
            signal=signal,
            error=f"{type(error).__name__}: {error}".removesuffix(": ") if error else "",
            fault=fault,
            not_measured=self._meter.unavailable,
            host=this_host(),
            parent=self.parent,
            wall_j=wall_j,
            wall_sd_j=wall_sd_j,
            tuned=self._tuned,
        )


@cache
def shared_meter(names: tuple[str, ...]) -> Meter:
    """One meter per process and choice of sensors, so that looking for sensors is paid once. Raises as `Meter.open`."""
    return Meter.open(names=names)


def current_run() -> LiveRun | None:
    """The innermost run of this process and context that goes on; those inside it may have ended elsewhere."""
    run = _current.get()
    while run is not None and not (run.here and run.running):
        run = run._outer  # noqa: SLF001 -- this module's own
    return run


class _Pulse:
    """The background thread that brings the runs of this process up to date, while there are any."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._runs: list[LiveRun] = []
        self._thread: threading.Thread | None = None

    def add(self, run: LiveRun) -> None:
        with self._lock:
            self._runs.append(run)
            if self._thread is None:
                thread = threading.Thread(target=self._beat, name="negawatt-runs", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads, or the interpreter is on its way out
                    log_error("%s is not brought up to date while it goes on: %s", run.name, error)
                else:
                    self._thread = thread

    def remove(self, run: LiveRun) -> None:
        with self._lock:
            if run in self._runs:
                self._runs.remove(run)

    def _beat(self) -> None:
        while True:
            time.sleep(FIRST_PULSE_S)
            with self._lock:
                runs = tuple(self._runs)
                if not runs:
                    self._thread = None
                    return
            for run in runs:
                try:
                    run.pulse()
                except Exception as error:  # noqa: BLE001 -- logged; the other runs still have to be kept
                    log_error("%s was not brought up to date: %s: %s", run.name, type(error).__name__, error)


_PULSE = _Pulse()


def _after_fork() -> None:
    """A forked child has the meters and the runs, but neither their threads nor usable locks."""
    global _PULSE  # noqa: PLW0603 -- one per process
    _PULSE = _Pulse()
    shared_meter.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
