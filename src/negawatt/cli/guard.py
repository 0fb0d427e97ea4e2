"""`negawatt guard`: the one privileged process, which changes power limits for the users that its policy lists."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negawatt.cli import Commands

if TYPE_CHECKING:
    from negawatt.hardware.control import Control, ControlInfo
    from negawatt.hardware.guard.policy import Allow, Policy
    from negawatt.hardware.guard.session import Holder

command = Commands(
    name="guard",
    help="Change power limits for users without root.\n\n"
    "The guard runs as root (`negawatt guard unit` prints a service) and listens on a Unix socket. Its policy file "
    "says who may change what, and how low; nobody but root if there is none. It never sets a limit above the one it "
    "found, and puts that back when the job ends, crashes or hangs.",
)

_socket = click.option(
    "--socket", type=click.Path(path_type=Path), metavar="FILE",
    help="The socket; by default NEGAWATT_GUARD, else /run/negawatt/guard.sock.",
)  # fmt: skip
_policy = click.option(
    "--policy", type=click.Path(path_type=Path), metavar="FILE", default=Path("/etc/negawatt/guard.toml"),
    show_default=True, help="Who may do what.",
)  # fmt: skip
_as_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@command.command()
@_socket
@_policy
@click.option(
    "--audit", type=click.Path(path_type=Path), metavar="FILE", default=Path("/var/log/negawatt/guard.jsonl"),
    show_default=True, help="Where requests are written down.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be served, and end.")
def serve(socket: Path | None, policy: Path, audit: Path, dry_run: bool) -> None:  # noqa: FBT001
    """Serve clients until SIGTERM or Ctrl-C; then put back what they changed."""
    import os
    import signal

    from negawatt.hardware.controls import found_controls
    from negawatt.hardware.guard import default_socket
    from negawatt.hardware.guard.audit import AuditLog
    from negawatt.hardware.guard.policy import load_policy
    from negawatt.hardware.guard.server import Guard
    from negawatt.hardware.guard.session import Terms

    path = socket or default_socket()
    load_policy(policy)  # a mistake is told now, not to the first client
    if os.geteuid() != 0:
        click.echo("negawatt: not root: only what this user may change can be changed", err=True)
    if dry_run:
        click.echo(f"would listen on {path}, by {policy}, and write {audit}")
        _print_controls([control.info for control in found_controls()[0]])
        return
    guard = Guard(path, Terms(policy=policy, audit=AuditLog(audit), find=lambda: found_controls()[0]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: guard.stop())
    guard.serve(lambda: click.echo(f"negawatt: the guard listens on {path}", err=True))


@command.command()
@_socket
@_as_json
def status(socket: Path | None, as_json: bool) -> None:  # noqa: FBT001
    """Show what the guard lets you change, and who holds what now."""
    from negawatt.core.codec import from_json
    from negawatt.hardware.control import ControlInfo
    from negawatt.hardware.guard.client import Connection
    from negawatt.hardware.guard.session import Holder

    connection = Connection(socket)
    try:
        controls = connection.ask("list")["controls"]
        holders = connection.ask("status")["holders"]
    finally:
        connection.close()
    if as_json:
        click.echo(json.dumps({"controls": controls, "holders": holders}, indent=1))
        return
    click.echo("You may change")
    _print_controls([from_json(ControlInfo, control) for control in controls])
    click.echo("\nHeld now")
    _print_holders([from_json(Holder, holder) for holder in holders])


@command.command()
@_policy
@_as_json
def check(policy: Path, as_json: bool) -> None:  # noqa: FBT001
    """Read the policy file and say who may do what. Needs no root.

    Exit code 0: the guard can use it; 2: it cannot.
    """
    from negawatt.core.codec import to_json
    from negawatt.hardware.controls import found_controls
    from negawatt.hardware.guard.policy import load_policy

    found, controls = load_policy(policy), found_controls()[0]
    for name in found.unknown():
        click.echo(f"negawatt: {policy}: this host knows no {name}", err=True)
    if as_json:
        click.echo(json.dumps({"policy": to_json(found), "unknown": list(found.unknown())}, indent=1))
    else:
        _print_policy(policy, found, controls)


@command.command()
@click.option("--python", metavar="FILE", help="The interpreter that has negawatt; by default this one.")
def unit(python: str | None) -> None:
    """Print a systemd service for this host.

    Install it with `negawatt guard unit | sudo tee /etc/systemd/system/negawatt-guard.service`.
    """
    from negawatt.hardware.guard.unit import unit_text, unsafe_paths

    for fault in unsafe_paths(python):
        click.echo(f"negawatt: {fault}; install negawatt for root, e.g. in /opt/negawatt", err=True)
    click.echo(unit_text(python), nl=False)


def _print_policy(file: Path, policy: Policy, controls: Sequence[Control]) -> None:
    if not policy.allow:
        state = "allows nobody" if file.exists() else "does not exist"
        click.echo(f"{file} {state}: only root may change anything")
    for rule in policy.allow:
        who = [*(f"user {user}" for user in rule.users), *(f"group {group}" for group in rule.groups)]
        click.echo(f"{', '.join(who)}: {', '.join(rule.knobs)} of {', '.join(rule.devices)}, {_floor(rule)}")
        here = [control.info for control in controls if rule.covers(control.info)]
        for info in here:
            click.echo(f"    {info.address}: {rule.floor(info):g} to {info.highest:g} {info.unit}".rstrip())
        if not here:
            click.echo("    nothing on this host")


def _floor(rule: Allow) -> str:
    if rule.lowest_fraction is not None:
        return f"at least {rule.lowest_fraction:g} of the highest"
    return "any" if rule.lowest is None else f"at least {rule.lowest:g}"


def _print_controls(infos: Iterable[ControlInfo]) -> None:
    rows = [(i.address, str(i.knob), f"{i.lowest:g} to {i.highest:g} {i.unit}".rstrip()) for i in infos]
    _print_rows(rows)


def _print_holders(holders: Iterable[Holder]) -> None:
    from negawatt.report.numbers import duration

    _print_rows(
        [(", ".join(h.scopes), f"{h.user} (pid {h.pid})", h.owner, f"for {duration(h.held_s)}") for h in holders]
    )


def _print_rows(rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from negawatt.report.numbers import clean

    table = Table.grid(padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(f"  {clean(cell)}" if not i else clean(cell) for i, cell in enumerate(row)))
    width = None if sys.stdout.isatty() else 400  # nobody can tell GPUs apart by half a UUID
    Console(markup=False, highlight=False, emoji=False, width=width).print(table if rows else "  nothing")
