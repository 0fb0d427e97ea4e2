"""`negawatt ledger`: look up what was measured, add it up, and check that nothing was lost or changed."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from negawatt.cli import Commands
from negawatt.core.errors import LedgerError, NegawattError, UsageError

if TYPE_CHECKING:
    from negawatt.ledger.merge import Merged
    from negawatt.ledger.store import Ledger, Record, Total
    from negawatt.serve.book import ServedTotal

command = Commands(
    name="ledger",
    help="Look up what was measured.\n\nThe ledger is the file NEGAWATT_LEDGER, by default in your state folder "
    "(`negawatt doctor` shows where). Records are only ever added. What running processes have spooled is taken in "
    "first.",
)

_as_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@command.command("list")
@click.option("--kind", metavar="KIND", help="Only run, trial, campaign, plan, apply or requests.")
@click.option("--workload", metavar="NAME", help="Only this workload, or name of a run.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most the newest so many.")
@click.option("--json", "as_json", is_flag=True, help="Print whole records as JSON.")
def list_records(kind: str | None, workload: str | None, limit: int, as_json: bool) -> None:  # noqa: FBT001
    """List records, the newest last.

    ± is the standard deviation of the meter's error. The last column says what became of a run that did not end as it
    should, and of which other one it is a part. What a gateway served is a part of its run, and is only listed with
    `--kind requests`; `show` adds it up.
    """
    _check_kind(kind)
    with _merged_ledger() as ledger:
        records = [] if ledger is None else _listed(ledger, kind, workload, limit)
        around = {} if ledger is None or as_json else {key: ledger.find(key) for key in set(map(_parent, records))}
    if as_json:
        _say(records)
    elif records:
        _print(records, {key: outer.id for key, outer in around.items() if outer})


@command.command()
@click.argument("record_id", metavar="ID", type=int)
def show(record_id: int) -> None:
    """Show one record, as JSON. Of a gateway's run: with sums of what it served, by path and model."""
    with _merged_ledger() as ledger:
        if ledger is None:
            raise UsageError(f"no record {record_id}: no ledger yet", "there is nothing to show", _START)
        record = ledger.get(record_id)
        served = _served(ledger, record)
    _say({**_plain(record), "served": served} if served else record)


