"""A wall meter's log is read as its header and numbers say, or refused with the line and what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.core.errors import UsageError
from negawatt.metering.wall import Wall, WallColumns, read_wall

BEGIN, END = "2025-06-15T15:06:40Z", "2025-06-15T15:06:50Z"
BEGIN_S, END_S = 1_750_000_000.0, 1_750_000_010.0


def read(tmp_path: Path, text: str, **columns: str | float) -> Wall:
    path = tmp_path / "wall.csv"
    path.write_text(text, encoding="utf-8")
    return read_wall(path, WallColumns(**columns))  # type: ignore[arg-type]


def mean_w(wall: Wall) -> float | None:
    return wall.trace.mean_w(BEGIN_S, END_S)


@pytest.mark.parametrize(
    ("text", "power_w"),
    [
        ("Zeit;Leistung\n{0};24,01\n{1};24,01\n", 24.01),
        ("Zeit\tLeistung (kW)\n{0}\t0,024\n{1}\t0,024\n", 24.0),
        ('time,power\n{0},"24,5"\n{1},"24,5"\n', 24.5),
        ('time,power\n{0},"1,024.5"\n{1},"1,024.5"\n', 1024.5),
        ("time;power\n{0};1.024,5\n{1};1.024,5\n", 1024.5),
        ("time;power\n{0};1.024\n{1};1.024\n", 1.024),
        ("time;power\n{0};1.024\n{1};24,5\n", 524.25),
        ('"time","power; W"\n"{0}","24"\n"{1}","24"\n\n', 24.0),
        (" ts , watts \n{0}, 24\n{1}, 24\n", 24.0),
        ("Date,Voltage (V),Apparent power (VA),Power factor,W\n{0},230,30,0.8,24\n{1},230,30,0.8,24\n", 24.0),
        ("time,power_kw\n{0},0.3\n{1},0.3\n", 300.0),
        ("time,power_mw\n{0},24000\n{1},24000\n", 24.0),
        ("time,Kilowatts\n{0},1.5e-1\n{1},1.5e-1\n", 150.0),
        ("time,power [W],Energy kWh\n{0},24,1\n{1},24,1\n", 24.0),
    ],
)
def test_delimiters_decimals_and_units_of_power(tmp_path: Path, text: str, power_w: float) -> None:
    """Comma, semicolon and tab, decimal comma and point, thousands and the header's unit all come to the same watts."""
    assert mean_w(read(tmp_path, text.format(BEGIN, END))) == pytest.approx(power_w)


@pytest.mark.parametrize(
    ("name", "step", "power_w"),
    [
        ("energy_kwh", "0.001", 360),
        ("Energy (Wh)", "1", 360),
        ("Watt-hours", "1", 360),
        ("kW·h", "0.001", 360),
        ("total [J]", "3600", 360),
        ("MWh", "0.000001", 360),
    ],
)
def test_units_of_energy(tmp_path: Path, name: str, step: str, power_w: float) -> None:
    """The unit of a counter is that in its header, and is said."""
    wall = read(tmp_path, f"time,{name}\n{BEGIN},0\n{END},{step}\n", energy=name)
    assert mean_w(wall) == pytest.approx(power_w)
    assert "by its header" in wall.read_as


def test_what_was_understood_is_said(tmp_path: Path) -> None:
    """Unit and where it is from, columns, decimal commas and repeated lines are told; a typed unit wins."""
    text = f"Zeit;kW\n{BEGIN};0,5\n{BEGIN};0,5\n{END};0,5\n"
    assert read(tmp_path, text).read_as == (
        "'kW' in kW (by its header), times from 'Zeit', with decimal commas, repeated lines left out: 1"
    )
    typed = read(tmp_path, text, power="kW", power_unit="W", decimal=",")
    assert "'kW' in W (by --power-unit, against kW in its header)" in typed.read_as
    assert mean_w(typed) == pytest.approx(0.5)
    assert "names no unit: else say --power-unit" in read(tmp_path, f"time,power\n{BEGIN},5\n{END},5\n").read_as


@pytest.mark.parametrize(
    ("first", "second", "offset_h"),
    [
        ("1750000000", "1750000010", None),
        ("1750000000000", "1750000010000", None),
        ("1750000000000000000", "1750000010000000000", None),
        ("2025-06-15T17:06:40+02:00", "2025-06-15T15:06:50Z", None),
        ("2025-06-15 17:06:40", "2025-06-15 17:06:50", 2.0),
        ("15.6.2025 17:06:40", "15.06.2025 17:06:50", 2.0),
    ],
)
def test_times_are_one_moment(tmp_path: Path, first: str, second: str, offset_h: float | None) -> None:
    """Seconds to nanoseconds, ISO times and dotted dates are one moment; a byte-order mark is nothing."""
    path = tmp_path / "wall.csv"
    path.write_text(f"\ufeffTime,kWh so far\n{first},1.5\n{second},1.501\n", encoding="utf-8")
    trace = read_wall(path, WallColumns(energy="kWh so far", utc_offset_h=offset_h)).trace
    assert trace.times_s == (BEGIN_S, END_S)
    assert trace.mean_w(BEGIN_S, END_S) == pytest.approx(360.0)
    assert trace.mean_w(BEGIN_S - 1, END_S) is None


