"""`negawatt ledger`: look up what was measured."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from negawatt.cli import Commands
from negawatt.core.errors import NegawattError, UsageError

if TYPE_CHECKING:
    from negawatt.ledger.store import Record

command = Commands(
    name="ledger",
    help="Look up what was measured.\n\nThe ledger is the file NEGAWATT_LEDGER, by default in your state folder "
    "(`negawatt doctor` shows where). Records are only ever added.",
)


@command.command("list")
@click.option("--kind", metavar="KIND", help="Only run, trial, campaign, plan or apply.")
@click.option("--workload", metavar="NAME", help="Only this workload, or name of a run.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most the newest so many.")
@click.option("--json", "as_json", is_flag=True, help="Print whole records as JSON.")
def list_records(kind: str | None, workload: str | None, limit: int, as_json: bool) -> None:  # noqa: FBT001
    """List records, the newest last."""
    records = _read(kind=kind, workload=workload, limit=limit)
    if as_json:
        click.echo(json.dumps([_plain(record) for record in records], indent=1))
    elif records:
        _print(records)


@command.command()
@click.argument("record_id", metavar="ID", type=int)
def show(record_id: int) -> None:
    """Show one record, as JSON."""
    from negawatt.ledger.store import Ledger, default_path

    if not default_path().exists():
        raise UsageError(
            f"no ledger at {default_path()}", "there is nothing to show", "`negawatt run -- CMD` starts one"
        )
    with Ledger.open() as ledger:
        click.echo(json.dumps(_plain(ledger.get(record_id)), indent=1))


@command.command()
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE instead of stdout.")
def export(form: str, out: Path | None) -> None:
    """Export all records. In CSV the last column is the body, as JSON."""
    records, write = _read(), {"jsonl": _write_jsonl, "csv": _write_csv}[form]
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


def _read(kind: str | None = None, workload: str | None = None, limit: int | None = None) -> list[Record]:
    """Records of the ledger; none, with a word on stderr, if there is no ledger yet: looking must not make one."""
    from negawatt.ledger.store import KINDS, Ledger, default_path

    if kind is not None and kind not in KINDS:
        raise UsageError(f"--kind {kind}", "no record is of that kind", f"use one of {', '.join(KINDS)}")
    if not default_path().exists():
        click.echo(f"negawatt: no ledger at {default_path()} yet; `negawatt run -- CMD` starts one", err=True)
        return []
    with Ledger.open() as ledger:
        return ledger.records(kind=kind, workload=workload, limit=limit)


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


def _print(records: Sequence[Record]) -> None:
    from rich.console import Console
    from rich.table import Table

    from negawatt.report.numbers import clean, energy

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("id", "written (UTC)", "kind", "workload", "phase", "energy", "source"):
        table.add_column(name, justify="right" if name in ("id", "energy") else "left", overflow="fold")
    for r in records:
        joules = "" if r.energy_j is None else energy(r.energy_j)
        cells = (str(r.id), r.created_utc[:19].replace("T", " "), r.kind, r.workload, r.phase, joules, r.source)
        table.add_row(*(clean(cell) for cell in cells))
    Console(markup=False, highlight=False, emoji=False).print(table)
