"""Schema: the tables of a ledger, and how an older file becomes one of this version."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from negawatt.core.errors import LedgerError
from negawatt.ledger import chain
from negawatt.ledger.entry import Entry
from negawatt.ledger.faults import cannot_make

SCHEMA = 2
"""Version of the file's tables, kept in `PRAGMA user_version`. 1: first. 2: identity and hash per record; samples."""

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
    machine_id TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    sequence TEXT NOT NULL,
    hash TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX records_by_campaign ON records (campaign, id);
CREATE UNIQUE INDEX records_by_origin ON records (sequence, machine_id, boot_id);
CREATE TRIGGER records_no_update BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'records are never changed'); END;
CREATE TRIGGER records_no_delete BEFORE DELETE ON records
    BEGIN SELECT RAISE(ABORT, 'records are never deleted'); END;
CREATE TRIGGER records_no_replace BEFORE INSERT ON records
    WHEN EXISTS (SELECT 1 FROM records WHERE id = NEW.id)
    OR EXISTS (SELECT 1 FROM records
        WHERE machine_id = NEW.machine_id AND boot_id = NEW.boot_id AND sequence = NEW.sequence)
    BEGIN SELECT RAISE(ABORT, 'records are never replaced'); END;
CREATE TABLE samples (
    run TEXT NOT NULL,
    scope TEXT NOT NULL,
    time_s REAL NOT NULL,
    power_w REAL NOT NULL,
    span_s REAL NOT NULL,
    added_s REAL NOT NULL,
    PRIMARY KEY (run, scope, time_s)
) WITHOUT ROWID;
"""

_COLUMNS_1 = "id, created_utc, host, kind, workload, phase, campaign, energy_j, source, body"


def connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A checked connection to a ledger of this version, made or brought up to date if need be.

    Raises:
        sqlite3.Error: if it cannot be opened now.
        LedgerError: for a file that belongs to a newer version or another program.
    """
    _make_private(path)
    db = sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
    try:
        found = _version(db, path)
        if found == 0:
            db.execute("PRAGMA journal_mode = WAL")  # kept in the file: set once, when it is made
        db.execute("PRAGMA synchronous = FULL")
        if found != SCHEMA:
            db.execute("BEGIN IMMEDIATE")
            _bring_up(db, _version(db, path))  # looked at again: another process may have been faster
            db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def connect_read_only(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A checked connection that writes nothing, to a ledger of this version.

    Without a log beside it, nobody has a file open that cannot be written here, and it is read as it stands
    (immutable): SQLite would make a log and an index, which its owner could not use afterwards.

    Raises:
        sqlite3.Error: if it cannot be opened.
        LedgerError: for a file of another version or program, or with a log that cannot be read without its index.
        OSError: if it is not there.
    """
    log, index = (path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))
    if may_write(path):
        mode = "rw"  # cleans up its log, as `ro` does not
    elif log.exists() and index.exists():
        mode = "ro"
    elif log.exists() and log.stat().st_size:
        raise LedgerError(
            f"{path} cannot be written, and its newest records are in {log.name}, without the index {index.name}",
            "without an index, they cannot be read in place, and would be missing",
            f"copy both to a folder of yours: `cp {path} {log} FOLDER`, then NEGAWATT_LEDGER=FOLDER/{path.name}",
        )
    else:
        mode = "ro&immutable=1"
    path.stat()
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", timeout=timeout_s, isolation_level=None, uri=True)
    try:
        db.execute("PRAGMA query_only = ON")
        found = _version(db, path)
    except BaseException:
        db.close()
        raise
    if found == SCHEMA:
        return db
    db.close()
    raise LedgerError(
        f"{path} is a ledger of format {found}" if found else f"{path} is empty: no ledger yet",
        f"this negawatt reads format {SCHEMA}, and may not bring the file up to date here",
        f"copy it to a folder of yours: `cp {path} FOLDER`, then NEGAWATT_LEDGER=FOLDER/{path.name}",
    )


def may_write(path: Path) -> bool:
    """Whether this user may write a file, and make others beside it."""
    effective = os.access in os.supports_effective_ids
    wanted = ((path, os.W_OK), (path.absolute().parent, os.W_OK | os.X_OK))
    return all(os.access(one, mode, effective_ids=effective) for one, mode in wanted)


@cache
def expected_objects() -> tuple[tuple[Any, ...], ...]:
    """What `chain.objects` gives for a ledger that nobody has tampered with."""
    db = sqlite3.connect(":memory:")
    _create(db)
    found = tuple(chain.objects(db))
    db.close()
    return found


def _bring_up(db: sqlite3.Connection, version: int) -> None:
    """Make the tables, or turn those of an older version into them, within the transaction of the caller."""
    if version == SCHEMA:
        return
    if version == 0:
        _create(db)
    else:
        _chain_up(db)
    db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {SCHEMA}")


def _chain_up(db: sqlite3.Connection) -> None:
    """Format 1 to 2: the same records in the same order, each with an identity and a hash."""
    for trigger in ("records_no_update", "records_no_delete", "records_no_replace"):
        db.execute(f"DROP TRIGGER IF EXISTS {trigger}")
    db.execute("DROP INDEX IF EXISTS records_by_campaign")
    db.execute("ALTER TABLE records RENAME TO records_1")
    _create(db)
    rows = db.execute(f"SELECT {_COLUMNS_1} FROM records_1 ORDER BY id")  # noqa: S608 -- fixed names
    for number, *columns in rows:
        values = dict(zip(_COLUMNS_1.split(", ")[1:], columns, strict=True))
        chain.append(db, Entry(**values, machine_id="", boot_id="", sequence=f"1-{number}"), number)
    db.execute("DROP TABLE records_1")


def _create(db: sqlite3.Connection) -> None:
    for statement in _statements(_SCHEMA_SQL):
        db.execute(statement)


def _make_private(path: Path) -> None:
    """Make an empty file that only its owner may read: recorded command lines can hold secrets."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise cannot_make(path, error) from error


def _version(db: sqlite3.Connection, path: Path) -> int:
    """Format of the file; 0 if it is still empty. Raises LedgerError for one that is not ours to write."""
    # In one statement, and so of one moment: another process may be making the file.
    row: tuple[int, int, int] = db.execute(
        "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_master) "
        "FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    version, application, tables = row
    if application == _APPLICATION_ID and 1 <= version <= SCHEMA:
        return version
    if application == _APPLICATION_ID and version > SCHEMA:
        raise LedgerError(
            f"{path} is a ledger of format {version}; this negawatt writes format {SCHEMA}",
            "a record in an older format could be misread later, so the file was not touched",
            "upgrade negawatt (`pip install --upgrade negawatt`), or name another file: NEGAWATT_LEDGER=PATH",
        )
    if application == version == tables == 0:
        return 0
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
            yield statement.strip()
            statement = ""
