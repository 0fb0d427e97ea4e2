"""Placement: when and where work runs.

It cannot be trialled tonight for next winter, so it is applied to trials already measured. Energy at the site, carbon
and money are kept apart and never added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from negawatt.core.measurement import PowerPoint
from negawatt.core.reading import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A number somebody stated, with where it comes from; negawatt has no default for any of them."""

    value: float  # in the unit that the field's name gives
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place where work can run. None means unknown, and stays unknown in every result.

    Attributes:
        name: its name.
        pue: power usage effectiveness: site energy over energy of the IT equipment, at least 1.
        intensity_gpkwh: carbon intensity of its electricity [gCO2e/kWh].
        price_per_kwh: price of its electricity, in `currency`.
        currency: "EUR", "USD", ...; "" without a price.
    """

    name: str
    pue: Declared | None = None
    intensity_gpkwh: Declared | None = None
    price_per_kwh: Declared | None = None
    currency: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work whose load was measured, to be placed.

    Attributes:
        name: what it is.
        energy_j: IT energy [J].
        time_s: run time [s].
        source: evidence of the energy.
        sites: where it could run, the present site first.
        load: power over time, where it was recorded.
    """

    name: str
    energy_j: float
    time_s: float
    source: Source
    sites: tuple[Site, ...]
    load: tuple[PowerPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementChoice:
    """One way to place a job.

    Attributes:
        placement: name of the placement.
        site: name of the site.
        start_s: start after submission [s].
    """

    placement: str
    site: str
    start_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a job costs under one placement choice; None where a site's figure is unknown.

    Attributes:
        choice: the placement.
        site_energy_j: energy drawn by the site for the job: IT energy times PUE [J].
        carbon_g: location-based emissions [gCO2e].
        cost: money, in `currency`.
        currency: of the cost.
        delay_s: end later than if started at once on the present site [s].
        basis: where each figure comes from.
    """

    choice: PlacementChoice
    site_energy_j: float | None
    carbon_g: float | None
    cost: float | None  # in `currency`
    currency: str
    delay_s: float
    basis: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementInfo:
    """What a placement is."""

    name: str
    summary: str
    evidence: str


@runtime_checkable
class Placement(Protocol):
    """When and where: one file, one entry point in the group `negawatt.placements`."""

    @property
    def info(self) -> PlacementInfo:
        """What it is."""

    def choices(self, job: Job) -> Sequence[PlacementChoice]:
        """Ways to place this job, "here and now" among them; empty if it knows none."""

    def outcome(self, job: Job, choice: PlacementChoice) -> Outcome:
        """Cost of one of them. Raises UsageError for a choice that is not one of `choices(job)`."""
