"""AI's electricity until a year, and how far levers bend it: growth from a sourced base year, both phases, as ranges.

For a year y: E(y) = E(base) * (1 + g)^(y - base). With levers, of which a part a(y) of the work makes use:
E(y) * (t * K_train + (1 - t) * K_infer), with K_phase the product over levers of (1 - a(y) * s_phase) and t the share
of training.
Levers multiply what the others left; those that act on the same thing do not stack, the larger one counts.
Ranges go by corners: the low end takes the low base, growth and remaining share, the high end the high ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.core.errors import UsageError
from negawatt.core.plan import Plan
from negawatt.core.saving import Baseline
from negawatt.core.workload import Phase
from negawatt.report.citations import Citation, Grade, citations, table

LAST_YEAR = 2040
"""The furthest year: a growth rate that is kept up for longer says nothing about the world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A lower and an upper end, in the unit of whatever it bounds."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a range goes from a finite low to a finite high end, got {self.low} and {self.high}")

    def __mul__(self, other: Range) -> Range:
        """The product of two ranges of numbers that are not negative, by corners."""
        return Range(low=self.low * other.low, high=self.high * other.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """One way to use less, and how much of the work makes use of it.

    Attributes:
        name: as typed on the command line.
        savings: per phase, the fraction of the phase's electricity it saves where it is used.
        acts_on: what it changes: levers that share this do not stack.
        adoption_fraction: part of the work that uses it in the last year; rises in equal steps from none.
        grade: what the savings rest on: a grade of a publication, "declared", or the verdict of a plan.
        cost: what it costs, in words; "" if unknown.
        basis: how the savings came about, in words.
        citations: where they were published.
    """

    name: str
    savings: Mapping[Phase, Range]
    acts_on: str
    adoption_fraction: float
    grade: str
    cost: str = ""
    basis: str = ""
    citations: tuple[Citation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What a forecast starts from.

    Attributes:
        base_year: the year of the base; to_year: the last one; ramp_year: the last year in which no work uses a lever.
        base_twh: electricity of AI in the base year [TWh].
        growth: of each later year over the one before, as a fraction.
        train_share: training's part of the electricity, as a fraction; the rest is inference.
        levers: in the order of printing.
    """

    base_year: int
    to_year: int
    ramp_year: int
    base_twh: Range
    growth: Range
    train_share: Range
    levers: tuple[Lever, ...]

    def __post_init__(self) -> None:
        if not self.base_year < self.to_year <= LAST_YEAR or self.to_year <= self.ramp_year:
            raise UsageError(
                f"a forecast from {self.base_year} to {self.to_year}",
                f"it needs a year after {self.base_year}, and after {self.ramp_year}, in which no lever is used yet; "
                f"beyond {LAST_YEAR} no growth rate means anything",
                f"--to {max(self.base_year, self.ramp_year) + 1} to --to {LAST_YEAR}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Year:
    """One year: electricity without levers, with each alone by name, and with all [TWh]."""

    year: int
    without_twh: Range
    with_twh: Mapping[str, Range]
    all_twh: Range


@dataclass(frozen=True, slots=True, kw_only=True)
class Bend:
    """What one lever, or all, takes off in the last year, as a fraction and in TWh."""

    name: str
    saved: Range
    saved_twh: Range


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The years, and what each lever takes off the last of them, the one that saves most first."""

    assumptions: Assumptions
    years: tuple[Year, ...]
    bends: tuple[Bend, ...]
    together: Bend


def forecast(given: Assumptions) -> Forecast:
    """Work a forecast out."""
    years = tuple(_year(given, year) for year in range(given.base_year, given.to_year + 1))
    last = years[-1].without_twh
    bends = [_bend(given, lever.name, (lever,), last) for lever in given.levers]
    return Forecast(
        assumptions=given,
        years=years,
        bends=tuple(sorted(bends, key=lambda bend: bend.saved.low + bend.saved.high, reverse=True)),
        together=_bend(given, "all levers", given.levers, last),
    )


def _year(given: Assumptions, year: int) -> Year:
    passed, part = year - given.base_year, _ramp(given, year)
    grown = Range(low=(1 + given.growth.low) ** passed, high=(1 + given.growth.high) ** passed)
    without = given.base_twh * grown
    return Year(
        year=year,
        without_twh=without,
        with_twh={lever.name: without * _left(given, (lever,), part) for lever in given.levers},
        all_twh=without * _left(given, given.levers, part),
    )


def _ramp(given: Assumptions, year: int) -> float:
    """The part of its last-year adoption that every lever has in a year."""
    return min(1.0, max(0.0, (year - given.ramp_year) / (given.to_year - given.ramp_year)))


def _left(given: Assumptions, levers: Sequence[Lever], part: float) -> Range:
    """What remains of the electricity, as a fraction: the low end where most is saved."""
    shares = (given.train_share.low, given.train_share.high)
    ends = []
    for most in (True, False):
        train, infer = (_kept(levers, phase, part, most=most) for phase in (Phase.TRAIN, Phase.INFER))
        mixed = [share * train + (1 - share) * infer for share in shares]
        ends.append(min(mixed) if most else max(mixed))
    return Range(low=ends[0], high=ends[1])


def _kept(levers: Sequence[Lever], phase: Phase, part: float, *, most: bool) -> float:
    """What levers leave of one phase: the product over what they act on."""
    left: dict[str, float] = {}
    for lever in levers:
        if phase in lever.savings:
            saving = lever.savings[phase].high if most else lever.savings[phase].low
            kept = 1 - part * lever.adoption_fraction * saving
            left[lever.acts_on] = min(left.get(lever.acts_on, 1.0), kept)
    return math.prod(left.values())


def _bend(given: Assumptions, name: str, levers: Sequence[Lever], last_twh: Range) -> Bend:
    left = _left(given, levers, 1.0)
    saved = Range(low=1 - left.high, high=1 - left.low)
    return Bend(name=name, saved=saved, saved_twh=last_twh * saved)


def known_levers() -> dict[str, Lever]:
    """The shipped levers by name. Figures measured at the accelerator are scaled to the electricity of a site."""
    share, adoption = span(table("forecast")["accelerator_share"]), table("forecast")["adoption"]["fraction"]
    return {
        row["name"]: Lever(
            name=row["name"],
            savings={
                phase: Range(low=row[phase][0], high=row[phase][1])
                * (share if row["at_accelerator"] else Range(low=1.0, high=1.0))
                for phase in Phase
                if phase in row
            },
            acts_on=row["acts_on"],
            adoption_fraction=adoption,
            grade=Grade(row["grade"]),
            cost=row["cost"],
            basis=row["basis"],
            citations=citations(row),
        )
        for row in table("forecast")["lever"]
    }


def levers_of(plan: Plan) -> tuple[Lever, ...]:
    """The savings that a plan has shown over the competent default, as one lever for the work that is like it.

    Raises:
        UsageError: if the plan has shown none.
    """
    shown = {phase.phase: s for phase in plan.phases if (s := phase.saving(Baseline.COMPETENT)) and s.shown}
    if not shown:
        raise UsageError(
            f"the plan for {plan.workload} has shown no saving over the competent default",
            "nothing would be bent",
            "leave --plan out, or give the plan of another workload",
        )
    return (
        Lever(
            name=f"plan for {plan.workload}",
            savings={phase: Range(low=max(0.0, s.ci_low), high=max(0.0, s.ci_high)) for phase, s in shown.items()},
            acts_on=f"plan for {plan.workload}",
            adoption_fraction=table("forecast")["adoption"]["fraction"],
            grade=", ".join(dict.fromkeys(s.label() for s in shown.values())),
            basis=f"measured on {plan.host.name} over the competent default; as if such work behaved like this one",
        ),
    )


def defaults() -> Assumptions:
    """The shipped assumptions: see the table for the source of each."""
    rows = table("forecast")
    base = rows["base"]["data_centres_twh"] * rows["base"]["ai_share_fraction"]
    return Assumptions(
        base_year=rows["base"]["year"],
        to_year=2030,
        ramp_year=rows["adoption"]["from_year"],
        base_twh=Range(low=base, high=base),
        growth=span(rows["growth"]),
        train_share=span(rows["train_share"]),
        levers=tuple(known_levers().values()),
    )


def span(row: Mapping[str, Any]) -> Range:
    """The range that a row of the table gives as fractions."""
    return Range(low=row["low_fraction"], high=row["high_fraction"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Country:
    """A country's electricity beside a range of AI's.

    Attributes:
        name: of the country.
        used_twh: its use in a year.
        year: that year.
        ratio: AI's use as a multiple of the country's.
        citation: where its use was published.
    """

    name: str
    used_twh: float  # TWh
    year: int
    ratio: Range
    citation: Citation

    @property
    def alike(self) -> bool:
        """Whether the country's use lies in the range: whether "as much as" can be said."""
        return self.ratio.low <= 1 <= self.ratio.high


def scenario_2027() -> Range:
    """De Vries's scenario for 2027 [TWh]: 1.5 million servers x 6.5 to 10.2 kW x 8760 h, computed."""
    row = table("forecast")["scenario_2027"]
    return Range(low=row["servers"] * row["low_kw"] * 8760 / 1e9, high=row["servers"] * row["high_kw"] * 8760 / 1e9)


def beside_countries(ai_twh: Range) -> tuple[Country, ...]:
    """AI's electricity [TWh] beside that of the countries it is compared with, the smallest first."""
    return tuple(
        Country(
            name=row["name"],
            used_twh=row["twh"],
            year=row["year"],
            ratio=Range(low=ai_twh.low / row["twh"], high=ai_twh.high / row["twh"]),
            citation=citations(row)[0],
        )
        for row in table("forecast")["country"]
    )
