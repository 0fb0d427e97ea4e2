"""`negawatt calibrate`: one line from what this host's sensors show to what a wall meter shows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from negawatt.cli import Commands
from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from negawatt.metering.calibration import Calibration, Level, Point
    from negawatt.metering.session import Meter, Window
    from negawatt.metering.wall import WallColumns

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Load steps, as parts of all CPUs."""
_FILE = click.Path(dir_okay=False, path_type=Path)
_sensors = click.option("--sensor", "sensors", multiple=True, metavar="NAME", help="Meter only with this sensor.")
_every = click.option("--every", "interval_s", type=click.FloatRange(0.1), default=1.0, show_default=True, help="[s]")
_below = click.option("--below", is_flag=True, help="The wall meter may show less than sensors that only estimate.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """What is asked of a fit: to accept a wall below estimates, to keep nothing, to print JSON."""

    below: bool
    dry_run: bool
    as_json: bool


@click.group(cls=Commands, invoke_without_command=True, no_args_is_help=True)
@click.option("--csv", "wall", type=_FILE, help="Log of the wall meter, with times.")
@click.option("--metered", type=_FILE, help="Log of this host's meter: what `load` or `record` wrote meanwhile.")
@click.option("--time-column", "time", default="", metavar="NAME", help="Column of the time in --csv.")
@click.option("--power-column", "power", default="", metavar="NAME", help="Column of the power in --csv.")
@click.option("--power-unit", type=click.Choice(["mW", "W", "kW"]), help="Of it; default: as its header says, else W.")
@click.option("--energy-column", "energy", default="", metavar="NAME", help="Column of the energy so far.")
@click.option(
    "--energy-unit", type=click.Choice(["J", "kJ", "Wh", "kWh", "MWh"]), help="Of it; default: as its header says."
)
@click.option("--decimal", type=click.Choice([".", ","]), help="Decimal mark in --csv; default: as the numbers show.")
@click.option("--utc-offset", "utc_offset_h", type=float, metavar="HOURS", help="Zone of times that name none.")
@click.option("--point", "typed", multiple=True, metavar="METERED=WALL", help="Watts here and at the wall; 3 or more.")
@_sensors
@_below
@click.option("--dry-run", is_flag=True, help="Fit and show, but keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.pass_context
def command(ctx: click.Context, /, **options: object) -> None:
    """Correct this host's meter by a wall meter: wall = offset + gain x metered.

    With a meter that logs: start its log, run `negawatt calibrate load --out metered.csv`, then
    `negawatt calibrate --csv wall.csv --metered metered.csv`. With one that only shows:
    `negawatt calibrate load --ask`.

    The error that is left is stated: every load step is predicted from the others. The line is kept for this host and
    exactly these sensors, in the file NEGAWATT_CALIBRATION, by default in your state folder.
    """
    if ctx.invoked_subcommand is None:
        wish = _Wish(**{name: bool(options.pop(name)) for name in ("below", "dry_run", "as_json")})
        _calibrate(wish, **options)  # type: ignore[arg-type]


def _calibrate(
    wish: _Wish,
    *,
    wall: Path | None,
    metered: Path | None,
    typed: tuple[str, ...],
    sensors: tuple[str, ...],
    **columns: str | float | None,
) -> None:
    from negawatt.metering.wall import WallColumns

    if typed and not (wall or metered):
        _fit_typed([_point(text) for text in typed], sensors, wish)
    elif wall and metered and not (typed or sensors):
        named = {name: value for name, value in columns.items() if value is not None}
        _fit_logs(wall, metered, WallColumns(**named), wish)  # type: ignore[arg-type]
    else:
        raise UsageError(
            "neither two logs nor points alone",
            "the wall meter has to be set against this host's meter at the same time",
            "give --csv FILE and --metered FILE, or --point METERED=WALL three times or more",
        )


@command.command()
@click.option("--out", type=_FILE, required=True, help="File to write.")
@click.option("--seconds", type=click.FloatRange(min=1), help="How long; default: until Ctrl-C.")
@_every
@_sensors
def record(out: Path, seconds: float | None, interval_s: float, sensors: tuple[str, ...]) -> None:
    """Log what this host's sensors show, beside a load of your own."""
    from negawatt.metering.session import Meter

    with Meter.open(names=sensors) as meter, meter.start() as window:
        click.echo(f"negawatt: metering {', '.join(meter.scopes)} into {out}; Ctrl-C ends it", err=True)
        try:
            n = _write(out, meter, _samples(window, interval_s, seconds, ""))
        except KeyboardInterrupt:
            click.echo(f"negawatt: ended; {out} is complete", err=True)
        else:
            click.echo(f"negawatt: {n} rows in {out}", err=True)


@command.command()
@click.option("--out", type=_FILE, help="File to write what this host's sensors show.")
@click.option(
    "--seconds", "step_s", type=click.FloatRange(min=1), default=60.0, show_default=True, help="Of each step."
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=1, show_default=True, help="How often to go through them."
)
@click.option("--ask", is_flag=True, help="Ask at each step what the wall meter shows, and calibrate with it.")
@_every
@_sensors
@_below
@click.option("--dry-run", is_flag=True, help="With --ask: keep nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --ask: print the calibration as JSON.")
def load(
    *,
    out: Path | None,
    step_s: float,
    rounds: int,
    ask: bool,
    interval_s: float,
    sensors: tuple[str, ...],
    **wishes: bool,
) -> None:
    """Make load steps (idle, 25, 50, 75, 100 % of the CPUs) and log what this host's sensors show.

    Nothing else should run meanwhile. A wall meter that counts whole watt-hours needs steps of ten minutes:
    --seconds 600. GPUs are not loaded: run your own work beside `negawatt calibrate record` for them.
    """
    if not (out or ask):
        raise UsageError(
            "neither --out nor --ask", "the steps would leave nothing behind", "add `--out metered.csv`, or `--ask`"
        )
    from negawatt.metering.session import Meter

    with Meter.open(names=sensors) as meter:
        if ask:
            points = list(_asked(meter, step_s))
            _finish(points, meter.scopes, [s.name for s in meter.sensors], _Wish(**wishes))
        if out and not ask:
            with meter.start() as window:
                n = _write(out, meter, _stepped(window, interval_s, step_s, rounds))
            click.echo(f"negawatt: {n} rows in {out}; next: `negawatt calibrate --csv WALL --metered {out}`", err=True)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def show(as_json: bool) -> None:  # noqa: FBT001
    """Show the calibrations that are kept."""
    from negawatt.core.codec import to_json
    from negawatt.metering.calibration import default_path, kept

    found = kept()
    if as_json:
        click.echo(json.dumps({"path": str(default_path()), "calibrations": to_json(found)}, indent=1))
        return
    for one in found:
        click.echo("\n".join(_lines(one)))
    if not found:
        click.echo(f"negawatt: none is kept in {default_path()}; `negawatt calibrate --help`", err=True)


def _fit_typed(points: list[Point], sensors: tuple[str, ...], wish: _Wish) -> None:
    from negawatt.metering.session import Meter

    with Meter.open(names=sensors) as meter:
        _finish(points, meter.scopes, [s.name for s in meter.sensors], wish)


def _fit_logs(wall: Path, metered: Path, columns: WallColumns, wish: _Wish) -> None:
    from negawatt.hardware.host import this_host
    from negawatt.metering.logs import align, points, read_metered
    from negawatt.metering.wall import read_wall
    from negawatt.report import numbers

    ours, theirs = read_metered(metered), read_wall(wall, columns)
    here = this_host().fingerprint()
    if ours.fingerprint != here:
        raise UsageError(
            f"{metered} was made on {ours.fingerprint}, and this is {here}",
            "a calibration holds for one host",
            "calibrate on the host that made the log",
        )
    click.echo(f"negawatt: {numbers.clean(f'read {wall}: {theirs.read_as}')}", err=True)
    lag_s, correlation = align(ours.trace, theirs.trace)
    way = "ahead of" if lag_s > 0 else "behind"
    click.echo(
        f"negawatt: the wall meter's clock is {abs(lag_s):.1f} s {way} this host's (correlation {correlation:.2f})",
        err=True,
    )
    _finish(points(ours, theirs.trace, lag_s), ours.scopes, ours.sensors, wish, lag_s=lag_s)


def _finish(
    points: Sequence[Point],
    scopes: Sequence[str],
    sensors: Sequence[str],
    wish: _Wish,
    *,
    lag_s: float | None = None,
) -> None:
    """Fit, keep and show. Raises NegawattError after it was shown, if it is not worth keeping."""
    from negawatt.core.codec import to_json
    from negawatt.hardware.host import this_host
    from negawatt.metering.calibration import DOUBTFUL_FRACTION, fault, fit, save

    if wish.below:
        _only_estimates(sensors)
        click.echo("negawatt: these sensors only estimate; a wall meter below them is accepted", err=True)
    calibration, levels = fit(points, this_host(), scopes, sensors, lag_s=lag_s, below=wish.below)
    wild = fault(calibration)
    path = None if wish.dry_run or wild else save(calibration)
    if wish.as_json:
        document = {"calibration": to_json(calibration), "levels": to_json(levels), "path": path and str(path)}
        click.echo(json.dumps(document, indent=1, allow_nan=False))
    else:
        _print(levels)
        click.echo("\n".join(_lines(calibration)))
    if wild:
        raise wild
    if calibration.error_fraction > DOUBTFUL_FRACTION:
        click.echo(
            f"negawatt: doubtful, as it errs by {100 * calibration.error_fraction:.0f} % at a load left out; longer "
            "steps with nothing else running make it better",
            err=True,
        )
    click.echo(f"negawatt: kept in {path}" if path else "negawatt: nothing was kept", err=True)


def _only_estimates(sensors: Sequence[str]) -> None:
    """Raise UsageError if one of some sensors measures: then the wall meter cannot show less."""
    from negawatt.core import registry

    known = registry.sensors().members
    for name in sensors:
        if name not in known or known[name].info.source.measured:
            raise UsageError(
                f"--below with {name}",
                "what is measured inside a machine has to come in through the wall meter",
                "leave --below out, or use it with sensors that only estimate, such as cpu-model",
            )


def _print(levels: Sequence[Level]) -> None:
    from rich.console import Console
    from rich.table import Table

    from negawatt.report import numbers

    table = Table("load", "metered W", "wall W", "from the others W", "error", box=None, padding=(0, 2, 0, 0))
    for level in levels:
        watts = [numbers.significant(w) for w in (level.metered_w, level.wall_w, level.predicted_w)]
        off = numbers.percent(level.predicted_w / level.wall_w - 1, 1, signed=True)
        table.add_row(numbers.clean(level.name), *watts, off)
    Console(markup=False, highlight=False, emoji=False).print(table)


def _lines(one: Calibration) -> list[str]:
    from negawatt.report import numbers

    sign = "+" if one.offset_w >= 0 else numbers.MINUS
    line = f"{numbers.significant(one.gain)} x metered {sign} {numbers.significant(abs(one.offset_w))} W"
    error = f"{numbers.percent(one.error_fraction, 1)} mean error at a load left out"
    where = f"{', '.join(one.scopes)} by {', '.join(one.sensors)} on {numbers.clean(one.fingerprint)}"
    return [
        f"wall = {line}; {error} ({numbers.plural(one.n, 'point')} at {numbers.plural(one.levels, 'level')})",
        f"  for {where}, {one.created_utc}",
    ]


def _point(text: str) -> Point:
    from negawatt.metering.calibration import Point

    metered, equals, wall = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return Point(metered_w=float(metered), wall_w=float(wall))
    except ValueError:
        raise UsageError(
            f"--point {text}",
            "a point is two powers in watts, here and at the wall",
            "type for example `--point 35.5=80`",
        ) from None


def _write(out: Path, meter: Meter, rows: Iterator[tuple[float, float, str]]) -> int:
    from negawatt.hardware.host import this_host
    from negawatt.metering.logs import write_metered

    try:
        sensors = [sensor.name for sensor in meter.sensors]
        return write_metered(out, this_host().fingerprint(), meter.scopes, sensors, rows)
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written: {error.strerror}", "nothing would be logged", "name a file that you may write"
        ) from error


