"""What an energy is the same as: phone charges, homes, trainings of GPT-3, as ranges with sources."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from negawatt.core.errors import UsageError
from negawatt.report import numbers
from negawatt.report.citations import Citation, Grade, citations, table

KWH_J = 3.6e6
"""One kilowatt-hour in joules, by definition."""

_UNITS_J = {
    **{f"{prefix}J": 10.0 ** (3 * i) for i, prefix in enumerate(("", "k", "M", "G", "T", "P"))},
    **{f"{prefix}Wh": 3600.0 * 10.0 ** (3 * i) for i, prefix in enumerate(("", "k", "M", "G", "T"))},
}
_TYPED = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]+)")


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
        UsageError: for anything but a positive number with a unit from J to PJ or Wh to TWh, spelt exactly (mJ is
            not MJ).
    """
    fix = f"type a number and one of {', '.join(_UNITS_J)}: `negawatt footprint 3.2 kWh`"
    found = _TYPED.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} is not an energy", "it must be a positive number with its unit", fix)
    number, unit = float(found[1]), found[2]
    if unit not in _UNITS_J:
        near = [known for known in _UNITS_J if known.lower() == unit.lower()]
        hint = f"did you mean {near[0]}?" if near else fix
        raise UsageError(f"{unit!r} is no unit of energy known here", "a wrong prefix is a factor of a thousand", hint)
    energy_j = number * _UNITS_J[unit]
    if not (math.isfinite(energy_j) and energy_j > 0):
        raise UsageError(f"{text!r} is not an energy that can be pictured", "it is zero, or beyond any number", fix)
    return energy_j


def kwh(energy_j: float) -> str:
    """An energy in kWh whatever its size, with four significant digits."""
    text = numbers.significant(energy_j / KWH_J, 4)
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{numbers.NBSP}kWh"


def count(amount: float) -> str:
    """How many of something: "58.5 million", "2.37", "1/400 000" below a hundredth, and no figure below a millionth."""
    if amount == 0:
        return "0"
    if amount < 1e-6:
        return f"<{numbers.NBSP}1/million"
    if amount >= 0.01:
        return numbers.count(amount) if amount >= 1e6 else numbers.significant(amount)
    return f"1/{count(float(f'{1 / amount:.2g}'))}"
