"""Wall: a wall meter's log, read as its header says, and refused where more than one reading is possible."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from negawatt.core.errors import UsageError
from negawatt.metering.logs import Trace, iso, moment, read_text, trace

POWER = {"mW": 1e-3, "W": 1.0, "kW": 1e3}
ENERGY = {"J": 1.0, "kJ": 1e3, "Wh": 3.6e3, "kWh": 3.6e6, "MWh": 3.6e9}
OFFSETS_H = (-12.0, 14.0)
"""The zones that there are, from Baker Island to Kiribati (tz database)."""
_TIME_WORDS = ("time", "date", "stamp", "zeit", "datum", "heure", "fecha")
_TIME_NAMES = {"ts", "epoch", "utc", "hora", "when"}
_POWER_WORDS = ("power", "leistung", "puissance", "potencia", "potenza")
_NOT_REAL = ("apparent", "reactive", "factor", "faktor", "schein", "blind")  # volt-amperes and ratios are no watts
_SPELLED = re.compile(r"(milli|kilo|mega)?[ _-]?watts?([ _-]?hours?)?", re.IGNORECASE)
_SYMBOLS = {unit.lower(): unit for unit in (*POWER, *ENERGY)} | {"joule": "J", "joules": "J", "va": "VA", "kva": "VA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class WallColumns:
    """How to read a wall meter's log. Raises UsageError if the zone is none.

    Attributes:
        time: column of the time; "": the only one whose name says time or date.
        power: column of the power; "": see `energy`, else the only one whose name says power or watt.
        power_unit: of it: mW, W or kW; "": as its header says, else W.
        energy: column of the energy since some moment, or "".
        energy_unit: of it: J, kJ, Wh, kWh or MWh; "": as its header says.
        decimal: "." or ","; "": as the numbers show.
        utc_offset_h: the zone of times that name none [h]; None: they have to.
    """

    time: str = ""
    power: str = ""
    power_unit: str = ""
    energy: str = ""
    energy_unit: str = ""
    decimal: str = ""
    utc_offset_h: float | None = None  # h

    def __post_init__(self) -> None:
        low, high = OFFSETS_H
        if self.utc_offset_h is not None and not low <= self.utc_offset_h <= high:
            raise UsageError(
                f"--utc-offset {self.utc_offset_h:g}",
                f"zones lie between {low:g} and +{high:g} hours of UTC",
                "type the wall meter's own, for example `--utc-offset 2` for summer in Berlin",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """A log of a wall meter.

    Attributes:
        trace: its energy.
        read_as: how its columns were understood, in words.
    """

    trace: Trace
    read_as: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    path: Path
    names: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]  # with the number of their line

    def column(self, name: str, option: str) -> int:
        """Place of a column. Raises UsageError if there is none of that name, or more than one."""
        if self.names.count(name) != 1:
            raise UsageError(
                f"{option} {name!r}: {self.path} has {self.names.count(name) or 'no'} columns of that name",
                "the wrong column would make a line that means nothing",
                f"name one of its columns: {', '.join(self.names)}",
            )
        return self.names.index(name)

    def cells(self, place: int) -> Iterator[tuple[int, str]]:
        """Every line's cell in a column."""
        return ((line, row[place]) for line, row in self.rows)