def _samples(window: Window, interval_s: float, seconds: float | None, step: str) -> Iterator[tuple[float, float, str]]:
    """Time, energy so far and step, again and again."""
    end_s = None if seconds is None else time.perf_counter() + seconds
    next_s = time.perf_counter()
    while True:
        yield time.time(), sum(reading.energy_j for reading in window.readings()), step
        next_s += interval_s
        if end_s is not None and next_s > end_s:
            return
        time.sleep(max(0.0, next_s - time.perf_counter()))


def _stepped(window: Window, interval_s: float, step_s: float, rounds: int) -> Iterator[tuple[float, float, str]]:
    """The same under every load step."""
    from negawatt.hardware.host import this_host
    from negawatt.metering.burn import burning

    for fraction in STEPS * rounds:
        name = _step(fraction)
        click.echo(f"negawatt: {name} for {step_s:g} s", err=True)
        with burning(fraction, this_host().logical_cpus):
            yield from _samples(window, interval_s, step_s, name)


def _asked(meter: Meter, step_s: float) -> Iterator[Point]:
    """A typed point per load step; the load goes on until the answer is there, and so does the metering."""
    from negawatt.hardware.host import this_host
    from negawatt.metering.burn import burning
    from negawatt.metering.calibration import Point
    from negawatt.metering.logs import SETTLING_FRACTION

    for fraction in STEPS:
        name = _step(fraction)
        click.echo(f"negawatt: {name} for {step_s:g} s", err=True)
        with burning(fraction, this_host().logical_cpus):
            time.sleep(step_s * SETTLING_FRACTION)
            with meter.start() as window:
                time.sleep(step_s * (1 - SETTLING_FRACTION))
                wall_w = click.prompt("what does the wall meter show now [W]?", type=float, err=True)
                metered_w = sum(reading.energy_j for reading in window.readings()) / window.time_s
        yield Point(metered_w=metered_w, wall_w=wall_w, level=name)


def _step(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction else "idle"
