"""SpoolFile: the part of a spool that is on the disk. Locked for as long as its writer lives, so that a merge knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from negawatt.ledger import lines
from negawatt.ledger.locks import try_lock
from negawatt.ledger.origin import this_process

_numbers = count()  # merges go by name, so that a process's records stay in its order


class SpoolFile:
    """A spool file of this process, and beside it the state of the runs that are not finished.

    Args:
        path: the file, NAME.jsonl.
        fd: open for appending, locked.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    @classmethod
    def make(cls, folder: Path) -> SpoolFile:
        """A new file, locked before anybody else sees it. Raises OSError."""
        writer = this_process()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        names = (
            writer.machine_id, writer.boot_id, str(writer.pid), writer.start, f"{next(_numbers):06}",
            os.urandom(4).hex(),
        )  # fmt: skip
        name = "-".join("".join(c if c.isalnum() else "_" for c in part[:40]) for part in names)
        path, part = folder / f"{name}.jsonl", folder / f"{name}.part"
        fd = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            try_lock(fd)
            _write(fd, lines.header(writer))
            part.rename(path)
            _sync_folder(folder)
        except BaseException:
            os.close(fd)
            part.unlink(missing_ok=True)
            raise
        return cls(path, fd)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    @property
    def gone(self) -> bool:
        """Whether somebody removed it: what is written now, nobody would find. Raises OSError."""
        return os.fstat(self._fd).st_nlink == 0

    @property
    def bytes(self) -> int:
        """How long it is. Raises OSError."""
        return os.fstat(self._fd).st_size

    def append(self, text: str) -> None:
        """Put whole lines on the disk. Raises OSError; then none of them is there."""
        before = os.fstat(self._fd).st_size
        try:
            _write(self._fd, text)
        except OSError:
            os.ftruncate(self._fd, before)
            raise

    def set_open(self, states: Sequence[str]) -> None:
        """Put the lines of the unfinished runs on the disk in place of those before; all or none. Raises OSError."""
        path = self._path.with_suffix(".open")
        if not states:
            path.unlink(missing_ok=True)
            return
        part = self._path.with_suffix(".open.part")
        fd = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, lines.header(this_process()) + "".join(states))
        finally:
            os.close(fd)
        part.rename(path)
        _sync_folder(path.parent)

    def followed(self, states: Sequence[str]) -> SpoolFile:
        """End this file and go on in a new one. Raises OSError; then nothing has changed.

        Args:
            states: what `set_open` was given.
        """
        new = SpoolFile.make(self._path.parent)
        try:
            new.set_open(states)  # in both for a moment, word for word: should this process die now, a merge takes one
            self.set_open(())
        except OSError:
            with suppress(OSError):
                new.set_open(())
                new.end()
            raise
        with suppress(OSError):  # all in it is on the disk, and that its lock is free says the same
            self.end()
        return new

    def end(self) -> None:
        """Say that nothing follows, and let go of it. Raises OSError; it is let go of all the same."""
        try:
            self.append(lines.END)
        finally:
            self.leave()

    def leave(self) -> None:
        """Close this process's copy. After a fork, the lock stays with the parent."""
        with suppress(OSError):  # on some network shares, an error of an earlier write; those were checked by fsync
            os.close(self._fd)


def _write(fd: int, text: str) -> None:
    data = memoryview(text.encode("ascii"))
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    with suppress(OSError):  # file systems that cannot sync a folder keep names by themselves
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
