"""Watchdog: a process that changes the controls of a lease for its holder, and puts them back when the holder is gone.

It is the only process that writes to a device while it lives. So a holder that was stopped and is woken after its
lease was revoked cannot write any more: its wish reaches nobody. One thread serves one message at a time.

    python -P -m negawatt.hardware.watchdog '{"home": ..., "link": 5, "locks": {"cpu:0": 6}, "beat_s": 1.0}'

The link is a socket to the holder; messages are JSON, a beat is one byte. It ends when the holder says so, dies, or
gives no sign of life for `BEATS` beats, and not before everything is as found: it ignores every signal that can be.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from negawatt.core.codec import to_json
from negawatt.core.errors import HardwareError, HeldError, NegawattError
from negawatt.hardware.control import Control, Value
from negawatt.hardware.controls import open_control
from negawatt.hardware.processes import born
from negawatt.hardware.records import Kept, Record, Touched, load, orphaned, remove, same, save, unlock
from negawatt.hardware.restoring import Outcome, Repaired, put_back

BEAT = b"."
BEATS = 10
"""A holder that gives no sign of life for so many beats has hung or was stopped."""
TRIES, PAUSE_S = 20, 0.5
"""How often, and how long apart, restoring is tried for a holder that is gone [s]: a driver may be starting anew."""
MESSAGE_BYTES = 1 << 16


class Watchdog:
    """Serves one lease.

    Args:
        home: folder of the records.
        link: to the holder.
        locks: of the devices, as open files, by scope.
        beat_s: how often the holder gives a sign of life [s].

    Raises:
        HardwareError: if a record or a device is gone.
    """

    def __init__(self, home: Path, link: socket.socket, locks: dict[str, int], beat_s: float) -> None:
        self._home = home
        self._link = link
        self._locks = locks
        self._beat_s = beat_s
        self._records: dict[str, Record] = {}
        self._controls: dict[str, Control] = {}
        for scope in locks:
            record = load(home, scope)
            if record is None:
                raise HardwareError(f"{scope} has no record", "nothing could be put back", "take the lease anew")
            pid = os.getpid()
            self._records[scope] = replace(record, watchdog=pid, watchdog_born=born(pid) or 0.0)
            for kept in record.controls:
                self._controls[kept.address] = open_control(kept.address)
            save(home, self._records[scope])

    def run(self) -> None:
        """Serve until the lease is over and everything is as found, as far as possible."""
        holder = self._holder()
        self._say({"ready": os.getpid()})
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        if holder is not None:
            poll.register(holder, select.POLLIN)
        silent = 0
        # Beats are counted, not timed: if the whole machine stood still, that is one beat missed and not a hundred.
        while silent < BEATS:
            ready = dict(poll.poll(self._beat_s * 1e3))
            if holder in ready:
                return self._put_all_back()
            if not ready:
                silent += 1
                continue
            silent = 0
            message = self._hear()
            if not message:
                return self._put_all_back()
            if message != BEAT and not self._serve(json.loads(message)):
                return None
        self._say({"revoked": f"it gave no sign of life for {BEATS * self._beat_s:g} s"})
        self._link.close()
        return self._put_all_back()

    def _holder(self) -> int | None:
        """A file that can be read when the holder is dead; None where the system has none, and the link must do."""
        record = next(iter(self._records.values()))
        try:
            holder = os.pidfd_open(record.pid)
        except (AttributeError, OSError):
            holder = None
        if born(record.pid) != record.born:  # asked after opening: the number may be another process's by now
            self._put_all_back()
            sys.exit()
        return holder

    def _hear(self) -> bytes:
        try:
            return self._link.recv(MESSAGE_BYTES)
        except OSError:  # it was closed with something of ours unread
            return b""

    def _say(self, answer: dict[str, Any]) -> None:
        with suppress(OSError):  # the holder is gone: the next poll tells
            self._link.send(json.dumps(answer).encode(), socket.MSG_DONTWAIT)

    def _serve(self, wish: dict[str, Any]) -> bool:
        """Answer one message. Returns whether the lease goes on."""
        answer: dict[str, Any] = {"n": wish["n"]}
        if wish["op"] == "release":
            outcomes = [outcome for scope in list(self._records) for outcome in self._put_device_back(scope)]
            for record in self._records.values():
                with suppress(HardwareError):  # only what people are told would be wrong
                    save(self._home, orphaned(record))
            self._say({**answer, "outcomes": to_json(outcomes)})
            return False
        try:
            answer["value"] = self._set(wish["address"], wish["value"])
        except NegawattError as error:
            answer["error"] = [type(error).__name__, error.got, error.why, error.fix]
        except Exception as error:  # noqa: BLE001 -- a driver's own error is told, and the others must be put back
            reason = f"{wish['address']}: {type(error).__name__}: {error}"
            answer["error"] = ["HardwareError", reason, "it may not be set as asked", "look at the device"]
        self._say(answer)
        return True

    def _set(self, address: str, value: Value) -> Value:
        """Write one value, with the intent kept before, and read it back."""
        record, kept = self._kept(address)
        control = self._controls[address]
        before, ours = control.read(), kept.found if kept.touched is Touched.NO else kept.value
        untold = before is None and kept.found is None  # locked clocks: a driver does not tell of them
        if kept.touched is not Touched.WRITING and not same(before, ours, kept.step) and not untold:
            raise HeldError(
                f"{address} is {before}, and not {ours} as it was left",
                "somebody else changes it, and two hands on one device undo each other's work",
                "find out who does: an administrator, or another tool; it is left as it is",
            )
        self._keep(record, replace(kept, touched=Touched.WRITING, value=value))
        try:
            control.write(value)
            after = control.read()
            if not same(after, value, kept.step):
                raise HardwareError(
                    f"{address} was set to {value} and reads {after}",
                    "the device did not take it, so whatever would be measured is not what was asked for",
                    "its firmware may be locked; leave this control out",
                )
        except Exception:
            if self._undo(control, before, kept.step):
                self._note(address, kept)
            raise
        self._note(address, replace(kept, touched=Touched.WRITTEN, value=after))
        return after

    def _note(self, address: str, kept: Kept) -> None:
        """Keep what came of a write; without it the record says that one was begun, which puts back as well."""
        with suppress(HardwareError):
            self._keep(self._kept(address)[0], kept)

    @staticmethod
    def _undo(control: Control, before: Value, step: float) -> bool:
        """Put back what was there before a write that failed. Returns whether it is there."""
        try:
            if not same(control.read(), before, step):
                control.write(before)
            return same(control.read(), before, step)
        except NegawattError:  # the record goes on saying that a write was begun, and it is tried again at the end
            return False

    def _kept(self, address: str) -> tuple[Record, Kept]:
        return next((r, kept) for r in self._records.values() for kept in r.controls if kept.address == address)

    def _keep(self, record: Record, changed: Kept) -> None:
        controls = tuple(changed if kept.address == changed.address else kept for kept in record.controls)
        record = replace(record, controls=controls)
        save(self._home, record)
        self._records[record.scope] = record

    def _put_all_back(self) -> None:
        """For a holder that is gone. What cannot be put back now is tried again, and in the end left to `repair`."""
        for _ in range(TRIES):
            for scope in list(self._records):
                self._put_device_back(scope)
            if not self._records:
                return
            self._controls.clear()  # a driver that was started anew has to be opened anew
            time.sleep(PAUSE_S)
        for fd in self._locks.values():  # a holder that hangs has them open, too
            unlock(fd)

    def _put_device_back(self, scope: str) -> Sequence[Repaired]:
        """One device: if it is as found, its record is dropped and then its lock given back."""
        record = self._records[scope]
        outcomes = [put_back(record, kept, self._controls.get(kept.address)) for kept in reversed(record.controls)]
        failed = {one.address for one in outcomes if one.outcome is Outcome.FAILED}
        if not failed:
            with suppress(HardwareError):  # it stays, and whoever repairs it finds that all is as found
                remove(self._home, scope)
            del self._records[scope]
            unlock(self._locks.pop(scope))
        return outcomes


def main(argument: str) -> None:
    """Run a watchdog as told by its holder."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTSTP"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    told = json.loads(argument)
    link = socket.socket(fileno=told["link"])
    try:
        watchdog = Watchdog(Path(told["home"]), link, told["locks"], told["beat_s"])
    except NegawattError as error:
        link.send(json.dumps({"error": [type(error).__name__, error.got, error.why, error.fix]}).encode())
        return
    os.chdir("/")  # no file system is kept from being unmounted
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 2)  # it was the holder's, who read from it if the start failed
    os.close(nowhere)
    watchdog.run()


if __name__ == "__main__":
    main(sys.argv[1])
