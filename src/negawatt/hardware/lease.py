"""Lease: the right to change some controls for now, and the certainty that they end up as found.

Before anything is written, what was found is on the disk and a watchdog is up, a process of its own that does all the
writing. If the holder ends in whatever way, hangs, or is stopped, the watchdog puts everything back. If the
watchdog is killed, the holder starts another. If both are, `repair` puts things back: every `take` calls it, and
`negawatt doctor` does.

There are no signal handlers here: a library must not take them, and SIGKILL has none. A forked child's copy of a
lease is inert.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, final

from negawatt.core.codec import from_json
from negawatt.core.errors import HardwareError, HeldError, NegawattError, UsageError
from negawatt.hardware import records
from negawatt.hardware.control import Control, ControlInfo, Value
from negawatt.hardware.controls import open_controls
from negawatt.hardware.hand import Hand, check_value
from negawatt.hardware.keeper import GoneError, Keeper, RevokedError
from negawatt.hardware.processes import born
from negawatt.hardware.records import Kept, Record, state_folder
from negawatt.hardware.restoring import Outcome, Repaired, damaged, dropped, not_restored, put_back

WAIT_S = 5.0
"""How long to wait for a device whose holder is gone, while its watchdog or somebody else puts it back [s]."""
_PAUSE_S = 0.02


@final
class Lease(Hand):
    """A hand on controls of this host, for a process that may write to them. `take` makes one.

    One lease holds a device at a time; a lease may hold several devices, and several controls of each. Every method
    may be called from any thread. A process that lets none of its threads run for ten seconds counts as hung.
    """

    def __init__(
        self, *, home: Path, locks: Mapping[str, int], infos: Sequence[ControlInfo], above_found: bool
    ) -> None:
        self._home = home
        self._locks = dict(locks)
        self._infos = {info.address: info for info in infos}
        self._above_found = above_found
        self._pid = os.getpid()
        self._turn = threading.RLock()  # a signal handler may end the program, and so release, within a `set`
        self._over: NegawattError | None = None
        self._left: list[Repaired] = []
        self._found = {
            kept.address: kept.found
            for scope in locks
            if (record := records.load(home, scope)) is not None
            for kept in record.controls
        }
        self._keeper = Keeper(home, locks)
        try:
            threading.Thread(target=self._live, name="negawatt-lease", daemon=True).start()
        except BaseException:  # no more threads
            self._keeper.end()
            raise
        atexit.register(self.release)

    @classmethod
    def take(
        cls, addresses: Sequence[str], *, owner: str, folder: Path | None = None, above_found: bool = False
    ) -> Lease:
        """Take a lease.

        Args:
            addresses: of the controls, as `found_controls` lists them.
            owner: what others are told who ask for the same device.
            folder: of the records; None: $NEGAWATT_STATE, else one for root or for this user.
            above_found: whether values above what was found are allowed, up to the device's own range.

        Raises:
            HeldError: if somebody else has one of the devices.
            UsageError: on no address, one twice or an unknown one, or a folder that others can write to.
            HardwareError: if a device is gone, was left changed and cannot be put back, or no watchdog can be started.
        """
        if not addresses or len(set(addresses)) < len(addresses):
            raise UsageError(
                f"controls to take: {list(addresses)}",
                "a lease is on some controls, each once",
                "give addresses from `negawatt doctor`",
            )
        home = state_folder(folder)
        controls = open_controls(addresses)
        locks = _lock_devices(home, sorted({control.info.scope for control in controls}))
        try:
            for scope in locks:
                records.save(home, _record(scope, owner, [one for one in controls if one.info.scope == scope]))
            infos = [control.info for control in controls]
            return cls(home=home, locks=locks, infos=infos, above_found=above_found)
        except BaseException:
            for scope, lock in locks.items():  # nothing has been written to the devices yet
                with suppress(HardwareError):  # a record that stays is dropped by `repair`
                    records.remove(home, scope)
                records.unlock(lock)
            raise

    @property
    def infos(self) -> Mapping[str, ControlInfo]:
        """What may be changed, by address."""
        return self._infos

    @property
    def found(self) -> Mapping[str, Value]:
        """How it was found, by address."""
        return self._found

    @property
    def left(self) -> Sequence[Repaired]:
        """After the release: controls that somebody else had changed meanwhile, and that were left to them."""
        return tuple(self._left)

    def set(self, address: str, value: Value) -> Value:
        """Change one control and return what it reads back. Raises as `Hand.set`."""
        self._check(address, value)
        with self._turn:
            for _ in range(2):
                if self._over is not None:
                    raise type(self._over)(*self._over.args)
                try:
                    answer = self._keeper.ask("set", address=address, value=value)
                except (GoneError, RevokedError) as error:
                    self._revive(error)
                    continue
                read: Value = answer["value"]
                return read
            raise HardwareError(
                f"the watchdog was killed twice while {address} was set",
                "it is not known whether the device was set",
                "find out what kills it: `dmesg | tail`",
            )

    def release(self) -> None:
        """Put everything back as found. Raises as `Hand.release`."""
        if os.getpid() != self._pid:
            return
        with self._turn:
            if self._over is not None:
                return
            outcomes = self._end()
        failed = tuple(one for one in outcomes if one.outcome is Outcome.FAILED)
        if failed:
            raise not_restored(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        self.release()

    def _check(self, address: str, value: Value) -> None:
        """Refuse what may not be set."""
        if os.getpid() != self._pid:
            raise HardwareError(
                f"this lease is of process {self._pid}, and not of its child {os.getpid()}",
                "one process decides how a device is set",
                "set it in the parent, or take a lease in the child",
            )
        info = self._infos.get(address)
        if info is None:
            raise UsageError(
                f"{address!r} is not held",
                "only what is held is put back",
                f"take a lease on it; held: {[*self._infos]}",
            )
        check_value(info, value, self._found[address], above_found=self._above_found)

    def _live(self) -> None:
        """Give signs of life to the watchdog, and start another if it is killed."""
        while self._over is None:
            keeper = self._keeper
            if not keeper.ended(keeper.beat_s):
                keeper.beat()
                continue
            with self._turn:
                if self._over is None and keeper is self._keeper:
                    self._revive(keeper.last_words())

    def _revive(self, error: GoneError | RevokedError) -> None:
        """Start another watchdog in place of one that was killed; else put everything back and be over."""
        if isinstance(error, RevokedError):
            self._finish(error)
            return
        try:
            self._keeper.end()
            if not all(self._has(scope) for scope in self._locks):
                self._put_back_here()
                self._finish(HeldError("the lease is lost: its files were closed", error.why, error.fix))
                return
            self._keeper = self._another()
        except NegawattError as failure:
            with suppress(HardwareError):  # what cannot be put back keeps its record, for `repair`
                self._put_back_here()
            self._finish(failure)

    def _another(self) -> Keeper:
        try:
            return Keeper(self._home, self._locks)
        except GoneError:  # whoever kills watchdogs may have met this one while it started
            return Keeper(self._home, self._locks)

    def _has(self, scope: str) -> bool:
        """Whether a device is still this lease's."""
        if not records.holds(self._home, scope, self._locks[scope]):
            return False
        record = records.load(self._home, scope)
        return record is not None and record.pid == self._pid

    def _end(self) -> Sequence[Repaired]:
        """Have everything put back, and let go of the devices."""
        over: NegawattError = HardwareError(
            "the lease was released", "what is set now would not be put back", "take another lease"
        )
        outcomes: list[Repaired] = []
        try:
            answer = self._keeper.ask("release")
            outcomes = [from_json(Repaired, outcome) for outcome in answer["outcomes"]]
        except RevokedError as error:
            over = error
        except NegawattError:  # the watchdog was killed, or does not answer
            outcomes = self._put_back_here()
        finally:  # if this was interrupted, the watchdog puts back by itself
            self._finish(over)
        self._left = [one for one in outcomes if one.outcome is Outcome.LEFT]
        return outcomes

    def _put_back_here(self) -> list[Repaired]:
        """Put everything back without a watchdog. Raises HardwareError if there is one that does not end."""
        self._keeper.end()
        outcomes: list[Repaired] = []
        for scope, lock in self._locks.items():
            if records.holds(self._home, scope, lock):
                outcomes += _restore(self._home, scope)
            else:  # whoever has it now repairs it first
                outcomes += [one for one in repair(self._home) if one.scope == scope]
        return outcomes

    def _finish(self, over: NegawattError) -> None:
        """Let go of the devices, for the reason given. A watchdog that still lives puts them back, and ends."""
        self._over = over
        atexit.unregister(self.release)
        self._keeper.hang_up()
        with suppress(HardwareError):  # it goes on trying
            self._keeper.end(kill=False)
        while self._locks:
            records.let_go(self._locks.popitem()[1])


