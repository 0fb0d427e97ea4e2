"""Audit: what clients asked for and what became of it, one line of JSON each, in a file and on stderr.

A change is on the disk (fsync) *before* it is made, as "begins", and again with its result. If that first line cannot
be written, because the disk is full, the change is refused; restoring never is. Lines are ASCII with control characters
escaped, so nothing that a client sends can look like another line. Refusals are limited in number, or whoever is
refused could fill the disk and so stop those who are not.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from negawatt.core.errors import HardwareError
from negawatt.hardware.guard.peer import Peer

REFUSALS_PER_USER = 20
REFUSALS_IN_ALL = 200
"""Refusals that are written per minute; the others are counted."""
_MINUTE_S = 60.0


class AuditError(HardwareError):
    """The audit log cannot be written, so nothing may be changed."""


class AuditLog:
    """The file, opened for appending. Safe to use from several threads.

    Args:
        file: is made if it is not there, for root and its group to read. One that was moved away (logrotate) is made
            anew.

    Raises:
        AuditError: in `write` and here, if it cannot be written or is not a file of ours.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._torn = False
        self._minute_s = time.monotonic()
        self._refusals: Counter[int] = Counter()
        self._stream = self._opened()

    def write(self, peer: Peer, event: str, result: str, **details: Any) -> None:  # noqa: ANN401 -- JSON
        """Add a line, and wait until it is on the disk.

        Args:
            peer: who asked.
            event: "take", "set" or "release".
            result: "begins", "done" or what went wrong.
            details: what else there is to tell, in JSON's types.
        """
        with self._lock:
            self._append(_line(peer, event, result, details))

    def tell(self, peer: Peer, event: str, result: str, **details: Any) -> None:  # noqa: ANN401
        """As `write`, of something that happens in any case: if it cannot be written, stderr has it."""
        with suppress(AuditError):
            self.write(peer, event, result, **details)

    def refuse(self, peer: Peer, event: str, result: str, **details: Any) -> None:  # noqa: ANN401
        """As `tell`, of a request that was refused, unless there were too many this minute."""
        with self._lock, suppress(AuditError):
            if time.monotonic() - self._minute_s > _MINUTE_S:
                self._minute_s = time.monotonic()
                self._refusals.clear()
            self._refusals[peer.uid] += 1
            count, total = self._refusals[peer.uid], self._refusals.total()
            if count <= REFUSALS_PER_USER and total <= REFUSALS_IN_ALL:
                last = count == REFUSALS_PER_USER or total == REFUSALS_IN_ALL
                more = {"note": "more are not written for up to a minute"} if last else {}
                self._append(_line(peer, event, result, {**details, **more}))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._stream)
            self._stream = -1

    def _append(self, line: bytes) -> None:
        with suppress(OSError, ValueError):  # stderr may be closed, or its reader gone
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
        try:
            if not self._is_current():
                os.close(self._stream)
                self._stream = self._opened()
            whole = b"\n" + line if self._torn else line
            self._torn = True
            if os.write(self._stream, whole) < len(whole):
                raise OSError("only part of a line could be written")
            self._torn = False
            os.fsync(self._stream)
        except OSError as error:
            raise self._fault(error) from error

    def _is_current(self) -> bool:
        """Whether the open file is still the one of that name."""
        try:
            named, opened = self._file.lstat(), os.fstat(self._stream)
        except FileNotFoundError:
            return False
        return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)

    def _opened(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._file.parent.mkdir(mode=0o750, exist_ok=True)
            stream = os.open(self._file, flags, 0o640)
        except OSError as error:
            raise self._fault(error) from error
        found = os.fstat(stream)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            os.close(stream)
            raise self._fault("it is not a file that only this user may write")
        return stream

    def _fault(self, reason: object) -> AuditError:
        return AuditError(
            f"the audit log {self._file} cannot be written: {reason}",
            "what cannot be accounted for is not changed",
            "make room, or name another file with --audit",
        )


def _line(peer: Peer, event: str, result: str, details: dict[str, Any]) -> bytes:
    record = {
        "time_utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "result": result,
        "uid": peer.uid,
        "user": peer.user,
        "pid": peer.pid,
        "comm": peer.comm,
        **details,
    }
    return json.dumps(record).encode("ascii") + b"\n"
