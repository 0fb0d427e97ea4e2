"""Absorb: bring the records of another ledger, as another machine or a backup has it, into this one."""

from __future__ import annotations

import sqlite3
from dataclasses import fields
from pathlib import Path

from negawatt.core.errors import LedgerError
from negawatt.ledger import chain
from negawatt.ledger.entry import Entry
from negawatt.ledger.merge import Merged
from negawatt.ledger.schema import expected_objects

_NAMES = tuple(field.name for field in fields(Entry))


def absorb(into: sqlite3.Connection, other: sqlite3.Connection, path: Path) -> Merged:
    """Take in what is new of another ledger, in the order of its records, within a transaction of the caller on `into`.

    Records are known by (machine_id, boot_id, sequence), so that each is taken once; their numbers and hashes are new,
    because they continue this chain.

    Args:
        into: the ledger.
        other: the other one; only read.
        path: of the other one, for messages.

    Returns:
        What became of its records. Raises LedgerError if it is not intact, sqlite3.Error.
    """
    other.execute("BEGIN")  # one view of it: what is checked is what is taken
    found = chain.verify(other, expected_objects())
    if found.fault:
        raise LedgerError(
            f"the ledger {path} is damaged: {found.fault.what}",
            "nothing was taken: what was changed would stand here as if it had been measured",
            "merge a copy that `negawatt ledger verify` finds intact",
        )
    added, known, conflicting = 0, 0, []
    for row in other.execute(f"SELECT {chain.CONTENT} FROM records ORDER BY id"):  # noqa: S608 -- fixed names
        entry = Entry(**dict(zip(_NAMES, row, strict=True)))
        there = chain.stored(into, entry)
        if there is None:
            chain.append(into, entry)
            curve = other.execute("SELECT * FROM samples WHERE run = ?", (entry.sequence,)).fetchall()
            into.executemany("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?, ?)", curve)
            added += 1
        elif there[1]:
            known += 1
        else:
            conflicting.append(entry.sequence)
    faults = tuple(f"{path}: the ledger has another record {name}" for name in conflicting)
    return Merged(added=added, known=known, faults=faults)
