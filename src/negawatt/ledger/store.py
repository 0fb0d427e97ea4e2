"""Ledger: an append-only record of everything that was measured, in one SQLite file.

Many processes of one machine may append at once. A record is on the disk when `append` returns (write-ahead log,
synchronous=FULL), and a process that is killed leaves no half record. The write-ahead log needs shared memory, so the
file belongs on a disk of this machine, not on a network share that several machines write to.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from negawatt.core.errors import LedgerError, UsageError

SCHEMA = 1
"""Version of the file's tables, kept in `PRAGMA user_version`. 1: first."""

KINDS = ("run", "trial", "campaign", "plan", "apply")
"""What a record can be about."""

_APPLICATION_ID = 0x6E776174  # "nwat": tells a ledger from another program's database

_SCHEMA_SQL = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    created_utc TEXT NOT NULL,
    host TEXT NOT NULL,
    kind TEXT NOT NULL,
    workload TEXT NOT NULL,
    phase TEXT NOT NULL,
    campaign TEXT NOT NULL,
    energy_j REAL,
    source TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX records_by_campaign ON records (campaign, id);
CREATE TRIGGER records_no_update BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'records are never changed'); END;
CREATE TRIGGER records_no_delete BEFORE DELETE ON records
    BEGIN SELECT RAISE(ABORT, 'records are never deleted'); END;
CREATE TRIGGER records_no_replace BEFORE INSERT ON records WHEN EXISTS (SELECT 1 FROM records WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'records are never replaced'); END;
"""

_COLUMNS = "id, created_utc, host, kind, workload, phase, campaign, energy_j, source, body"

# Result codes that go away by themselves while other processes open the same file.
_PASSING = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry of the ledger.

    Attributes:
        id: number in the order of writing, from 1.
        created_utc: when it was written, ISO 8601.
        host: name of the machine.
        kind: one of `KINDS`.
        workload: name of the workload or run.
        phase: "train", "infer" or "".
        campaign: identity of the plan it belongs to, or "".
        energy_j: joules, if it has any.
        source: evidence of the joules, or "".
        body: everything else, as JSON types.
    """

    id: int
    created_utc: str
    host: str
    kind: str
    workload: str
    phase: str
    campaign: str
    energy_j: float | None
    source: str
    body: Mapping[str, Any]


def default_path() -> Path:
    """The ledger of this user: $NEGAWATT_LEDGER, else `ledger.sqlite` in the user's state folder."""
    named = os.environ.get("NEGAWATT_LEDGER")
    if named:
        return Path(named).expanduser()
    from platformdirs import user_state_path

    return user_state_path("negawatt", appauthor=False) / "ledger.sqlite"


def fault(path: Path) -> LedgerError | None:
    """Why nothing could be recorded at `path`, or None. Makes no file."""
    try:
        if path.exists():
            with Ledger.open(path, timeout_s=1.0) as ledger, ledger.writing():
                return None
        parent = next(folder for folder in path.absolute().parents if folder.exists())
    except LedgerError as error:
        return error
    except OSError as error:
        return _cannot_make(path, error)
    if not parent.is_dir():
        return _cannot_make(path, f"{parent} is not a folder")
    may = os.access(parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)
    return None if may else _cannot_make(path, f"{parent} is not writable")


class Ledger:
    """An open ledger. For one thread; open another in another thread or process.

    Args:
        path: the file, for error messages.
        db: a connection to it, in autocommit mode.
    """

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db

    @classmethod
    def open(cls, path: Path | None = None, *, timeout_s: float = 30.0) -> Ledger:
        """Open a ledger; make it, readable by its owner only, if there is none.

        Args:
            path: the file; None: `default_path()`.
            timeout_s: how long to wait for other processes, now and in every append.

        Raises:
            LedgerError: if it cannot be made or read, is damaged, or belongs to a newer version or another program.
        """
        path = path or default_path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _cannot_make(path, error) from error
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                return cls(path, _connect(path, timeout_s))
            except sqlite3.Error as error:
                # Setting the journal mode does not wait for other processes, whatever the timeout.
                if _code(error) not in _PASSING or time.monotonic() > deadline_s:
                    raise _explained(error, path) from error
            time.sleep(0.02)

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def append(
        self,
        kind: str,
        body: Mapping[str, Any],
        *,
        workload: str = "",
        phase: str = "",
        campaign: str = "",
        energy_j: float | None = None,
        source: str = "",
    ) -> int:
        """Write one record to the disk.

        Args:
            kind: one of `KINDS`.
            body: JSON types; numbers are finite.
            workload: name of the workload or run.
            phase: "train", "infer" or "".
            campaign: identity of the plan it belongs to, or "".
            energy_j: joules, if it has any.
            source: evidence of the joules, or "".

        Returns:
            The id of the record.

        Raises:
            LedgerError: if it could not be written. Earlier records are untouched.
        """
        text = _body_text(kind, body, energy_j)
        created_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = (created_utc, platform.node(), kind, workload, str(phase), campaign, energy_j, str(source), text)
        with self.writing():
            places = ", ".join("?" * len(row))
            cursor = self._db.execute(f"INSERT INTO records VALUES (NULL, {places})", row)  # noqa: S608 -- "?, ?, ..."
        return int(cursor.lastrowid or 0)

    def records(
        self, *, kind: str | None = None, workload: str | None = None, campaign: str | None = None,
        limit: int | None = None,
    ) -> list[Record]:  # fmt: skip
        """Records, oldest first; with `limit`, the newest so many. Raises LedgerError."""
        wanted = {"kind": kind, "workload": workload, "campaign": campaign}
        values: list[str | int] = [value for value in wanted.values() if value is not None]
        where = " AND ".join(f"{column} = ?" for column, value in wanted.items() if value is not None) or "TRUE"
        newest = f"SELECT {_COLUMNS} FROM records WHERE {where} ORDER BY id DESC LIMIT ?"  # noqa: S608 -- fixed names
        return self._read(newest, [*values, -1 if limit is None else max(0, limit)])[::-1]

    def get(self, record_id: int) -> Record:
        """One record. Raises UsageError if there is none of that id, LedgerError if it cannot be read."""
        # As text: SQLite compares it as the number it is, and has no limit on its size.
        found = self._read(f"SELECT {_COLUMNS} FROM records WHERE id = ?", [str(record_id)])  # noqa: S608
        if not found:
            raise UsageError(
                f"no record {record_id} in {self._path}",
                "there is nothing to show",
                "`negawatt ledger list` shows the ids",
            )
        return found[0]

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that holds the right to write: whole on a normal exit, without a trace on any other."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _explained(error, self._path) from error

    def _read(self, query: str, values: list[Any]) -> list[Record]:
        try:
            return [_record(row) for row in self._db.execute(query, values)]
        except sqlite3.Error as error:
            raise _explained(error, self._path) from error
        except ValueError as error:
            raise LedgerError(
                f"the ledger {self._path} holds a record that is no JSON: {error}",
                "the file was changed by something else",
                f"restore {self._path} from a backup",
            ) from error


