"""Locks: advisory locks of the kernel, which end with their process however it ends."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from negawatt.core.errors import LedgerError

_POLL_S = 0.02


class BusyError(LedgerError):
    """Another process of this host is merging spools."""


def try_lock(fd: int, *, shared: bool = False) -> bool | None:
    """Take the lock of an open file, without waiting.

    Args:
        fd: the file; the lock is held until its last copy is closed.
        shared: whether others may hold it in the same way.

    Returns:
        True if it is held now, False if another process holds it, None if there are no locks on this file system.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES) else None
    return True


@contextmanager
def only_merger(folder: Path, wait_s: float) -> Iterator[None]:
    """Be the only process that merges the spools of a folder.

    Without locks on the file system several can merge at once; the ledger's transactions keep that correct.

    Args:
        folder: an existing folder.
        wait_s: how long to wait for another process that merges.

    Raises:
        BusyError: if the other process took longer.
        OSError: if the folder is not writable.
    """
    fd = os.open(folder / "merge.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        deadline_s = time.monotonic() + wait_s
        while try_lock(fd) is False:
            if time.monotonic() >= deadline_s:
                raise BusyError(
                    f"another process is merging {folder}",
                    "what is still in the spools is not in the ledger yet; nothing is lost",
                    f"try again later, or look for a process that hangs: `fuser {folder / 'merge.lock'}`",
                )
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)
