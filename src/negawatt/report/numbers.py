"""Numbers as people read them: three significant digits, a sensible unit, and never an error finer than it is known."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

NBSP = "\u00a0"
MINUS = "\u2212"

# Control characters, direction overrides and lone surrogates: in a hostile name they could forge a line.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """Foreign text without characters that could change how other text is shown."""
    return _UNSAFE.sub("\ufffd", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit to show a quantity in.

    Attributes:
        symbol: what is printed.
        size: one of it, in joules or seconds.
    """

    symbol: str
    size: float  # in the SI unit of the quantity

    def show(self, value: float, sd: float | None = None) -> str:
        """The number alone, with its standard deviation if there is one (both in the SI unit)."""
        return with_sd(value / self.size, None if sd is None else sd / self.size)


# Joules up to what a person can picture, then the unit on the electricity bill (1 Wh = 3600 J).
_ENERGY = tuple(
    Unit(symbol=symbol, size=size)
    for symbol, size in (("nJ", 1e-9), ("µJ", 1e-6), ("mJ", 1e-3), ("J", 1.0), ("kJ", 1e3), ("Wh", 3.6e3))
)
_GRID = tuple(Unit(symbol=symbol, size=size) for symbol, size in (("Wh", 3.6e3), ("kWh", 3.6e6), ("MWh", 3.6e9)))
_TIME = tuple(
    Unit(symbol=symbol, size=size)
    for symbol, size in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0))
)
_FROM_WH_J = 1e6


def _pick(units: tuple[Unit, ...], value: float) -> Unit:
    return next((unit for unit in reversed(units) if abs(value) >= unit.size), units[0])


def energy_unit(energy_j: float) -> Unit:
    """The unit to show joules of this size in: nJ to kJ, and Wh to MWh from 1000 kJ up."""
    if energy_j == 0:
        return Unit(symbol="J", size=1.0)
    return _pick(_GRID, energy_j) if abs(energy_j) >= _FROM_WH_J else _pick(_ENERGY[:-1], energy_j)


def time_unit(time_s: float) -> Unit:
    """The unit to show seconds of this size in; seconds up to two minutes."""
    return _pick(_TIME, time_s) if time_s >= 120 or time_s < 1 else Unit(symbol="s", size=1.0)


def energy(energy_j: float, sd_j: float | None = None) -> str:
    """Joules with their unit: "21.3 mJ", "21.3 ± 0.4 mJ"."""
    unit = energy_unit(energy_j)
    return f"{unit.show(energy_j, sd_j)}{NBSP}{unit.symbol}"


def duration(time_s: float) -> str:
    """Seconds with their unit: "3.20 ms", "41.0 s", "2.50 h"."""
    unit = time_unit(time_s)
    return f"{unit.show(time_s)}{NBSP}{unit.symbol}"


def significant(value: float, digits: int = 3) -> str:
    """A number rounded to some significant digits, without an exponent, thousands set apart."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        decimals -= 1  # 9.996 became 10.00
    return fixed(rounded, max(0, decimals))


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals, a true minus sign, and thousands set apart from 10 000 up."""
    body = f"{abs(value):,.{decimals}f}"
    whole = body.split(".", maxsplit=1)[0]
    body = body.replace(",", NBSP if len(whole) > len("9,999") else "")
    negative = value < 0 and any(c in "123456789" for c in body)
    return f"{MINUS if negative else ''}{body}"


def with_sd(value: float, sd: float | None) -> str:
    """A number and its standard deviation, rounded where the deviation begins (one digit; two if it begins with 1)."""
    if sd is None or not sd > 0 or not math.isfinite(sd):
        return significant(value)
    exponent = math.floor(math.log10(sd))
    decimals = -exponent + (1 if sd / 10**exponent < 1.95 else 0)
    if value:
        decimals = min(decimals, 4 - math.floor(math.log10(abs(value))))  # at most five digits: no meter gives more
    decimals = max(0, decimals)
    return f"{fixed(value, decimals)} ± {fixed(sd, decimals) if round(sd, decimals) else significant(sd, 1)}"


def percent(fraction: float, decimals: int = 0, *, signed: bool = False) -> str:
    """A fraction in percent: "61 %", and with `signed` "+61 %"."""
    body = fixed(100 * fraction, decimals)
    plus = "+" if signed and not body.startswith(MINUS) and body.strip("0.") else ""
    return f"{plus}{body}{NBSP}%"


def decimals_for(low: float, high: float) -> int:
    """Decimals, in percent, that an interval of fractions deserves: none when it is wider than two points."""
    half_points = 50 * abs(high - low)
    return 0 if half_points >= 1 else 1 if half_points >= 0.1 else 2


def span(low: float, high: float) -> str:
    """An interval of fractions in percent: "57 to 64 %"."""
    decimals = decimals_for(low, high)
    return f"{fixed(100 * low, decimals)} to {percent(high, decimals)}"


def percent_interval(fraction: float, low: float, high: float) -> str:
    """A fraction with its interval: "61 % (57 to 64 %)"."""
    return f"{percent(fraction, decimals_for(low, high))} ({span(low, high)})"


def carbon(carbon_g: float) -> str:
    """Grams of CO2 equivalent with a sensible unit."""
    for size, symbol in ((1e6, "t"), (1e3, "kg"), (1.0, "g")):
        if abs(carbon_g) >= size:
            return f"{significant(carbon_g / size)}{NBSP}{symbol}"
    return f"{significant(carbon_g * 1e3)}{NBSP}mg"


def money(amount: float) -> str:
    """An amount of money: cents from one unit up, three significant digits below."""
    return fixed(amount, 2) if abs(amount) >= 1 else significant(amount)


def quality(value: float | None) -> str:
    """A quality with four significant digits; a dash if none was reported."""
    return "–" if value is None else significant(value, 4)


def change(value: float, decimals: int | None = None) -> str:
    """A signed change in the unit of whatever it is; two significant digits unless the decimals are given."""
    body = significant(value, 2) if decimals is None else fixed(value, decimals)
    return f"+{body}" if body.strip("0.") and not body.startswith(MINUS) else body


def change_interval(value: float, low: float, high: float) -> tuple[str, str]:
    """A signed change and its interval, all with the decimals that the interval deserves."""
    half = abs(high - low) / 2
    decimals = max(0, 1 - math.floor(math.log10(half))) if half > 0 else None
    return change(value, decimals), f"{change(low, decimals)} to {change(high, decimals)}"


def plain(value: float) -> str:
    """A number that somebody typed, as typed: 0.005, 0.97."""
    return f"{value:.6g}"


def count(value: float) -> str:
    """A number of things: whole, thousands set apart, three significant digits from a million up in words."""
    for size, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= size:
            return f"{float(f'{value / size:.3g}'):g}{NBSP}{word}"
    return fixed(value, 0) if float(value).is_integer() else significant(value)


def several(noun: str) -> str:
    """The plural of an English noun: "images", "queries", "batches"."""
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def plural(n: int, noun: str) -> str:
    """A number of things with its noun: "1 run", "3 runs"."""
    return f"{count(n)}{NBSP}{noun if n == 1 else several(noun)}"
