"""Chain: each record carries a hash over the one before it, so that a change, a gap or a swap anywhere shows.

The chain shows damage and careless edits. Whoever can write the file can also compute the whole chain anew, and nothing
within a file tells that its last records were cut off: against both, keep a head hash elsewhere and give it to
`verify`. Power curves (table `samples`) are thinned out with age, and are not part of it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from negawatt.ledger.entry import Entry
from negawatt.ledger.faults import ERRORS

CONTENT = ", ".join(field.name for field in fields(Entry))
"""Columns of a record's content, in the order in which they are hashed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """The first thing that is wrong in a ledger.

    Attributes:
        record_id: of the first damaged record; None if it is not about one record.
        what: what is wrong, as a sentence.
    """

    record_id: int | None
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What became of checking a ledger.

    Attributes:
        records: number of records, from the first, that are as they were written.
        head: hash of the last of them; "" without records. Kept elsewhere, it shows later that no record was cut off.
        fault: the first damage; None if the ledger is intact.
    """

    records: int
    head: str
    fault: Damage | None


def digest(previous: str, record_id: int, content: Sequence[Any]) -> str:
    """Hash of a record.

    Args:
        previous: hash of the record before it; "" for the first.
        record_id: its number.
        content: values of `CONTENT`, as SQLite gives them back.

    Returns:
        SHA-256 (FIPS 180-4) of the JSON array [previous, record_id, *content] without spaces, in hexadecimal.

    Raises:
        TypeError: for a value that no record has.
    """
    text = json.dumps([previous, record_id, *content], separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def append(db: sqlite3.Connection, entry: Entry, record_id: int | None = None) -> int:
    """Add a record to the end of the chain, within a transaction that holds the right to write.

    Args:
        db: the ledger.
        entry: what to add.
        record_id: its number; None: the next.

    Returns:
        Its number. Raises sqlite3.Error.
    """
    last_id, previous = db.execute("SELECT id, hash FROM records ORDER BY id DESC LIMIT 1").fetchone() or (0, "")
    number, content = record_id or last_id + 1, astuple(entry)
    row = (number, digest(previous, number, content), *content)
    marks = ", ".join("?" * len(row))
    db.execute(f"INSERT INTO records (id, hash, {CONTENT}) VALUES ({marks})", row)  # noqa: S608 -- fixed names
    return number


def stored(db: sqlite3.Connection, entry: Entry) -> tuple[int, bool] | None:
    """The number of the record with the identity of `entry`, and whether it says the same; None if there is none."""
    found = db.execute(
        f"SELECT id, {CONTENT} FROM records WHERE machine_id = ? AND boot_id = ? AND sequence = ?",  # noqa: S608
        (entry.machine_id, entry.boot_id, entry.sequence),
    ).fetchone()
    return None if found is None else (found[0], tuple(found[1:]) == astuple(entry))


def verify(db: sqlite3.Connection, expected: Sequence[tuple[Any, ...]], head: str | None = None) -> Verified:
    """Check every record, the tables' own rules and SQLite's structure.

    Args:
        db: the ledger.
        expected: what `schema.objects` gives for a fresh ledger.
        head: a hash that has to occur in the chain; None: none has to.
    """
    intact, previous, met, fault = 0, "", head is None, None
    try:
        for record_id, stated, *content in _rows(db):
            fault = _fault(db, intact, previous, (record_id, stated, *content))
            if fault:
                break
            intact, previous = intact + 1, stated
            met = met or stated == head
    except ERRORS as error:
        fault = Damage(record_id=intact + 1, what=f"record {intact + 1} cannot be read: {error}")
    fault = fault or _structure_fault(db, expected)
    if not fault and not met:
        fault = Damage(record_id=None, what=f"no record has the hash {head}: records were cut off, or it is another's")
    return Verified(records=intact, head=previous, fault=fault)


def objects(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Tables, indexes and triggers with the SQL that made them, sorted."""
    return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()


def _rows(db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    yield from db.execute(f"SELECT id, hash, {CONTENT} FROM records ORDER BY id")  # noqa: S608 -- fixed names


def _fault(db: sqlite3.Connection, intact: int, previous: str, row: tuple[Any, ...]) -> Damage | None:
    """What is wrong with the record behind `intact` good ones."""
    record_id, stated, *content = row
    due = intact + 1
    if not isinstance(record_id, int):
        return Damage(record_id=due, what=f"record {due} has no number: the table was changed")
    if record_id > due:
        gone = f"record {due} is" if record_id == due + 1 else f"records {due} to {record_id - 1} are"
        return Damage(record_id=due, what=f"{gone} missing: after {intact} comes {record_id}")
    if record_id < due:
        return Damage(record_id=due, what=f"records are out of order: after {intact} comes {record_id}")
    if _matches(previous, due, content, stated):
        return None
    moved = next((i for i, other, *its in _rows(db) if i != due and _matches(previous, due, its, other)), None)
    if moved:
        return Damage(record_id=due, what=f"records are out of order: record {due} stands in the place of {moved}")
    return Damage(record_id=due, what=f"record {due} was changed, or the one that came before it is missing")


def _matches(previous: str, record_id: int, content: Sequence[Any], stated: object) -> bool:
    try:
        return digest(previous, record_id, content) == stated
    except TypeError:  # bytes where there was text
        return False


def _structure_fault(db: sqlite3.Connection, expected: Sequence[tuple[Any, ...]]) -> Damage | None:
    """Damage outside of the records' content."""
    try:
        found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        present = objects(db)
    except ERRORS as error:
        found, present = str(error), []
    if found != "ok":
        return Damage(record_id=None, what=f"the file is damaged: {found}")
    odd = [row[1] for row in expected if row not in present] + [row[1] for row in present if row not in expected]
    if odd:
        return Damage(record_id=None, what=f"{odd[0]} was removed, changed or added: it keeps records from change")
    return None
