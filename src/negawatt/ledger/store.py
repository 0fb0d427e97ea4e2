"""Ledger: an append-only record of everything that was measured, in one SQLite file.

Many processes of one machine may append at once. A record is on the disk when `append` returns (write-ahead log,
synchronous=FULL), and a process that is killed leaves no half record. What must not wait for a disk goes through a
`spool.Spool`. The write-ahead log needs shared memory, so the file belongs on a disk of this machine, not on a network
share that several machines write to: `spool` says how those share one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from negawatt.core.errors import LedgerError, UsageError
from negawatt.ledger import chain, merge, retention
from negawatt.ledger.absorb import absorb
from negawatt.ledger.chain import Verified
from negawatt.ledger.checks import KINDS, checked, json_text, plain, utc_now
from negawatt.ledger.entry import Entry, Record
from negawatt.ledger.faults import ERRORS, PASSING, cannot_make, code, explained
from negawatt.ledger.merge import Kept, Merged
from negawatt.ledger.origin import next_sequence, this_process
from negawatt.ledger.paths import default_path, spool_folder
from negawatt.ledger.retention import KEEP_DAYS, RolledUp, Sample
from negawatt.ledger.schema import SCHEMA, connect, connect_read_only, expected_objects
from negawatt.ledger.spooled import Spooled
from negawatt.ledger.totals import TOTALS, Total

__all__ = ["KINDS", "SCHEMA", "Ledger", "Record", "Total", "default_path", "fault"]

_COLUMNS = ", ".join(field.name for field in fields(Record))


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
        return cannot_make(path, error)
    if not parent.is_dir():
        return cannot_make(path, f"{parent} is not a folder")
    may = os.access(parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)
    return None if may else cannot_make(path, f"{parent} is not writable")


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
        """Open a ledger; make it, readable by its owner only, if there is none. An older format is brought up to date.

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
            raise cannot_make(path, error) from error
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                return cls(path, connect(path, timeout_s))
            except ERRORS as error:
                # Setting the journal mode does not wait for other processes, whatever the timeout.
                if code(error) not in PASSING or time.monotonic() > deadline_s:
                    raise explained(error, path) from error
            time.sleep(0.02)

    @classmethod
    def open_read_only(cls, path: Path, *, timeout_s: float = 30.0) -> Ledger:
        """Open a ledger to look at it, without changing anything in its folder: an archive, or another user's.

        Args:
            path: the file.
            timeout_s: how long to wait for other processes.

        Raises:
            LedgerError: if it cannot be read, is damaged, or is not a ledger of this version.
        """
        try:
            return cls(path, connect_read_only(path, timeout_s))
        except ERRORS as error:
            raise explained(error, path) from error
        except OSError as error:
            raise LedgerError(
                f"cannot read the ledger {path}: {error.strerror}",
                "there is nothing to show",
                "make it readable, or name another file",
            ) from error

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
        origin = this_process()
        entry = Entry(
            created_utc=utc_now(),
            host=plain(origin.host),
            kind=kind,
            workload=plain(workload),
            phase=plain(phase),
            campaign=plain(campaign),
            energy_j=checked(kind, energy_j),
            source=plain(source),
            machine_id=plain(origin.machine_id),
            boot_id=origin.boot_id,
            sequence=next_sequence(),
            body=json_text(kind, body),
        )
        with self.writing():
            return chain.append(self._db, entry)

    def records(
        self, *, kind: str | None = None, workload: str | None = None, campaign: str | None = None,
        leave_out: str | None = None, limit: int | None = None,
    ) -> list[Record]:  # fmt: skip
        """Records, oldest first, but for those of the kind `leave_out`; with `limit`, the newest so many.

        Raises:
            LedgerError: if they cannot be read.
        """
        where, values = _where(kind=kind, workload=workload, campaign=campaign)
        if leave_out is not None:
            where, values = f"{where} AND kind <> ?", [*values, leave_out]
        newest = f"SELECT {_COLUMNS} FROM records WHERE {where} ORDER BY id DESC LIMIT ?"  # noqa: S608 -- fixed names
        return self._records(newest, [*values, -1 if limit is None else max(0, limit)])[::-1]

    def parts(self, run: str, kind: str) -> Iterator[Record]:
        """The records of a kind that belong to a run (`Record.campaign`), one at a time: there may be very many.

        Args:
            run: `sequence` of its record.
            kind: one of `KINDS`.

        Raises:
            LedgerError: if they cannot be read.
        """
        newest, query = 0, f"SELECT {_COLUMNS} FROM records WHERE campaign = ? AND kind = ? AND id > ?"  # noqa: S608
        while page := self._records(f"{query} ORDER BY id LIMIT 100", [run, kind, newest]):
            yield from page
            newest = page[-1].id

    def get(self, record_id: int) -> Record:
        """One record. Raises UsageError if there is none of that id, LedgerError if it cannot be read."""
        # As text: SQLite compares it as the number it is, and has no limit on its size.
        found = self._records(f"SELECT {_COLUMNS} FROM records WHERE id = ?", [str(record_id)])  # noqa: S608
        if not found:
            raise UsageError(
                f"no record {record_id} in {self._path}",
                "there is nothing to show",
                "`negawatt ledger list` shows the ids",
            )
        return found[0]

    def find(self, sequence: str) -> Record | None:
        """The record with the sequence that `Spool.put` or `Spool.open_run` gave; None if it is not merged yet.

        Raises:
            LedgerError: if it cannot be read.
        """
        found = self._records(f"SELECT {_COLUMNS} FROM records WHERE sequence = ?", [sequence])  # noqa: S608
        return found[0] if found else None

    def totals(self, *, kind: str | None = None, workload: str | None = None) -> list[Total]:
        """Sums of energy, one per workload, kind and source, sorted; energies of different sources are never added.

        A record whose body names as its "parent" another one that is here is a part of it: only the joules from after
        the parent's end are added, which its body gives as "beyond_j". Nor are the sums to be added over kinds: a
        plan's joules hold those of its trials.

        Raises:
            LedgerError: if it cannot be read.
        """
        where, values = _where(kind=kind, workload=workload)
        with self._reading():
            rows = self._db.execute(TOTALS.format(where=where), values).fetchall()
        names = [field.name for field in fields(Total)]
        return [Total(**dict(zip(names, row, strict=True))) for row in rows]

    def verify(self, head: str | None = None) -> Verified:
        """Check every record against the chain, the rules that keep it, and SQLite's own structure.

        Args:
            head: hash of a record, kept elsewhere, that has to be in the ledger; None: none has to.
        """
        return chain.verify(self._db, expected_objects(), head)

    def merge(self, folder: Path | None = None, *, wait_s: float = 30.0) -> Merged:
        """Take in what processes have spooled. Each record once, however often; records keep the time of their `put`.

        Args:
            folder: of the spools; None: the one beside the ledger.
            wait_s: how long to wait for another process that merges the folder.

        Raises:
            BusyError: if the other process took longer.
            LedgerError: if the ledger cannot be written or the folder not read. What was not merged stays spooled.
        """
        return merge.merge_folder(folder or spool_folder(self._path), self._keep, wait_s)

    def merge_ledger(self, path: Path) -> Merged:
        """Take in the records and power curves of another ledger, such as another machine's; each record once.

        Args:
            path: the other file. It is only read, and what is spooled beside it is not taken.

        Raises:
            UsageError: if it is this ledger.
            LedgerError: if it cannot be read, is not intact, or this one cannot be written; then nothing was taken.
        """
        if path.exists() and path.samefile(self._path):
            raise UsageError(f"{path} is this ledger", "it has all of its records already", "name another one")
        with Ledger.open_read_only(path) as other, self.writing():
            return absorb(self._db, other._db, path)  # noqa: SLF001 -- one of this class

    def add_samples(self, run: str, points: Sequence[tuple[float, float]], *, scope: str = "") -> int:
        """Add to the power curve of a run.

        Args:
            run: `sequence` of its record.
            points: (time_s, power_w) in the order of time, behind those that are there: the mean power since the point
                before, or since the start of the run.
            scope: what was measured; "": all scopes together.

        Returns:
            How many were added. Raises LedgerError for points that are no curve, or if they cannot be written.
        """
        with self.writing():
            return retention.add(self._db, run, points, scope, time.time())

    def samples(self, run: str) -> list[Sample]:
        """The power curves of a run, by scope and time; none if it has none. Raises LedgerError."""
        with self._reading():
            return retention.read(self._db, run)

    def rollup(self, now: datetime | None = None, *, keep_days: float = KEEP_DAYS, dry_run: bool = False) -> RolledUp:
        """Turn old power curves into one-minute means, which keep the energy under them. Records stay as they are.

        Args:
            now: what age is counted to, with its time zone; None: the present.
            keep_days: age from which points are merged, by when they were added [days].
            dry_run: count only.

        Raises:
            LedgerError: if it cannot be written; then nothing was merged.
        """
        with self._reading() if dry_run else self.writing():
            return retention.roll_up(self._db, (now or datetime.now(UTC)).timestamp(), keep_days, dry_run=dry_run)

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
        with self._reading():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except ERRORS as error:
            raise explained(error, self._path) from error

    def _records(self, query: str, values: list[Any]) -> list[Record]:
        with self._reading():
            rows = self._db.execute(query, values).fetchall()
        try:
            return [_record(row) for row in rows]
        except ValueError as error:
            raise LedgerError(
                f"the ledger {self._path} holds a record that is no JSON: {error}",
                "the file was changed by something else",
                f"restore {self._path} from a backup",
            ) from error

    def _keep(self, spooled: Sequence[Spooled]) -> Kept:
        """Write what is new of some spooled records, in one transaction."""
        found: dict[str, set[str]] = {"added": set(), "known": set(), "conflicting": set()}
        with self.writing():
            for one in spooled:
                entry = one.entry
                there = chain.stored(self._db, entry)
                if there is None:
                    chain.append(self._db, entry)
                    added_s = datetime.fromisoformat(entry.created_utc).timestamp()
                    retention.add(self._db, entry.sequence, one.power_curve, "", added_s)
                same = "known" if there and there[1] else "conflicting"
                found["added" if there is None else same].add(entry.sequence)
        return Kept(**{name: frozenset(sequences) for name, sequences in found.items()})


def _where(**wanted: str | None) -> tuple[str, list[str | int]]:
    """A condition on columns, and its values; None: any value."""
    conditions = [f"{column} = ?" for column, value in wanted.items() if value is not None]
    return " AND ".join(conditions) or "TRUE", [value for value in wanted.values() if value is not None]


def _record(row: tuple[Any, ...]) -> Record:
    *columns, body = row
    names = _COLUMNS.split(", ")[:-1]
    return Record(**dict(zip(names, columns, strict=True)), body=json.loads(body))
