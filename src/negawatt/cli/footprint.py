"""`negawatt footprint`: what an energy is the same as, as ranges with their sources."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from negawatt.ledger.store import Ledger, Record
    from negawatt.report.equivalents import Amount


_LOOK_BACK = 1000
"""So many records are searched for the last run that is not a part of another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Energy:
    """An energy with its interval, and where it comes from.

    Attributes:
        energy_j, low_j, high_j: estimate and 95 % interval [J]; equal where no error is known.
        source: evidence, as in a reading.
        told: what it is, in words.
    """

    energy_j: float
    low_j: float
    high_j: float
    source: str
    told: str


@click.command()
@click.argument("energy", nargs=-1, metavar="[ENERGY]")
@click.option("--run", "run_id", type=int, metavar="ID", help="The energy of this record of the ledger.")
@click.option("--sources", is_flag=True, help="Say what each figure rests on, and where it was published.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures and their sources as JSON.")
def command(energy: tuple[str, ...], run_id: int | None, sources: bool, as_json: bool) -> None:  # noqa: FBT001
    """Show what an energy is the same as.

    ENERGY is a number with its unit, such as 3.2 kWh, 500 J or 1.3 GWh. Without it: the last run of the ledger; of
    runs inside one another, the outer.
    """
    from negawatt.report.equivalents import equivalents, parse_energy

    if energy and run_id is not None:
        raise UsageError(
            f"an energy ({' '.join(energy)}) and --run {run_id}", "only one of them can be meant", "leave one out"
        )
    if energy:
        energy_j = parse_energy(" ".join(energy))
        known = _Energy(energy_j=energy_j, low_j=energy_j, high_j=energy_j, source="declared", told="as typed")
    else:
        known = _recorded(run_id)
    amounts = [row.amount(known.energy_j, known.low_j, known.high_j) for row in equivalents()]
    if as_json:
        click.echo(json.dumps(_json(known, amounts), indent=1, allow_nan=False, ensure_ascii=False))
    else:
        _print(known, amounts)
        _print_sources(amounts) if sources else click.echo("\n--sources says what they rest on.")


def _recorded(run_id: int | None) -> _Energy:
    """The energy of a record: the one asked for, else the last run."""
    from negawatt.ledger.store import Ledger, default_path
    from negawatt.report.numbers import clean

    fix = "`negawatt run -- CMD` meters one; or type an energy: `negawatt footprint 3.2 kWh`"
    if not default_path().exists():
        raise UsageError(f"no ledger at {default_path()}", "there is no run to take the energy of", fix)
    with Ledger.open() as ledger:
        record = _last(ledger) if run_id is None else ledger.get(run_id)
    if record is None:
        raise UsageError("no run in the ledger", "there is no energy to show", fix)
    if record.energy_j is None:
        raise UsageError(f"record {record.id} has no energy", "nothing was measured, so nothing can be shown", fix)
    low_j, high_j, error = _interval(record)
    told = f"{record.kind} {record.id}, {clean(record.workload or record.campaign)}, {error}"
    return _Energy(energy_j=record.energy_j, low_j=low_j, high_j=high_j, source=record.source or "unknown", told=told)


def _last(ledger: Ledger) -> Record | None:
    """The run that was recorded last, and not a part of another one: the ranks of a job come after the job."""
    runs = ledger.records(kind="run", limit=_LOOK_BACK)
    whole = [run for run in runs if not run.body.get("parent") or ledger.find(str(run.body["parent"])) is None]
    return max(whole or runs, key=lambda run: (run.created_utc, run.id), default=None)


def _interval(record: Record) -> tuple[float, float, str]:
    """The 95 % interval of a record's energy, and what to say of it."""
    from negawatt.report.equivalents import interval, readable

    energy_j, sd_j = record.energy_j or 0.0, record.body.get("energy_sd_j")
    if not isinstance(sd_j, int | float):
        return energy_j, energy_j, "its error was not recorded"
    low_j, high_j = interval(energy_j, sd_j)
    return low_j, high_j, f"95 % interval {readable(low_j)} to {readable(high_j)}"


def _json(known: _Energy, amounts: Sequence[Amount]) -> dict[str, object]:
    from negawatt.core.codec import to_json

    rows = [{"amount": {"low": a.low, "central": a.central, "high": a.high}, **to_json(a.equivalent)} for a in amounts]
    return {**to_json(known), "equivalents": rows}


def _print(known: _Energy, amounts: Sequence[Amount]) -> None:
    from rich.console import Console
    from rich.table import Table

    from negawatt.report.equivalents import count, readable

    click.echo(f"{readable(known.energy_j)} ({known.source}; {known.told})\n")
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("the same as", "low", "central", "high", "evidence"):
        grid.add_column(name, justify="right" if name in ("low", "central", "high") else "left", overflow="fold")
    for amount in amounts:
        row = amount.equivalent
        grid.add_row(row.many, *(count(n) for n in (amount.low, amount.central, amount.high)), str(row.grade))
    Console(markup=False, highlight=False, emoji=False).print(grid)
    error = " and the error of the energy" if known.low_j < known.high_j else ""
    click.echo(f"\nLow to high spans the published figures{error}; central takes the figure we would use.")


def _print_sources(amounts: Sequence[Amount]) -> None:
    from negawatt.report.equivalents import kwh

    for amount in amounts:
        row = amount.equivalent
        figures = dict.fromkeys(kwh(energy_j) for energy_j in (row.low_j, row.central_j, row.high_j))
        click.echo(f"\n{row.one}: {', '.join(figures)} ({row.grade})\n  {row.basis}")
        for source in row.citations:
            click.echo(f"  - {source}")
