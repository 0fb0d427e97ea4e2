"""WriteBehind: how lines get into a spool file: into the system's hands at once, onto the disk in the background.

A process that ends loses nothing that the system has; only a power cut does, and a disk (or a network share) that
turns out to be full when it is waited for. So lines are kept in memory until they are on the disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from negawatt.core.errors import LedgerError
from negawatt.ledger.backlog import BACKLOG_BYTES, Backlog
from negawatt.ledger.spoolfile import SpoolFile

FILE_BYTES = 8_000_000
"""A longer file is followed by another: a merge reads whole files, and those of a living process each time."""


class WriteBehind:
    """The lines of one process on their way to the disk. For any number of threads.

    Args:
        folder: where the files are made.
        states: gives the lines of the runs that go on; may take `lock`.
    """

    def __init__(self, folder: Path, states: Callable[[], Sequence[str]]) -> None:
        self._folder = folder
        self._states = states
        self._states_changed = False
        self._file: SpoolFile | None = None
        self._waiting = Backlog()
        self._unsynced = Backlog()
        self._stuck = False
        self.lock = threading.RLock()
        """guards what is here and what `states` reads; held for no longer than the system takes a line"""
        self.io = threading.RLock()
        """held while waiting for the disk; taken before `lock`"""

    @property
    def waiting(self) -> bool:
        """Whether there are lines that could not be written yet."""
        return bool(self._waiting)

    def add(self, line: str) -> bool:
        """Hand over a line; one that cannot be written now waits. Within `lock`.

        Returns:
            Whether more wait than may, so that from now on the oldest are lost.
        """
        first_loss = self._waiting.add(line)
        self.begin()
        return first_loss

    def begin(self) -> None:
        """Make the file, and write what waits, unless that failed before: then `flush` has to. Within `lock`."""
        if not self._stuck:
            with suppress(OSError):  # the next flush meets it again, and says so
                self._write()

    def states_changed(self) -> None:
        """The states of the runs are to be written at the next flush. Within `lock`."""
        self._states_changed = True

    def flush(self) -> None:
        """Wait until all lines and states are on the disk. Raises LedgerError; what is not on the disk is kept."""
        with self.io:
            if self._file is None and not self._waiting and not self._states():
                return
            try:
                with self.lock:
                    file = self._write()
                    states, changed, self._states_changed = self._states(), self._states_changed, False
                if changed:
                    file.set_open(states)
                self._sync(file)
                if file.bytes > FILE_BYTES:
                    self._follow(file)
            except OSError as error:
                with self.lock:
                    self._stuck = self._states_changed = True
                    lost = self._waiting.lost
                raise LedgerError(
                    f"cannot write to the spool {self._folder}: {error.strerror}",
                    f"what is measured now waits in memory, and is lost if this process ends first{_lost(lost)}",
                    "make room and the folder writable, or name another ledger: NEGAWATT_LEDGER=PATH",
                ) from error
            with self.lock:
                lost = self._waiting.forget_losses()
        if lost:
            warn(f"the spool {self._folder} can be written again{_lost(lost)}")

    def end(self) -> bool:
        """End the file, after a flush and within `io` and `lock`. Returns whether there was anything in it."""
        file, self._file = self._file, None
        if file is None:
            return False
        try:
            if file.blank:
                file.remove()
                return False
            file.end()
        except OSError as error:  # that its lock is free says the same
            warn(f"the spool {file.path} could not be ended: {error.strerror}")
            self._waiting.put_back(self._unsynced.take())
        self._unsynced = Backlog()
        return True

    def leave(self) -> None:
        """In the child of a fork: the file is the parent's."""
        if self._file is not None:
            self._file.leave()

    def _write(self) -> SpoolFile:
        """Give what waits to the system. Within `lock`. Raises OSError; then it waits on.

        Returns:
            The file.
        """
        taken: list[str] = []
        try:
            if self._file is not None and self._file.gone:
                self._drop_file()
            if self._file is None:
                self._file, self._states_changed = SpoolFile.make(self._folder), True
            taken = self._waiting.take()
            if taken:
                self._file.append("".join(taken))
        except BaseException as error:  # Ctrl-C too; a line that was written twice is merged once
            self._waiting.put_back(taken)
            self._stuck = self._stuck or isinstance(error, OSError)
            raise
        for line in taken:
            self._unsynced.add(line)
        self._stuck = False
        return self._file

    def _drop_file(self) -> None:
        """Somebody removed the file: what was not on the disk yet was not merged either."""
        if self._file is not None:
            self._file.leave()
            self._file = None
            self._waiting.put_back(self._unsynced.take())

    def _sync(self, file: SpoolFile) -> None:
        with self.lock:
            part, self._unsynced = self._unsynced, Backlog()
        try:
            file.sync()
        except BaseException:
            with self.lock:
                file.take_back()
                self._waiting.put_back([*part.take(), *self._unsynced.take()])
            raise

    def _follow(self, old: SpoolFile) -> None:
        """Go on in a new file where the old one has grown long."""
        try:
            new = SpoolFile.make(self._folder)
            try:
                new.set_open(self._states())
                new.sync()
                with self.lock:
                    if self._states_changed:
                        new.set_open(self._states(), sync=False)
                    old.set_open((), sync=False)  # in both until now, and after a kill a merge takes one
                    self._file = new
                    self._waiting.put_back(self._unsynced.take())
            except OSError:
                with suppress(OSError):
                    new.set_open(())
                    new.end()
                raise
            with suppress(OSError):  # what was not on the disk goes to the new one as well
                old.end()
        except OSError as error:
            warn(f"the spool {old.path} grows long: {error.strerror}")


def warn_of_loss(folder: Path) -> None:
    """Say that from now on records are lost."""
    wait = f"more than {BACKLOG_BYTES / 1e6:.0f} MB wait in memory"
    warn(f"the spool {folder} cannot be written, and {wait}: from now on, the oldest records are lost")


def warn(text: str) -> None:
    """Say what went wrong beside the user's work."""
    import logging  # only where there is something to say

    logging.getLogger("negawatt.ledger").warning("%s", text)


def _lost(lost: int) -> str:
    return f"; {lost} records are lost already" if lost else ""
