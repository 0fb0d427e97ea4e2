"""BoardFile: a small JSON document that all processes of one user on one host change in turn."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

FORMAT = 2
"""Of the document, and part of the file's name: versions that keep it in another way do not see each other's."""
WAIT_S = 2.0
"""Nobody keeps the lock for long, unless it was stopped (SIGSTOP) just then: it is not waited for any longer [s]."""
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 2e-4, 0.02
"""How long to wait before asking again [s]. Longer each time: hundreds that ask would slow the one that has it."""


class BoardFile:
    """The document, in a folder of this user's.

    Args:
        folder: where; None: `default_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or default_folder()
        # A process is known to others by a number that means nothing, or somebody else, in another namespace.
        self.path = self._folder / f"board-{FORMAT}{_pid_namespace()}.json"

    @contextmanager
    def locked(self) -> Iterator[dict[str, Any]]:
        """The document while nobody else has it, empty at first; what is changed is kept, whole or not at all.

        Raises:
            OSError: if it cannot be kept here, or somebody else has it for too long.
        """
        fcntl = _locks()
        lock = _open_lock(self._folder)
        try:
            self._take(lambda: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB))
            doc = self._load()
            yield doc
            self._save(doc)
        finally:
            # Said, and not left to the closing: a child forked at this moment has a copy, and would hold it for life.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _take(self, lock: Callable[[], None]) -> None:
        """Wait for one's turn, however many are waiting; but not for one who does nothing with his."""
        pause_s, seen, deadline_s = SHORTEST_PAUSE_S, self._changed(), time.monotonic() + WAIT_S
        while True:
            try:
                lock()
            except BlockingIOError:
                if (now := self._changed()) != seen:
                    seen, deadline_s = now, time.monotonic() + WAIT_S
                elif time.monotonic() > deadline_s:
                    raise TimeoutError(f"another process holds {self._folder} for over {WAIT_S:g} s") from None
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                return

    def _changed(self) -> int:
        """When the document was last changed; 0: never."""
        try:
            return os.stat(self.path).st_mtime_ns  # noqa: PTH116 -- Path.stat takes three times as long
        except FileNotFoundError:
            return 0

    def _load(self) -> dict[str, Any]:
        try:
            with open(self.path, "rb", buffering=0) as file:  # noqa: PTH123 -- Path.open takes three times as long
                doc = json.loads(file.read())
        except (FileNotFoundError, ValueError):  # damaged, it is begun anew: its runs are told that they are not on it
            return {}
        whole = isinstance(doc, dict) and doc.pop("format", None) == FORMAT
        return doc if whole else {}

    def _save(self, doc: dict[str, Any]) -> None:
        part = f"{self.path}.part"
        data = json.dumps({"format": FORMAT, **doc}).encode()
        with open(part, "wb", buffering=0) as file:  # noqa: PTH123 -- the same
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), part)
        os.replace(part, self.path)  # noqa: PTH105 -- the same


def default_folder() -> Path:
    """The folder that all processes of this user and boot share: $NEGAWATT_BOARD, else one in shared memory."""
    named = os.environ.get("NEGAWATT_BOARD")
    if named:
        return Path(named)
    import tempfile

    memory = Path("/dev/shm")  # noqa: S108 -- a folder of its own there, checked for its owner
    base = memory if os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return base / (f"negawatt-{os.getuid()}" if hasattr(os, "getuid") else "negawatt")


def _locks() -> Any:  # noqa: ANN401 -- a module
    try:
        import fcntl
    except ImportError as error:
        raise OSError("this system has no locks that processes share") from error
    return fcntl


def _open_lock(folder: Path) -> int:
    """The lock file, in a folder of this user only. Raises PermissionError if it is somebody else's."""
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        lock = os.open(f"{folder}/board.lock", flags, 0o600)
    except FileNotFoundError:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(f"{folder}/board.lock", flags, 0o600)
    if os.stat(folder).st_uid != os.getuid():  # noqa: PTH116 -- Path.stat takes three times as long
        os.close(lock)
        raise PermissionError(f"{folder} belongs to another user")
    return lock


@cache
def _pid_namespace() -> str:
    """What tells this process's numbering of processes from that of another container; "" where there is only one."""
    try:
        return "-" + os.readlink("/proc/self/ns/pid").strip("pid:[]")  # noqa: PTH115 -- no file, a name of a kind
    except OSError:
        return ""
