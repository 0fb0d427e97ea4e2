"""`negawatt forecast`: AI's electricity until a year, and which levers bend it by how much."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negawatt.core.errors import NegawattError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from negawatt.core.workload import Phase
    from negawatt.report.forecast import Country, Forecast, Lever, Range

_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_MOST_TWH = 10_000  # above it, the unit is a slip: the IEA has 945 TWh for all data centres in 2030
_BASE_YEARS = (2010, 2030)
_RANGE = re.compile(rf"({_NUMBER})(%?)(?:\.\.({_NUMBER})(%?))?")
_LEVER = re.compile(r"(?P<name>[^=:]+)(?:=(?P<saving>[^=:]*))?(?::(?P<phase>[^=:]*))?(?::(?P<adoption>[^=:]*))?")


@click.command()
@click.option("--growth", metavar="LOW..HIGH", help="Growth a year, e.g. 26%..36% (the default) or 30%.")
@click.option("--base-twh", metavar="TWH", help="Electricity of AI in the base year, e.g. 62 (the default) or 46..82.")
@click.option("--base-year", type=int, metavar="YEAR", help="The base year; default: 2024.")
@click.option("--train-share", metavar="LOW..HIGH", help="Training's part of it; default: 25%..40%.")
@click.option("--to", "to_year", type=int, metavar="YEAR", help="The last year; default: 2030.")
@click.option(
    "--lever", "levers", multiple=True, metavar="NAME=SAVING:PHASE:ADOPTION",
    help="Only this lever, e.g. power-limit, power-limit:train:80% or quantise=20%..40%:infer:30% (repeatable). "
    "PHASE is train, infer or both.",
)  # fmt: skip
@click.option(
    "--plan", "plan_path", type=click.Path(path_type=Path), metavar="FILE",
    help="A plan.json: what negawatt has shown to be saved becomes one more lever.",
)  # fmt: skip
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Draw it into FILE.")
@click.option("--sources", is_flag=True, help="Say what each figure rests on, and where it was published.")
@click.option("--json", "as_json", is_flag=True, help="Print assumptions, years and levers as JSON.")
def command(  # noqa: PLR0913 -- one parameter per option
    growth: str | None, base_twh: str | None, base_year: int | None, train_share: str | None, to_year: int | None,
    levers: tuple[str, ...], plan_path: Path | None, svg: Path | None, sources: bool, as_json: bool,  # noqa: FBT001
) -> None:  # fmt: skip
    """Forecast the electricity of AI, and show which levers bend it by how much.

    Everything is a range: its ends take all assumptions at their low or at their high ends. The savings of levers
    multiply; they are never added.
    """
    from negawatt.report.forecast import beside_countries, defaults, forecast, levers_of, scenario_2027

    given = defaults()
    if base_year is not None and not _BASE_YEARS[0] <= base_year <= _BASE_YEARS[1]:
        raise UsageError(
            f"--base-year {base_year}",
            "AI's electricity in that year is no start of a forecast",
            f"type a year from {_BASE_YEARS[0]} to {_BASE_YEARS[1]}",
        )
    chosen = tuple(_lever(typed) for typed in levers) or given.levers
    if plan_path:
        from negawatt.cli.apply import read_plan

        chosen += levers_of(read_plan(plan_path))
    _check_names(chosen)
    given = replace(
        given,
        growth=_fractions(growth, "--growth", above=-1.0) if growth else given.growth,
        base_twh=_twh(base_twh) if base_twh else given.base_twh,
        base_year=base_year if base_year is not None else given.base_year,
        train_share=_fractions(train_share, "--train-share", above=0.0, below=1.0)
        if train_share
        else given.train_share,
        to_year=to_year if to_year is not None else given.to_year,
        levers=chosen,
    )
    found = forecast(given)
    if svg:
        _write(svg, found)
    scenario = scenario_2027()
    if as_json:
        click.echo(json.dumps(_json(found, scenario, beside_countries(scenario)), indent=1, allow_nan=False))
        return
    _print(found, scenario)
    _print_sources(given.levers) if sources else click.echo("\n--sources says what every figure rests on.")


def _span(typed: str, option: str, example: str = "26%..36%") -> tuple[Range, bool]:
    """A range as typed, and whether it was in percent."""
    from negawatt.report.forecast import Range

    found = _RANGE.fullmatch(typed.strip())
    fix = f"type one number or two with .. between them: {option} {example}"
    if found is None or (found[3] and found[2] and not found[4]):
        raise UsageError(f"{option} {typed}", "it is not a range", fix)
    low, high = float(found[1]), float(found[3] or found[1])
    if low > high:
        raise UsageError(f"{option} {typed}", "the low end is above the high end", fix)
    return Range(low=low, high=high), bool(found[4] if found[3] else found[2])


def _fractions(typed: str, option: str, *, above: float, below: float = 10.0) -> Range:
    """A range of fractions, typed as such or in percent."""
    from negawatt.report.forecast import Range

    span, percent = _span(typed, option)
    if not percent and span.high > 1:
        raise UsageError(
            f"{option} {typed}",
            "above 1 it could be percent or a multiple",
            f"write {option} {typed.strip()}% or a fraction",
        )
    if percent:
        span = Range(low=span.low / 100, high=span.high / 100)
    if span.low < above or span.high > below:
        limits = f"{100 * above:g}% to {100 * below:g}%"
        raise UsageError(f"{option} {typed}", f"it lies outside of {limits}", f"type a range within {limits}")
    return span


def _twh(typed: str) -> Range:
    span, percent = _span(typed, "--base-twh", "46..82")
    if percent or not 0 < span.low <= span.high <= _MOST_TWH:
        raise UsageError(
            f"--base-twh {typed}",
            f"it is no amount of electricity that AI takes in a year: above 0, and at most {_MOST_TWH} TWh",
            "type TWh: --base-twh 46..82",
        )
    return span


def _lever(typed: str) -> Lever:
    """A lever as typed: a known one, perhaps with another saving, phase or adoption, or a new one."""
    from negawatt.report.forecast import Lever, known_levers

    known, found = known_levers(), _LEVER.fullmatch(typed.strip())
    fix = f"type one of {', '.join(known)}, or NAME=SAVING:PHASE:ADOPTION such as quantise=20%..40%:infer:30%"
    if found is None:
        raise UsageError(f"--lever {typed}", "it is not of the form NAME=SAVING:PHASE:ADOPTION", fix)
    name = found["name"].strip()
    lever = known.get(name)
    if found["saving"]:
        saving = _fractions(found["saving"], "--lever SAVING", above=0.0, below=1.0)
        adoption = next(iter(known.values())).adoption_fraction
        lever = Lever(
            name=name,
            savings=dict.fromkeys(_phases(found["phase"] or "", typed), saving),
            acts_on=lever.acts_on if lever else name,
            adoption_fraction=adoption,
            grade="declared",
            basis="a saving of the whole electricity of its phase, as typed",
        )
    elif lever is None:
        raise UsageError(f"--lever {typed}", f"{name!r} is not known, so its saving must be given", fix)
    elif found["phase"]:
        wanted = _phases(found["phase"], typed)
        lever = replace(lever, savings={phase: s for phase, s in lever.savings.items() if phase in wanted})
        if not lever.savings:
            raise UsageError(f"--lever {typed}", f"{name} has no known saving in that phase", fix)
    if found["adoption"]:
        part = _fractions(found["adoption"], "--lever ADOPTION", above=0.0, below=1.0)
        lever = replace(lever, adoption_fraction=part.high)
    return lever


def _phases(typed: str, lever: str) -> tuple[Phase, ...]:
    from negawatt.core.workload import Phase

    word = typed.strip()
    if word in ("both", *Phase):
        return tuple(phase for phase in Phase if word in ("both", phase))
    raise UsageError(f"--lever {lever}", "it does not say in which phase it saves", "end it in :train, :infer or :both")


def _check_names(levers: Sequence[Lever]) -> None:
    names = [lever.name for lever in levers]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"two levers called {twice!r}", "they could not be told apart", "give one another name")


def _write(svg: Path, found: Forecast) -> None:
    from negawatt.report.forecast import beside_countries
    from negawatt.report.forecast_chart import draw

    countries = beside_countries(found.years[-1].without_twh)
    try:
        svg.write_text(draw(found, countries), encoding="utf-8")
    except OSError as error:
        raise NegawattError(
            f"cannot write {svg}: {error.strerror}", "there is no picture", "name another file with --svg"
        ) from error


def _json(found: Forecast, scenario: Range, countries: Sequence[Country]) -> dict[str, Any]:
    from negawatt.core.codec import to_json

    beside = {"ai_twh": to_json(scenario), "countries": [{**to_json(c), "alike": c.alike} for c in countries]}
    return {**to_json(found), "scenario_2027": beside}


def _print(found: Forecast, scenario: Range) -> None:
    from rich.console import Console
    from rich.table import Table

    from negawatt.report.forecast_chart import percent, twh
    from negawatt.report.numbers import clean

    given = found.assumptions
    console = Console(markup=False, highlight=False, emoji=False)
    click.echo(
        f"Electricity of AI: {twh(given.base_twh)} TWh in {given.base_year}, growing {percent(given.growth)} a year.\n"
        f"{percent(given.train_share)} of it is training, the rest inference. TWh a year:\n"
    )
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("year", "without levers", *(clean(lever.name) for lever in given.levers), "all levers"):
        grid.add_column(name, justify="right", overflow="fold")
    for year in found.years:
        alone = (twh(year.with_twh[lever.name]) for lever in given.levers)
        grid.add_row(str(year.year), twh(year.without_twh), *alone, twh(year.all_twh))
    console.print(grid)
    last, top = found.years[-1].year, found.bends[0]
    click.echo(f"\nWhat bends it most by {last}: {clean(top.name)}, {percent(top.saved)}.\n")
    console.print(_levers_table(found))
    click.echo(
        "\nRanges go by corners: the low end of a year takes the least growth and the most saving, the high end\n"
        "the reverse. Savings multiply what the others left; levers that act on the same thing do not stack.\n"
        "How much of the work uses a lever is an assumption. Rebound, more work because it is cheaper, is left out.\n"
    )
    for line in _beside(found, scenario):
        click.echo(line)


def _levers_table(found: Forecast) -> Table:
    """Each lever: what it saves where it is used, how much of the work uses it, and what that takes off."""
    from rich.table import Table

    from negawatt.core.workload import Phase
    from negawatt.report.forecast_chart import percent, twh
    from negawatt.report.numbers import clean

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("lever", "train", "infer", "used by", "all off", "TWh off", "evidence"):
        left = name in ("lever", "evidence")
        grid.add_column(name, justify="left" if left else "right", no_wrap=name != "evidence")
    levers = {lever.name: lever for lever in found.assumptions.levers}
    for bend in (*found.bends, found.together):
        lever = levers.get(bend.name)
        saved = [lever.savings.get(phase) if lever else None for phase in Phase]
        grid.add_row(
            clean(bend.name),
            *(percent(s) if s else "" for s in saved),
            f"{100 * lever.adoption_fraction:g} %" if lever else "",
            percent(bend.saved),
            twh(bend.saved_twh),
            lever.grade if lever else "",
        )
    return grid


def _beside(found: Forecast, scenario: Range) -> list[str]:
    """AI in 2027 beside two countries, computed; and what others say of the last year."""
    from negawatt.report.citations import table
    from negawatt.report.forecast import beside_countries
    from negawatt.report.forecast_chart import twh

    spans = [("de Vries's scenario of 1.5 million servers at full power", scenario)]
    spans += [("this forecast without levers", y.without_twh) for y in found.years if y.year == 2027]
    lines = ['"In 2027, AI uses as much electricity as Iceland or the Netherlands":']
    for what, span in spans:
        lines.append(f"  {what}: {twh(span)} TWh")
        for country in beside_countries(span):
            verdict = "holds" if country.alike else f"does not hold ({'more' if country.ratio.low > 1 else 'less'})"
            ratio = " to ".join(dict.fromkeys(f"{end:.1f}" for end in (country.ratio.low, country.ratio.high)))
            lines.append(f"    {ratio} times {country.name} ({country.used_twh:.0f} TWh in {country.year}): {verdict}")
    year = found.years[-1].year
    others = [f"{row['twh']} TWh, {row['what']}" for row in table("forecast")["other"] if row["year"] == year]
    return [*lines, *([f"Others for {year}, from the IEA: {'; '.join(others)}."] if others else [])]


def _print_sources(levers: Sequence[Lever]) -> None:
    from negawatt.report.citations import citations, table
    from negawatt.report.numbers import clean

    rows = table("forecast")
    names = {
        "base": "electricity in the base year", "growth": "growth", "train_share": "share of training",
        "accelerator_share": "accelerators' part of a site", "adoption": "adoption", "scenario_2027": "2027",
    }  # fmt: skip
    found = [(names[key], rows[key]["basis"], citations(rows[key])) for key in names]
    costs = (f"; costs {lever.cost}" if lever.cost else "" for lever in levers)
    found += [(lever.name, lever.basis + cost, lever.citations) for lever, cost in zip(levers, costs, strict=True)]
    found += [(row["name"], f"{row['twh']} TWh in {row['year']}", citations(row)) for row in rows["country"]]
    found += [(str(row["year"]), f"{row['twh']} TWh, {row['what']}", citations(row)) for row in rows["other"]]
    for name, basis, sources in found:
        click.echo(f"\n{clean(name)}: {basis}")
        for source in sources:
            click.echo(f"  - {source}")
