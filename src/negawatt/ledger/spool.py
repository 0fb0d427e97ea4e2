"""Spool: records on their way to the ledger, so that measuring never waits for a disk.

Each process appends to a file of its own in the folder `<ledger>.spool`: it hands each record to the system at once,
and a background thread waits for the disk. Any process merges these files into the ledger: every `negawatt ledger`
command, and a spool that is closed.

    spool = shared_spool()
    key = spool.open_run("run", {}, workload="train")
    spool.checkpoint(key, {"step": 100}, energy_j=512.0, source="counter")     # as often as you like
    spool.finish(key, {"step": 900}, energy_j=4608.0, source="counter")

However a process ends, what `put` and `finish` returned for is kept; a power cut takes at most the last `FLUSH_S`. Runs
that were not finished are recorded as they were at a checkpoint at most `FLUSH_S` before, with `"interrupted": true` in
the body. A disk that is full is waited for, with the records in memory (see `backlog`).

Many hosts with one disk: SQLite's log does not work over a network share, so let every host spool to a folder there
(NEGAWATT_SPOOL=FOLDER), each to files of its own, and let one host merge them into its local ledger with
`negawatt ledger merge FOLDER`.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.core.errors import LedgerError
from negawatt.ledger import lines
from negawatt.ledger.behind import WriteBehind, warn, warn_of_loss
from negawatt.ledger.origin import next_sequence
from negawatt.ledger.paths import default_path, shared_folder, spool_folder

if TYPE_CHECKING:
    from negawatt.ledger.merge import Merged

FLUSH_S = 2.0
"""At most so much time passes before what was put, or said of a run, is on the disk [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenRun:
    """What does not change while a run goes on, and its latest line."""

    kind: str
    workload: str
    phase: str
    campaign: str
    line: str


class Spool:
    """The records of this process on their way to a ledger. For any number of threads; a fork starts its own.

    Args:
        path: the ledger; None: `paths.default_path()`.
        folder: where to spool; None: $NEGAWATT_SPOOL, else beside the ledger. A folder elsewhere is not merged on
            close: that is for the host whose ledger collects it.
    """

    def __init__(self, path: Path | None = None, *, folder: Path | None = None) -> None:
        self._path = path or default_path()
        self._folder = folder or shared_folder() or spool_folder(self._path)
        self._exiting = False
        self._told = ""
        self._forget()
        _SPOOLS.add(self)

    def _forget(self) -> None:
        """Start as if nothing had been put: at first, and in the child of a fork."""
        self._open: dict[str, _OpenRun] = {}
        self._behind = WriteBehind(self._folder, self._states)
        self._lock = self._behind.lock
        self._no_thread()

    def _no_thread(self) -> None:
        self._due = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self._folder

    def put(  # noqa: PLR0913 -- the columns of a record
        self,
        kind: str,
        body: Mapping[str, Any],
        *,
        workload: str = "",
        phase: str = "",
        campaign: str = "",
        energy_j: float | None = None,
        source: str = "",
        power_curve: Sequence[tuple[float, float]] = (),
    ) -> str:
        """Hand over one record; returns at once. It outlives this process, unless the disk is full.

        Args:
            kind: one of `checks.KINDS`.
            body: JSON types; numbers are finite.
            workload: name of the workload or run.
            phase: "train", "infer" or "".
            campaign: identity of the plan it belongs to, or "".
            energy_j: joules, if it has any.
            source: evidence of the joules, or "".
            power_curve: (time_s, power_w) points in the order of time, each the mean power since the one before.

        Returns:
            The record's `sequence`, by which the ledger will know it.

        Raises:
            LedgerError: for a record that the ledger would refuse.
        """
        sequence = next_sequence()
        text = lines.line(
            sequence, kind, body, workload=workload, phase=phase, campaign=campaign, energy_j=energy_j, source=source,
            power_curve=power_curve,
        )  # fmt: skip
        with self._lock:
            first_loss = self._behind.add(text)
        self._handed_over(first_loss)
        return sequence

    def open_run(
        self,
        kind: str,
        body: Mapping[str, Any],
        *,
        workload: str = "",
        phase: str = "",
        campaign: str = "",
        energy_j: float | None = None,
        source: str = "",
    ) -> str:
        """Announce a run that goes on, as it is now; returns at once. Arguments, result and errors as for `put`."""
        sequence = next_sequence()
        text = lines.line(
            sequence, kind, body, workload=workload, phase=phase, campaign=campaign, energy_j=energy_j, source=source
        )
        with self._lock:
            self._open[sequence] = _OpenRun(kind=kind, workload=workload, phase=phase, campaign=campaign, line=text)
            self._behind.states_changed()
            self._behind.begin()  # makes the file now, so that the end of a run need not
        self._wake()
        return sequence

    def checkpoint(self, key: str, body: Mapping[str, Any], *, energy_j: float | None = None, source: str = "") -> None:
        """Say how a run stands; takes the place of what was said before, and returns at once.

        Args:
            key: what `open_run` gave.
            body: the whole body, as if the run ended now.
            energy_j: joules so far, if it has any.
            source: evidence of the joules, or "".

        Raises:
            LedgerError: for a run that is not open in this process, or a record that the ledger would refuse.
        """
        run = self._run(key)
        text = lines.line(
            key, run.kind, body, workload=run.workload, phase=run.phase, campaign=run.campaign, energy_j=energy_j,
            source=source,
        )  # fmt: skip
        with self._lock:
            self._run(key)
            self._open[key] = replace(run, line=text)
            self._behind.states_changed()
        self._wake()

    def finish(
        self,
        key: str,
        body: Mapping[str, Any],
        *,
        energy_j: float | None = None,
        source: str = "",
        power_curve: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Hand over the final record of a run; returns at once. Arguments and errors as for `checkpoint` and `put`."""
        run = self._run(key)
        text = lines.line(
            key, run.kind, body, workload=run.workload, phase=run.phase, campaign=run.campaign, energy_j=energy_j,
            source=source, power_curve=power_curve,
        )  # fmt: skip
        with self._lock:
            self._run(key)  # another thread may have finished it meanwhile
            first_loss = self._behind.add(text)
            self._open.pop(key, None)
            self._behind.states_changed()
        self._handed_over(first_loss)

    def drop(self, key: str) -> None:
        """Forget a run that came to nothing. Raises LedgerError for a run that is not open in this process."""
        self._run(key)
        with self._lock:
            self._open.pop(key, None)
            self._behind.states_changed()
        self._wake()

    def flush(self) -> None:
        """Wait until all that was put is on the disk. Raises LedgerError if it cannot be written; it is kept for later.

        After a fork, the child flushes what the child put.
        """
        self._behind.flush()

    def close(self) -> Merged | None:
        """Flush, end the file, and merge it into the ledger if it is beside it. Idempotent; a later `put` begins anew.

        Runs that are still open are recorded as interrupted.

        Returns:
            What was merged; None if nothing was written, the folder is merged elsewhere, or another process is at it.

        Raises:
            LedgerError: if the spool or the ledger cannot be written. What is in the spool stays there.
        """
        with self._lock:
            self._stop.set()
            self._due.set()
            self._no_thread()
        try:
            self.flush()
        except LedgerError as error:
            self._told = str(error)
            raise
        with self._behind.io, self._lock:
            if not self._behind.end():
                return None
            self._open.clear()
            waiting = self._behind.waiting  # put by another thread in the meantime
        if waiting:
            self._wake()
        return self._merge() if self._folder == spool_folder(self._path) else None

    def _merge(self) -> Merged | None:
        """Merge the folder, unless another process is at it. Raises LedgerError."""
        from negawatt.ledger.locks import BusyError
        from negawatt.ledger.store import Ledger

        try:
            with Ledger.open(self._path, timeout_s=10.0) as ledger:
                return ledger.merge(wait_s=0.0)
        except BusyError:  # the next merge takes it
            return None
        except LedgerError as error:
            raise LedgerError(
                f"what was measured waits in {self._folder}: {error.got}",
                "it is not in the ledger yet",
                f"{error.fix}; then `negawatt ledger merge`",
            ) from error

    def _run(self, key: str) -> _OpenRun:
        run = self._open.get(key)
        if run is None:
            raise LedgerError(
                f"run {key} is not open in this process",
                "its joules could be recorded twice",
                "finish a run once, in the process and before the close() of the spool that opened it",
            )
        return run

    def _states(self) -> list[str]:
        with self._lock:
            return [run.line for run in self._open.values()]

    def _handed_over(self, first_loss: bool) -> None:  # noqa: FBT001
        if first_loss:
            warn_of_loss(self._folder)
        self._wake()

    def _wake(self) -> None:
        """See to it that the background thread writes soon."""
        if self._thread is None and not self._exiting:
            with self._lock:
                if self._thread is None:
                    _at_exit_of_process()
                    thread = threading.Thread(
                        target=_write_behind, args=(self, self._due, self._stop), name="negawatt-spool", daemon=True
                    )
                    try:
                        thread.start()
                        self._thread = thread
                    except RuntimeError:  # the interpreter is on its way out already
                        self._exiting = True
        if self._exiting:  # no thread can be started any more
            self.flush()
        elif not self._due.is_set():
            self._due.set()


_SPOOLS: weakref.WeakSet[Spool] = weakref.WeakSet()
_shared: dict[Path, Spool] = {}
_exit_seen_by: int | None = None


def shared_spool(path: Path | None = None) -> Spool:
    """The spool of this process for a ledger; made at the first call.

    Args:
        path: the ledger; None: `paths.default_path()`.
    """
    path = (path or default_path()).absolute()
    return _shared.get(path) or _shared.setdefault(path, Spool(path))


def _write_behind(spool: Spool, due: threading.Event, stop: threading.Event) -> None:
    """What the background thread does: wait for work, let more of it gather, write it."""
    said = ""
    while not stop.is_set():
        due.wait()
        stop.wait(FLUSH_S / 2)  # the other half is for the disk
        due.clear()
        try:
            spool.flush()
            said = ""
        except LedgerError as error:
            due.set()  # try again
            if str(error) != said:
                said = spool._told = str(error)  # noqa: SLF001 -- this module's own
                warn(said)


def _at_exit_of_process() -> None:
    """Close all spools when this process ends; children of `multiprocessing` leave without `atexit`."""
    global _exit_seen_by
    if _exit_seen_by != os.getpid():
        first, _exit_seen_by = _exit_seen_by is None, os.getpid()
        if first:  # a forked child has inherited it
            atexit.register(_close_all)
        if "multiprocessing.util" in sys.modules:
            from multiprocessing.util import Finalize

            Finalize(None, _close_all, exitpriority=0)


def _close_all() -> None:
    for spool in list(_SPOOLS):
        told, spool._exiting = spool._told, True  # noqa: SLF001 -- this module's own
        try:
            spool.close()
        except LedgerError as error:
            if str(error) != told:
                warn(str(error))


def _after_fork() -> None:
    """In the child: the parent writes what it put; the child starts with nothing, and a file of its own."""
    for spool in list(_SPOOLS):
        spool._behind.leave()  # noqa: SLF001
        spool._forget()  # noqa: SLF001


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
