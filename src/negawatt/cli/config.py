"""`negawatt config`: keep the zone, price and overhead of this place."""

from __future__ import annotations

import json

import click

from negawatt.cli import Commands

command = Commands(
    name="config",
    help="Keep the zone, price and overhead of this place: carbon and money then need no flags.\n\n"
    "The zone is never guessed; --zone and NEGAWATT_ZONE come before what is kept.",
)


@command.command("set")
@click.argument("key")
@click.argument("value")
def set_value(key: str, value: str) -> None:
    """Keep one setting: zone, pue, intensity_gpkwh, price_per_kwh or currency."""
    from negawatt.hardware.site import configure

    path = configure(key, value)
    click.echo(f"negawatt: kept in {path}", err=True)


@command.command()
@click.argument("key")
def unset(key: str) -> None:
    """Forget one setting."""
    from negawatt.hardware.site import forget

    path = forget(key)
    click.echo(f"negawatt: {key} is no longer kept in {path}", err=True)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(as_json: bool) -> None:  # noqa: FBT001
    """Show what is kept, and where."""
    from negawatt.hardware.site import config_path, configured

    kept = configured()
    if as_json:
        click.echo(json.dumps({"path": str(config_path()), "site": kept}, indent=1))
        return
    for key, value in kept.items():
        click.echo(f"{key} = {value}")
    if not kept:
        click.echo(f"negawatt: nothing is kept in {config_path()}; `negawatt config set zone FR`", err=True)