def _body_text(kind: str, body: Mapping[str, Any], energy_j: float | None) -> str:
    """The body as JSON text. Raises LedgerError for a record that could not be found or read again."""
    if kind not in KINDS:
        raise LedgerError(f"a record of kind {kind!r}", "nobody would look for it", f"use one of {', '.join(KINDS)}")
    if energy_j is not None and not math.isfinite(energy_j):
        raise LedgerError(f"a {kind!r} record with {energy_j} J", "it is no energy", "give None for an unknown energy")
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"a {kind!r} record that is not JSON: {error}",
            "it could not be read back",
            "pass the body through negawatt.core.codec.to_json and leave out numbers that are not finite",
        ) from error


def _record(row: tuple[Any, ...]) -> Record:
    *columns, body = row
    names = _COLUMNS.split(", ")[:-1]
    return Record(**dict(zip(names, columns, strict=True)), body=json.loads(body))


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A checked connection. Raises sqlite3.Error, or LedgerError for a file that is not a ledger of this version."""
    _make_private(path)
    db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
    try:
        if _is_ledger(db, path):
            db.execute("PRAGMA synchronous = FULL")
            return db
        db.execute("PRAGMA journal_mode = WAL")  # kept in the file: set once, when it is made
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        if not _is_ledger(db, path):  # else another process was faster
            for statement in _statements(_SCHEMA_SQL):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _make_private(path: Path) -> None:
    """Make an empty file that only its owner may read: recorded command lines can hold secrets."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise _cannot_make(path, error) from error


def _is_ledger(db: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is a ledger of this version; False if it is still empty. Raises LedgerError for any other."""
    version, application = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id")
    )
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application == _APPLICATION_ID and version == SCHEMA:
        return True
    if application == _APPLICATION_ID and version > SCHEMA:
        raise LedgerError(
            f"{path} is a ledger of format {version}; this negawatt writes format {SCHEMA}",
            "a record in an older format could be misread later, so the file was not touched",
            "upgrade negawatt (`pip install --upgrade negawatt`), or name another file: NEGAWATT_LEDGER=PATH",
        )
    if application == version == tables == 0:
        return False
    raise LedgerError(
        f"{path} is a database of another program",
        "records among its tables could break it, so the file was not touched",
        "name another file: NEGAWATT_LEDGER=PATH",
    )


def _statements(script: str) -> Iterator[str]:
    """The statements of a script. `executescript` would end the transaction that they belong in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _cannot_make(path: Path, cause: OSError | str) -> LedgerError:
    text = (cause.strerror or str(cause)) if isinstance(cause, OSError) else cause
    return LedgerError(
        f"cannot make the ledger {path}: {text}",
        "what is measured now would not be kept",
        "make the folder writable, or name another file: NEGAWATT_LEDGER=PATH",
    )


def _code(error: sqlite3.Error) -> int:
    """Primary result code of SQLite; -1 if Python's module raised the error by itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else int(code) & 0xFF


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


def _explained(error: sqlite3.Error, path: Path) -> LedgerError:
    advice = _ADVICE.get(_code(error), _ELSEWHERE)
    return LedgerError(
        f"the ledger {path}: {error}",
        "this record could not be written or read; those already in the file were not changed",
        advice.replace("{path}", str(path)),
    )
