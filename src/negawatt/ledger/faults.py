"""Faults: what SQLite and the system report, as errors that say what to type."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from negawatt.core.errors import LedgerError

ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What reading a damaged file raises: SQLite's messages quote the file, and what they quote may be no text."""

PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
"""Result codes that go away by themselves while other processes open the same file."""

_ELSEWHERE = "name another file: NEGAWATT_LEDGER=PATH"
_WRITABLE = f"make the file and its folder writable, or {_ELSEWHERE}"
_ADVICE = {
    sqlite3.SQLITE_FULL: f"make room on the disk (`df -h`), or {_ELSEWHERE}",
    sqlite3.SQLITE_IOERR: f"look for a full disk, quota or file size limit (`df -h`, `ulimit -f`), or {_ELSEWHERE}",
    sqlite3.SQLITE_READONLY: _WRITABLE,
    sqlite3.SQLITE_CANTOPEN: _WRITABLE,
    sqlite3.SQLITE_BUSY: f"end the process that holds it (`fuser {{path}}`), or {_ELSEWHERE}",
    sqlite3.SQLITE_CORRUPT: "set it aside with `mv {path} {path}.damaged`; `sqlite3 {path}.damaged .recover` gets out "
    "what can be read",
    sqlite3.SQLITE_NOTADB: f"{_ELSEWHERE}; or set it aside with `mv {{path}} {{path}}.damaged`",
}


def code(error: Exception) -> int:
    """Primary result code of SQLite; -1 if Python's module raised the error by itself."""
    if isinstance(error, UnicodeDecodeError):
        return sqlite3.SQLITE_CORRUPT
    number = getattr(error, "sqlite_errorcode", None)
    return -1 if number is None else int(number) & 0xFF


def explained(error: Exception, path: Path) -> LedgerError:
    """One of `ERRORS` on the ledger at `path`, with what to do about it."""
    advice = _ADVICE.get(code(error), _ELSEWHERE)
    return LedgerError(
        f"the ledger {path}: {error}",
        "this record could not be written or read; those already in the file were not changed",
        advice.replace("{path}", str(path)),
    )


def cannot_make(path: Path, cause: OSError | str) -> LedgerError:
    """The ledger at `path` is not there and cannot be made."""
    text = (cause.strerror or str(cause)) if isinstance(cause, OSError) else cause
    return LedgerError(
        f"cannot make the ledger {path}: {text}",
        "what is measured now would not be kept",
        "make the folder writable, or name another file: NEGAWATT_LEDGER=PATH",
    )
