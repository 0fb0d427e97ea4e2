"""What an energy is the same as: phone charges, homes, trainings of GPT-3, as ranges with sources."""

from __future__ import annotations

import re
from dataclasses import dataclass

from negawatt.core.errors import UsageError
from negawatt.report import numbers
from negawatt.report.citations import Citation, Grade, citations, table

KWH_J = 3.6e6
"""One kilowatt-hour in joules, by definition."""

_UNITS_J = {
    **{f"{prefix}J": 10.0 ** (3 * i - 9) for i, prefix in enumerate(("n", "µ", "m", "", "k", "M", "G", "T", "P"))},
    **{f"{prefix}Wh": 3600.0 * 10.0 ** (3 * i - 3) for i, prefix in enumerate(("m", "", "k", "M", "G", "T"))},
}
_TYPED = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]+)", re.ASCII)
_COMMA = re.compile(r"\d[\d.]*,[\d.,]*\d\s*[A-Za-zµ]*", re.ASCII)
_POWER = re.compile(r"[a-zµ]?w(?:atts?)?", re.IGNORECASE)
_LEAST_J, _MOST_J = 1e-9, 1e24
"""Beyond these a number is a slip of the keyboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalent:
    """A thing whose energy people can picture.

    Attributes:
        key: name in JSON.
        one, many: what is printed for one and for several of it.
        low_j, central_j, high_j: lowest, central and highest published energy of one of it [J].
        grade: what these rest on.
        basis: how they came about, in words.
        citations: where they were published.
    """

    key: str
    one: str
    many: str
    low_j: float
    central_j: float
    high_j: float
    grade: Grade
    basis: str
    citations: tuple[Citation, ...]

    def amount(self, energy_j: float, low_j: float, high_j: float) -> Amount:
        """How many of it an energy is.

        Args:
            energy_j: the energy [J].
            low_j: lower end of its own interval [J].
            high_j: upper end of its own interval [J].
        """
        return Amount(
            equivalent=self, low=low_j / self.high_j, central=energy_j / self.central_j, high=high_j / self.low_j
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """So many of one thing: the low end takes the low energy and the dearest figure, the high end the reverse."""

    equivalent: Equivalent
    low: float
    central: float  # how many of it
    high: float


def equivalents() -> tuple[Equivalent, ...]:
    """Every row of the shipped table, the smallest thing last."""
    return tuple(
        Equivalent(
            key=row["key"],
            one=row["one"],
            many=row["many"],
            low_j=row["low_kwh"] * KWH_J,
            central_j=row["central_kwh"] * KWH_J,
            high_j=row["high_kwh"] * KWH_J,
            grade=Grade(row["grade"]),
            basis=row["basis"],
            citations=citations(row),
        )
        for row in table("equivalents")["equivalent"]
    )


def equivalent(key: str) -> Equivalent:
    """One row by its key. Raises KeyError."""
    return {row.key: row for row in equivalents()}[key]


def interval(energy_j: float, sd_j: float) -> tuple[float, float]:
    """The 95 % interval of an energy with a normal error, cut off at zero [J]."""
    half_j = 1.96 * sd_j
    return max(0.0, energy_j - half_j), energy_j + half_j


def parse_energy(text: str) -> float:
    """Joules of an energy as people type it: "3.2 kWh", "500 J", "1.3GWh".

    Raises:
        UsageError: for anything but a positive number with a unit from nJ to PJ or mWh to TWh, spelt exactly (mJ is
            not MJ), or one that is beyond any picture.
    """
    fix = f"type a number and one of {', '.join(_UNITS_J)}: `negawatt footprint 3.2 kWh`"
    found = _TYPED.fullmatch(text.strip().replace("\u03bc", "µ"))  # the Greek letter looks the same
    if found is None and _COMMA.fullmatch(text.strip()):
        raise UsageError(
            f"{text!r} has a comma",
            "it could part decimals or thousands, a factor of a thousand",
            "type a decimal point, and no sign between thousands: 1300 or 1.3",
        )
    if found is None:
        raise UsageError(f"{text!r} is not an energy", "it must be a positive number with its unit", fix)
    number, unit = float(found[1]), "µJ" if found[2] == "uJ" else found[2]
    if unit not in _UNITS_J:
        raise _no_unit(unit, fix)
    energy_j = number * _UNITS_J[unit]
    if not _LEAST_J <= energy_j <= _MOST_J:
        raise UsageError(
            f"{text!r} is not an energy that can be pictured",
            f"it is less than {_LEAST_J:g} J or more than {_MOST_J:g} J",
            fix,
        )
    return energy_j


def _no_unit(unit: str, fix: str) -> UsageError:
    if _POWER.fullmatch(unit):
        return UsageError(
            f"{unit!r} is a unit of power",
            "an energy is power times time",
            "multiply by the hours: 5 kW for 2 h are `negawatt footprint 10 kWh`",
        )
    near = [known for known in _UNITS_J if known.lower() == unit.lower()]
    hint = f"did you mean {' or '.join(near)}?" if near else fix
    return UsageError(f"{unit!r} is no unit of energy known here", "a wrong prefix is a factor of a thousand", hint)


def kwh(energy_j: float) -> str:
    """An energy in kWh whatever its size, with four significant digits."""
    text = numbers.significant(energy_j / KWH_J, 4)
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{numbers.NBSP}kWh"


def readable(energy_j: float) -> str:
    """An energy in kWh, or below one watt-hour in joules, where kWh would be a row of zeros."""
    if energy_j == 0:
        return "0"
    return kwh(energy_j) if energy_j >= KWH_J / 1000 else numbers.energy(energy_j)


def count(amount: float) -> str:
    """How many of something: "58.5 million", "2.37", "1/400 000" below a hundredth, and no figure below a millionth."""
    if amount == 0:
        return "0"
    if amount < 1e-6:
        return f"<{numbers.NBSP}1/million"
    if amount >= 0.01:
        return numbers.count(amount) if amount >= 1e6 else numbers.significant(amount)
    return f"1/{count(float(f'{1 / amount:.2g}'))}"