ROWS = "1750000000,5\n1750000001,5\n"


@pytest.mark.parametrize(
    ("text", "columns", "says"),
    [
        ("time,power\n2026-01-01T00:00:00,5\n", {}, "line 2: time '2026-01-01T00:00:00' names no zone"),
        ("time,power\nyesterday,5\n", {}, "line 2: .*yesterday"),
        ("time,power\n12,5\n13,5\n", {}, "lies outside of 2001"),
        ("time,power\n1750000000,lots\n", {}, "lots"),
        ("time,power\n1750000000,nan\n", {}, "line 2: 'nan' is no number"),
        ("time,power\n1750000000,\n", {}, "line 2"),
        ("time,power\n1750000000,5\n\n1750000001,-5\n", {}, "line 4: the power is -5"),
        ("time,power\n1750000000,5\n1750000000,6\n", {}, "line 3: it is of the same time as line 2"),
        ("time,power\n1750000000,24,01\n", {}, "line 2: 3 fields under 2 names"),
        ("time,power\n1750000000\n", {}, "line 2: 1 fields under 2 names"),
        ("time;power\n1750000000;1,234\n", {}, "1,234 in line 2: thousands, or thousandths"),
        ("time;power\n1750000000;1,2\n1750000001;1.2\n", {}, "1,2 in line 2 and 1.2 in line 3"),
        ("time;power\n1750000000;1,2\n", {"decimal": "."}, "'1,2' is no number"),
        ("time;power\n1750000000;0,123\n", {"decimal": "."}, "'0,123' is no number"),
        ("time,power,watts\n1750000000,5,5\n", {}, "2 columns that may be meant"),
        ("a,b\n1,2\n", {}, "no columns that may be meant"),
        ("time|power\n1|2\n", {}, "names 1 columns"),
        ("", {}, "it is empty"),
        ("time,power\n" + ROWS, {"power": "foo"}, "--power-column 'foo': .* has no columns of that name"),
        ("time,power\n" + ROWS, {"time": "foo"}, "--time-column 'foo'"),
        ("time,w,w\n1750000000,5,5\n", {"power": "w"}, "has 2 columns of that name"),
        ("time,power\n1750000000,5\n", {}, "1 usable rows"),
        ("time,power\n1750000000,5\n1750000000,5\n", {}, "1 usable rows"),
        ("time,wh\n1750000000,5\n1750000001,4\n", {"energy": "wh"}, "the energy falls"),
        ("time,count\n" + ROWS, {"energy": "count"}, "'count' names no unit"),
        ("time,kwh\n" + ROWS, {"power": "kwh"}, "names kWh(.|\n)*--energy-column"),
        ("time,kW\n" + ROWS, {"energy": "kW"}, "names kW\n(.|\n)*--power-column"),
        ("time,kW (not W)\n" + ROWS, {}, "names W and kW"),
        ("time,MW\n" + ROWS, {"power": "MW"}, "milli or mega"),
        ("time,VA\n" + ROWS, {"power": "VA"}, "volt-amperes"),
        ("time,power,wh\n1750000000,5,1\n", {"energy": "wh", "power": "power"}, "both --energy-column"),
        ("time,power\n" + ROWS, {"energy_unit": "kWh"}, "--energy-unit without --energy-column"),
        ("time,wh\n" + ROWS, {"energy": "wh", "power_unit": "W"}, "--power-unit with --energy-column"),
        ("time,power\n" + ROWS, {"utc_offset_h": 99.0}, "--utc-offset 99"),
        ("time,power\n" + ROWS, {"utc_offset_h": float("nan")}, "--utc-offset nan"),
    ],
)
def test_a_wall_log_that_is_not_clear_is_refused(tmp_path: Path, text: str, columns: dict, says: str) -> None:
    """Every row, column, unit and decimal mark is understood, or the error says where and what to type."""
    with pytest.raises(UsageError, match=says):
        read(tmp_path, text, **columns)


def test_a_field_that_never_ends_is_refused(tmp_path: Path) -> None:
    """A quote that is not closed and swallows the file is a usage error, not a traceback."""
    with pytest.raises(UsageError, match="field larger than field limit"):
        read(tmp_path, 'time,power\n"' + "1750000000,5\n" * 20_000)
