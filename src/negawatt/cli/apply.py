"""`negawatt apply plan.json`: run the workload under its plan and record whether the saving held."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from negawatt.core.plan import Plan


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the model.")
@click.option("--dry-run", is_flag=True, help="Print the settings and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(plan_file: Path, out: Path | None, dry_run: bool, as_json: bool) -> None:  # noqa: FBT001
    """Run the workload under PLAN (a plan.json) and record whether the saving held.

    Exit code 0: every saving that the plan claims held; 1: one did not, or cannot be compared here.
    """
    plan = read_plan(plan_file)
    if dry_run and as_json:
        from negawatt.core.codec import to_json

        click.echo(json.dumps({str(phase.phase): to_json(phase.setting) for phase in plan.phases}, indent=1))
        return
    if dry_run:
        for phase in plan.phases:
            click.echo(f"{phase.phase}: {' '.join(str(c) for c in phase.setting.choices) or '(as is)'}")
        return
    from negawatt.core.codec import to_json
    from negawatt.execute.apply import Held, apply_plan
    from negawatt.ledger.store import Ledger
    from negawatt.report.numbers import energy, percent_interval

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the host is restored
    with Ledger.open() as ledger:
        applied = apply_plan(plan, out or plan_file.parent / "applied", ledger, lambda _: None)
    if as_json:
        click.echo(json.dumps(to_json(applied), indent=1, allow_nan=False))
    for one in () if as_json else applied:
        m = one.trial.measurement
        cost = f"{energy(m.energy_per_work_j, m.energy_sd_j / m.work_units)} ({m.source})" if m else ""
        click.echo(f"{one.phase}: {one.trial.setting}: {cost}")
        if one.saving and one.against:
            interval = percent_interval(one.saving.value, one.saving.low, one.saving.high)
            click.echo(f"  against the {one.against} default: {interval}")
        click.echo(f"  {one.held}: {one.reason}")
        if one.gateway:
            click.echo(f"  Serve it: negawatt gateway --options {shlex.quote(one.gateway)} --upstream URL")
            click.echo("  before the server as set above, with one --upstream for each of its replicas")
    sys.exit(0 if all(one.held in (Held.HELD, Held.NOTHING_CLAIMED) for one in applied) else 1)


def read_plan(path: Path) -> Plan:
    """A plan from its file. Raises UsageError if it is no plan, or one of a newer version."""
    from negawatt.core.codec import from_json
    from negawatt.core.errors import UsageError
    from negawatt.core.plan import SCHEMA, Plan

    fix = "give the plan.json that `negawatt plan` wrote"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}", "there is no plan to carry out", fix) from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise UsageError(
            f"{path} has plan format {schema}, this negawatt reads {SCHEMA}",
            "a plan that is half understood would set the wrong things",
            "plan again, or use the version of negawatt that wrote it",
        )
    return from_json(Plan, data, str(path))