def repair(folder: Path | None = None) -> tuple[Repaired, ...]:
    """Put back what leases have left behind whose holder and watchdog are both gone.

    Args:
        folder: of the records; None: as for `Lease.take`.

    Returns:
        What came of it, for each control. What failed is kept for the next time.

    Raises:
        UsageError: if the folder is not this user's alone.
        HardwareError: if it cannot be used.
    """
    home = state_folder(folder, make=False)
    repaired: list[Repaired] = []
    for scope in records.scopes(home):
        lock = records.lock(home, scope)
        if lock is None:
            continue  # somebody holds it, or repairs it just now
        try:
            repaired += _restore(home, scope)
        finally:
            records.unlock(lock)
    return tuple(repaired)


def held(folder: Path | None = None) -> tuple[Record, ...]:
    """Who holds which device now. A record that cannot be understood is left to `repair` to report.

    Args:
        folder: of the records; None: as for `Lease.take`.

    Raises:
        UsageError: if the folder is not this user's alone.
    """
    home = state_folder(folder, make=False)
    found = [_record_of(home, scope) for scope in records.scopes(home)]
    return tuple(record for record in found if record is not None and (record.held or record.watched))


def _record_of(home: Path, scope: str) -> Record | None:
    try:
        return records.load(home, scope)
    except HardwareError:  # `repair` says why
        return None