def read_wall(path: Path, columns: WallColumns) -> Wall:
    """Read a wall meter's log: CSV with commas, semicolons or tabs. Raises UsageError if anything is not clear."""
    if columns.energy and columns.power:
        raise UsageError(
            f"both --energy-column {columns.energy} and --power-column {columns.power}",
            "two columns may tell two different stories",
            "give one; energy is better where the meter counts finely",
        )
    if columns.power_unit if columns.energy else columns.energy_unit:
        raise UsageError(
            f"{'--power-unit with' if columns.energy else '--energy-unit without'} --energy-column",
            "a unit of another column than the one that is read would change nothing, unseen",
            "name the column of that unit, or leave the unit out",
        )
    table = _table(path, read_text(path))
    time_name = columns.time or _only(table, _says_time, "--time-column NAME")
    time = table.column(time_name, "--time-column")
    if columns.energy:
        name, option, asked, units = columns.energy, "--energy-unit", columns.energy_unit, ENERGY
        value = table.column(name, "--energy-column")
    else:
        name = columns.power or _only(table, _says_power, "--power-column NAME, or --energy-column NAME")
        option, asked, units = "--power-unit", columns.power_unit, POWER
        value = table.column(name, "--power-column")
    unit, how = _unit(name, asked, units, option)
    decimal = columns.decimal or _decimal(path, table.cells(value))

    def understood(time_cell: str, value_cell: str) -> tuple[float, float]:
        number = _number(value_cell, decimal) * units[unit]
        if number < 0 and not columns.energy:
            raise ValueError(f"the power is {value_cell.strip()}; one below zero would flow out of this machine")
        return moment(time_cell, columns.utc_offset_h), number

    points, repeated = _points(table, time, value, understood)
    notes = [f"{name!r} in {unit} ({how})", f"times from {time_name!r}"]
    notes += ["with decimal commas"] if decimal == "," else []
    notes += [f"repeated lines left out: {repeated}"] if repeated else []
    if columns.energy:
        # A coarse counter stands still between its counts: only where it moves is its value known.
        moved = [(t, e) for (_, e0), (t, e) in pairwise([(0.0, math.nan), *points]) if e != e0]
        return Wall(trace=trace(moved), read_as=", ".join(notes))
    return Wall(trace=trace(list(_integrated(points))), read_as=", ".join(notes))


def _table(path: Path, text: str) -> _Table:
    first = [line for line in text.splitlines() if line.strip()][:2]
    mark = next((mark for mark in "\t;," if first and all(mark in line for line in first)), ",")
    reader = csv.reader(io.StringIO(text), delimiter=mark)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise _unclear(path, reader.line_num, str(error), "save it as a plain CSV file") from error
    names = tuple(lines[0][1]) if lines else ()
    if len(names) < 2:
        raise UsageError(
            f"the first line of {path} names {len(names)} columns{'' if names else ': it is empty'}",
            "a time and a power or an energy are needed, between commas, semicolons or tabs",
            "save it as CSV with a first line that names its columns",
        )
    rows = []
    for number, row in lines[1:]:
        if len(row) < len(names) or any(row[len(names) :]):
            got = f"{len(row)} fields under {len(names)} names"
            raise _unclear(path, number, got, "if that is a decimal comma, save it with semicolons between the fields")
        rows.append((number, tuple(row)))
    return _Table(path=path, names=names, rows=tuple(rows))


def _points(
    table: _Table, time: int, value: int, understood: Callable[[str, str], tuple[float, float]]
) -> tuple[list[tuple[float, float]], int]:
    """Moments and values in order, each moment once; and how many lines only repeated another one."""
    known: dict[float, tuple[int, float]] = {}
    repeated = 0
    for line, row in table.rows:
        try:
            time_s, number = understood(row[time], row[value])
        except (ValueError, OverflowError) as error:
            fix = f"correct or remove that line, or name other columns ({table.names[time]!r} and "
            fix += f"{table.names[value]!r} were read); for times without a zone, --utc-offset HOURS"
            raise _unclear(table.path, line, str(error), fix) from error
        earlier, was = known.setdefault(time_s, (line, number))
        if was != number:
            got = f"it is of the same time as line {earlier}, {iso(time_s)}, and shows something else"
            raise _unclear(table.path, line, got, "remove one of the two, or log with finer or zoned times")
        repeated += earlier != line
    return sorted((time_s, number) for time_s, (_, number) in known.items()), repeated


