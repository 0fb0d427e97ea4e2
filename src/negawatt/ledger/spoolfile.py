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

    What `append` has taken survives this process; what was there at a `sync`, a power cut too.

    Args:
        path: the file, NAME.jsonl.
        fd: open for appending, locked.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd
        self._first_bytes = self.bytes
        self._synced_bytes = 0

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

    @property
    def blank(self) -> bool:
        """Whether it never held anything. Raises OSError."""
        return self.bytes == self._first_bytes and not self._path.with_suffix(".open").exists()

    def append(self, text: str) -> None:
        """Hand whole lines to the system, without waiting for the disk. Raises OSError; then none of them is there."""
        _write(self._fd, text)

    def sync(self) -> None:
        """Wait until all lines, and the name of the file, are on the disk. Raises OSError."""
        size = self.bytes
        if size == self._synced_bytes:
            return
        os.fsync(self._fd)
        if not self._synced_bytes:
            _sync_folder(self._path.parent)
        self._synced_bytes = size

    def take_back(self) -> None:
        """After a `sync` that failed: cut off the lines since the last one, or remove a file that never was whole."""
        with suppress(OSError):  # what stays, and is written again, is merged once
            if self._synced_bytes:
                os.ftruncate(self._fd, self._synced_bytes)
            else:
                self._path.unlink(missing_ok=True)

    def set_open(self, states: Sequence[str], *, sync: bool = True) -> None:
        """Put the lines of the unfinished runs in place of those before; all or none. Raises OSError.

        Args:
            states: a line per run.
            sync: whether to wait until they are on the disk.
        """
        path = self._path.with_suffix(".open")
        if not states:
            path.unlink(missing_ok=True)
            return
        part = self._path.with_suffix(".open.part")
        fd = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, lines.header(this_process()) + "".join(states))
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        part.rename(path)
        if sync:
            _sync_folder(path.parent)

    def remove(self) -> None:
        """Take a blank file away, and let go of it."""
        self._path.unlink(missing_ok=True)
        self.leave()

    def end(self) -> None:
        """Say that nothing follows, and let go of it. Raises OSError; it is let go of all the same."""
        try:
            self.append(lines.END)
            self.sync()
        finally:
            self.leave()

    def leave(self) -> None:
        """Close this process's copy. After a fork, the lock stays with the parent."""
        with suppress(OSError):  # on some network shares, an error of an earlier write; those were checked by fsync
            os.close(self._fd)


def _write(fd: int, text: str) -> None:
    """Write all of it, or take back what was written and raise OSError."""
    data, done = memoryview(text.encode("ascii")), 0
    try:
        while done < len(data):
            done += os.write(fd, data[done:])
    except BaseException:
        if done:
            os.ftruncate(fd, os.fstat(fd).st_size - done)
        raise


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    with suppress(OSError):  # file systems that cannot sync a folder keep names by themselves
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