def _restore(home: Path, scope: str) -> list[Repaired]:
    """Put back a device whose lock this process has."""
    try:
        record = records.load(home, scope)
    except HardwareError as error:
        return [damaged(scope, error)]
    if record is None:
        return []
    if record.boot_id != records.boot_id():
        outcomes = dropped(record)
    else:
        outcomes = [put_back(record, kept) for kept in reversed(record.controls)]
    if any(outcome.outcome is Outcome.FAILED for outcome in outcomes):
        records.save(home, records.orphaned(record))
    else:
        records.remove(home, scope)
    return outcomes


def _lock_devices(home: Path, scopes: Sequence[str]) -> dict[str, int]:
    """The locks of some devices that are as nobody's lease left them. Raises HeldError or HardwareError."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        failed = [one for one in repair(home) if one.outcome is Outcome.FAILED and one.scope in scopes]
        if failed:
            raise not_restored(failed)
        locks: dict[str, int] = {}
        for scope in scopes:  # in rising order, so that two who want the same two do not each get one
            lock = records.lock(home, scope)
            if lock is None:
                break
            locks[scope] = lock
        if len(locks) == len(scopes) and set(scopes).isdisjoint(records.scopes(home)):
            return locks
        for lock in locks.values():
            records.unlock(lock)
        busy = scopes[min(len(locks), len(scopes) - 1)]
        record = _record_of(home, busy)
        if (record is not None and record.held) or time.monotonic() > deadline_s:
            raise HeldError(
                f"{busy} is held by {record.holder if record else 'another process, which takes or repairs it'}",
                "two hands on one device undo each other's work",
                "wait for it to end, or end it: the device is then put back as it was found",
            )
        time.sleep(_PAUSE_S)


def _record(scope: str, owner: str, controls: Sequence[Control]) -> Record:
    """The record of a device as it is now."""
    pid = os.getpid()
    return Record(
        scope=scope,
        owner=owner,
        pid=pid,
        born=born(pid) or 0.0,
        boot_id=records.boot_id(),
        since_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        controls=tuple(_kept(control) for control in controls),
    )


def _kept(control: Control) -> Kept:
    found = control.read()
    info = control.info
    return Kept(address=info.address, found=found, value=found, step=info.step, command=control.command(found))