def _integrated(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Energy under a power by trapezoids."""
    energy_j = 0.0
    for i, (time_s, power_w) in enumerate(points):
        if i:
            energy_j += (power_w + points[i - 1][1]) / 2 * (time_s - points[i - 1][0])
        yield time_s, energy_j


def _only(table: _Table, meant: Callable[[str], bool], options: str) -> str:
    """The only column that may be meant."""
    found = [name for name in table.names if meant(name)]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"{table.path} has {len(found) or 'no'} columns that may be meant ({', '.join(found or table.names)})",
        "the wrong column would make a line that means nothing",
        f"name it: {options}; the names are those in the file's first line",
    )


def _says_time(name: str) -> bool:
    lower = name.lower()
    return any(word in lower for word in _TIME_WORDS) or not _TIME_NAMES.isdisjoint(re.findall("[a-z]+", lower))


def _says_power(name: str) -> bool:
    lower, units = name.lower(), _units(name)
    if units - set(POWER) or any(word in lower for word in _NOT_REAL):
        return False
    return bool(units) or (any(word in lower for word in _POWER_WORDS) and not _says_time(name))


def _units(name: str) -> set[str]:
    """Units that a column's name holds, as in "Power (kW)", "energy_kwh", "Watts" or "W·h"."""
    short = _SPELLED.sub(lambda m: f" {(m[1] or '').replace('mega', 'Mega')[:1]}W{'h' if m[2] else ''} ", name)
    short = re.sub(r"(W)[·.* ]h\b", r"\1h", short)
    found = set()
    for word in re.findall("[A-Za-z]+", short):
        if word.lower() in ("mw", "mwh") and word not in ("mw", "mW", "MWh"):
            found.add(f"{word}, milli or mega")
        elif word.lower() in _SYMBOLS:
            found.add(_SYMBOLS[word.lower()])
    return found


def _unit(name: str, asked: str, units: dict[str, float], option: str) -> tuple[str, str]:
    """Unit of a column, and how it is known."""
    found = _units(name)
    if asked:
        against = f", against {', '.join(sorted(found))} in its header" if found - {asked} else ""
        return asked, f"by {option}{against}"
    if len(found) == 1 and found <= set(units):
        return found.pop(), "by its header"
    if not found and "W" in units:
        return "W", "its header names no unit: else say --power-unit"
    fix = f"say it with {option}"
    if "VA" in found:
        fix = "name a column of watts or watt-hours: volt-amperes hold what flows back, too"
    elif found & (set(POWER) | set(ENERGY)) - set(units):
        fix = f"use {'--power-column' if units is ENERGY else '--energy-column'} for it"
    raise UsageError(
        f"column {name!r} {'names ' + ' and '.join(sorted(found)) if found else 'names no unit'}",
        f"watts and watt-hours in the wrong unit are wrong by a thousand; here, one of {', '.join(units)} is needed",
        fix,
    )


def _decimal(path: Path, cells: Iterator[tuple[int, str]]) -> str:
    """The decimal mark of a column. Raises UsageError if its numbers can be read in two ways, or need both marks."""
    shown: dict[str, tuple[int, str]] = {}
    unclear = None
    for line, cell in cells:
        if not re.fullmatch(r"[+-]?[\d.,]+(e[+-]?\d+)?", cell, re.IGNORECASE):
            continue  # no number, which is said when it is read
        if "," in cell and "." in cell:
            mark = max(",.", key=cell.rfind)
        elif cell.count(",") > 1 or cell.count(".") > 1:
            mark = "." if "," in cell else ","  # twice in a number, it parts thousands
        elif re.fullmatch(r"[+-]?[1-9]\d{0,2}[,.]\d{3}", cell):
            unclear = unclear or ((line, cell) if "," in cell else None)
            continue
        elif "," in cell or "." in cell:
            mark = "," if "," in cell else "."
        else:
            continue
        shown.setdefault(mark, (line, cell))
    if len(shown) == 2:
        got = " and ".join(f"{cell} in line {line}" for line, cell in shown.values())
    elif unclear and not shown:
        got = f"{unclear[1]} in line {unclear[0]}: thousands, or thousandths"
    else:
        return next(iter(shown), ".")
    raise UsageError(
        f"{path}: {got}", "a comma read the wrong way is wrong by a thousand", "say it: `--decimal ,` or `--decimal .`"
    )


def _number(text: str, decimal: str) -> float:
    """A finite number, with or without its thousands set apart. Raises ValueError."""
    group = "," if decimal == "." else "."
    grouped = rf"[+-]?[1-9]\d{{0,2}}(?:{re.escape(group)}\d{{3}})+(?:{re.escape(decimal)}\d*)?"
    plain = text.replace(group, "") if re.fullmatch(grouped, text) else text
    number = math.nan if group in plain else float(plain.replace(decimal, "."))
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no number")
    return number


def _unclear(path: Path, line: int, got: str, fix: str) -> UsageError:
    return UsageError(f"{path}, line {line}: {got}", "a row that is not understood would be left out unseen", fix)