@command.command()
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE instead of stdout.")
def export(form: str, out: Path | None) -> None:
    """Export all records. In CSV the last column is the body, as JSON."""
    with _merged_ledger() as ledger:
        records = [] if ledger is None else ledger.records()
    write = {"jsonl": _write_jsonl, "csv": _write_csv}[form]
    if out is None:
        write(records, sys.stdout)
        return
    part = out.with_name(f".{out.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            write(records, file)
        part.replace(out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise NegawattError(
            f"cannot write {out}: {error.strerror}", "the export is not complete", "name another file with --out"
        ) from error


@command.command()
@click.option("--kind", metavar="KIND", help="Only run, trial, campaign, plan, apply or requests.")
@click.option("--workload", metavar="NAME", help="Only this workload, or name of a run.")
@_as_json
def total(kind: str | None, workload: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Add up joules per workload, kind and source.

    Joules of different sources are not added, nor are kinds: a plan's joules hold those of its trials. Runs inside of
    other runs are left out: the outer ones hold their joules, but for those from after their end. The ± is the most
    that the standard deviation can be: the sum of the records' own, as if all meters erred the same way.
    """
    _check_kind(kind)
    with _merged_ledger() as ledger:
        totals = [] if ledger is None else ledger.totals(kind=kind, workload=workload)
    if as_json:
        _say(totals)
    elif totals:
        _print_totals(totals)


@command.command()
@click.option("--head", metavar="HASH", help="A head hash noted earlier, which has to be in the ledger still.")
@_as_json
def verify(head: str | None, as_json: bool) -> None:  # noqa: FBT001
    """Check that no record was changed, removed or moved.

    Prints the hash of the last record. Note it elsewhere: only that shows, with --head, that the last records were not
    cut off or the whole file made anew. Exit code 0: intact; 1: not.
    """
    from negawatt.ledger.chain import Verified
    from negawatt.ledger.store import default_path
    from negawatt.report.numbers import plural

    if head is not None and (len(head) != 64 or set(head.lower()) - set("0123456789abcdef")):
        raise UsageError(f"--head {head}", "a hash has 64 hexadecimal digits", "copy what `verify` printed")
    with _merged_ledger() as ledger:
        if ledger is None and head is not None:
            raise LedgerError(f"no ledger at {default_path()}", "that record is gone", "restore the file from a backup")
        found = ledger.verify(head and head.lower()) if ledger else Verified(records=0, head="", fault=None)
    intact = plural(found.records, "record")
    if as_json:
        _say(found)
    elif found.fault:
        click.echo(f"damaged: {found.fault.what}\nintact before it: {intact}")
    else:
        click.echo(f"intact: {intact}, head {found.head or 'none yet'}")
    if found.fault:
        sys.exit(1)


@command.command()
@click.argument("places", metavar="[FOLDER|LEDGER]...", nargs=-1, type=click.Path(exists=True, path_type=Path))
@_as_json
def merge(places: tuple[Path, ...], as_json: bool) -> None:  # noqa: FBT001
    """Take in what processes have spooled, here or in each FOLDER, or all records of another LEDGER.

    Hosts that share a disk spool to one FOLDER there (NEGAWATT_SPOOL=FOLDER), and one of them merges it. Safe to
    repeat: a record is taken once. Exit code 1: something was not understood, or not intact; it was left as it is.
    """
    from negawatt.ledger.merge import Merged
    from negawatt.ledger.store import Ledger

    for place in places:
        _check_place(place)
    merged = Merged()
    with Ledger.open() as ledger:
        for place in places:
            merged += ledger.merge(place) if place.is_dir() else ledger.merge_ledger(place)
        if not places:
            merged += ledger.merge()
    _warn_of(merged)
    if as_json:
        _say(merged)
    else:
        click.echo(f"{merged.added} added, {merged.interrupted} of them interrupted; {merged.known} known before")
    if merged.faults:
        sys.exit(1)


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {error.strerror}", "nothing was taken", "make it readable") from error


def _check_place(place: Path) -> None:
    """Raise for what is neither a ledger nor a folder; a word on stderr where there is less to take than it seems."""
    from negawatt.ledger.merge import waiting
    from negawatt.ledger.paths import spool_folder

    if place.is_dir():
        if not waiting(place):
            spools = "spools are the files NAME.jsonl in the folder LEDGER.spool beside a ledger, or in NEGAWATT_SPOOL"
            click.echo(f"negawatt: no spool in {place}, so there is nothing to take; {spools}", err=True)
    elif not place.is_file():
        raise UsageError(
            f"{place} is neither a file nor a folder",
            "there is nothing to take",
            "name a ledger, or a folder of spools",
        )
    elif not _is_database(place):
        raise LedgerError(
            f"{place} is not a ledger",
            "nothing was taken",
            "name the SQLite file of a ledger; for spools (NAME.jsonl), name the folder that they are in",
        )
    elif waiting(spool_folder(place)):
        more = spool_folder(place)
        click.echo(f"negawatt: {more} has records that are not in {place}: `negawatt ledger merge {more}`", err=True)


@command.command()
@click.option(
    "--keep-days", type=click.FloatRange(min=0), metavar="N", default=14.0, show_default="14", help="Keep so many days."
)
@click.option("--dry-run", is_flag=True, help="Say what would be merged, and leave it.")
@_as_json
def rollup(keep_days: float, dry_run: bool, as_json: bool) -> None:  # noqa: FBT001
    """Turn old power curves into one-minute means.

    The energy under a curve stays the same, and records are kept for ever. The space is used again.
    """
    from negawatt.ledger.retention import RolledUp
    from negawatt.report.numbers import plural

    with _merged_ledger() as ledger:
        done = ledger.rollup(keep_days=keep_days, dry_run=dry_run) if ledger else RolledUp(points=0, means=0)
    if as_json:
        _say(done)
    else:
        become = "would become" if dry_run else "became"
        click.echo(f"{plural(done.points, 'point')} {become} {plural(done.means, 'mean')}")


def _listed(ledger: Ledger, kind: str | None, workload: str | None, limit: int) -> list[Record]:
    """The newest records; of what a gateway served there are so many that nothing else would be seen."""
    leave_out = "requests" if kind is None else None
    return ledger.records(kind=kind, workload=workload, leave_out=leave_out, limit=limit)


def _served(ledger: Ledger, record: Record) -> Sequence[ServedTotal]:
    """Sums of what a gateway served in a run, by path and model; none for any other record."""
    from negawatt.serve.book import KIND, rows_of, totals

    parts = ledger.parts(record.sequence, KIND) if record.kind == "run" else ()
    return totals(row for part in parts for row in rows_of(part.body))


_START = "`negawatt run -- CMD` starts one"


@contextmanager
def _merged_ledger() -> Iterator[Ledger | None]:
    """The ledger with all that was spooled; None, with a word on stderr, if there is none: looking makes none."""
    from negawatt.ledger.merge import waiting
    from negawatt.ledger.paths import spool_folder
    from negawatt.ledger.schema import may_write
    from negawatt.ledger.store import Ledger, default_path

    path = default_path()
    if not path.exists() and not waiting(spool_folder(path)):
        click.echo(f"negawatt: no ledger at {path} yet; {_START}", err=True)
        yield None
        return
    if path.exists() and not may_write(path):
        click.echo(f"negawatt: {path} cannot be written here: what is spooled was not taken in", err=True)
        with Ledger.open_read_only(path) as ledger:
            yield ledger
        return
    with Ledger.open(path) as ledger:
        try:
            _warn_of(ledger.merge())
        except LedgerError as error:  # what is in the ledger can be looked at all the same
            click.echo(f"negawatt: {error}", err=True)
        yield ledger


def _warn_of(merged: Merged) -> None:
    """Say on stderr what a merge did not take."""
    from negawatt.report.numbers import clean

    for fault in merged.faults:
        click.echo(f"negawatt: not merged, and left as it is: {clean(fault)}", err=True)


def _check_kind(kind: str | None) -> None:
    from negawatt.ledger.store import KINDS

    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind {kind}", "no record is of that kind", f"use one of {', '.join(KINDS)}")


def _say(value: object) -> None:
    from negawatt.core.codec import to_json

    click.echo(json.dumps(to_json(value), indent=1))


def _plain(record: Record) -> dict[str, Any]:
    from negawatt.core.codec import to_json

    plain: dict[str, Any] = to_json(record)
    return plain


def _write_jsonl(records: Sequence[Record], file: TextIO) -> None:
    file.writelines(json.dumps(_plain(record)) + "\n" for record in records)


def _write_csv(records: Sequence[Record], file: TextIO) -> None:
    from dataclasses import fields

    from negawatt.ledger.store import Record

    writer = csv.DictWriter(file, [field.name for field in fields(Record)])
    writer.writeheader()
    for record in records:
        plain = _plain(record)
        writer.writerow({**plain, "body": json.dumps(plain["body"])})


def _print(records: Sequence[Record], ids: Mapping[str, int]) -> None:
    rows = []
    for r in records:
        written = r.created_utc[:19].replace("T", " ")
        energy = _energy(r.energy_j, r.body.get("energy_sd_j"))
        rows.append((str(r.id), written, r.kind, r.workload, r.phase, energy, r.source, _note(r, ids)))
    _table(("id", "written (UTC)", "kind", "workload", "phase", "energy", "source", "note"), rows)


def _parent(record: Record) -> str:
    return str(record.body.get("parent") or "")


def _note(record: Record, ids: Mapping[str, int]) -> str:
    """What became of a run that did not end as it should, and of which other one it is a part."""
    body, parent = record.body, _parent(record)
    notes = ["interrupted"] if body.get("interrupted") else []
    if body.get("error"):
        notes.append(str(body["error"]).partition(":")[0])
    if body.get("exit_code"):
        notes.append(f"exit code {body['exit_code']}")
    if body.get("signal"):
        notes.append(str(body["signal"]))
    if parent:
        notes.append(f"part of #{ids[parent]}" if parent in ids else "part of a run that is not here")
    return ", ".join(notes)


def _print_totals(totals: Sequence[Total]) -> None:
    rows = [
        (
            t.workload, t.kind, t.source, _energy(t.energy_j, t.energy_sd_j), str(t.records),
            str(t.unknown) if t.unknown else "",
        )
        for t in totals
    ]  # fmt: skip
    _table(("workload", "kind", "source", "energy", "records", "of unknown energy"), rows)


def _energy(energy_j: float | None, sd_j: object) -> str:
    from negawatt.report.numbers import energy

    return "" if energy_j is None else energy(energy_j, sd_j if isinstance(sd_j, int | float) else None)


_NUMBERS = ("id", "energy", "records", "of unknown energy")
_FOLDED = ("workload", "note")
_OPTIONAL = ("phase", "note", "of unknown energy")


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from negawatt.report.numbers import clean

    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [i for i, name in enumerate(names) if name not in _OPTIONAL or any(row[i] for row in rows)]
    for i in shown:
        justify: Literal["left", "right"] = "right" if names[i] in _NUMBERS else "left"
        table.add_column(names[i], justify=justify, overflow="fold", no_wrap=names[i] not in _FOLDED)
    for row in rows:
        table.add_row(*(clean(row[i]) for i in shown))
    Console(markup=False, highlight=False, emoji=False).print(table)
