"""Reading: joules with their source and error. Sensor and Probe: where readings come from.

A number without a source and an error does not exist in negawatt. The error has three parts because they combine
differently:

- `random_sd_j` is independent between windows: it adds in quadrature;
- `gain_sd_fraction` is one unknown factor per sensor: it cancels in a ratio of two readings of that sensor;
- `offset_sd_w` is one unknown constant power per sensor: it does not cancel when the two windows differ in length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from negawatt.core.errors import ScopeMismatchError
from negawatt.core.host import Host


class Source(StrEnum):
    """How a number came about, strongest evidence first."""

    COUNTER = "counter"
    """read from an energy counter in the hardware"""
    SAMPLED = "sampled"
    """power readings integrated over time"""
    ESTIMATED = "estimated"
    """utilisation put through a power model"""
    MODELLED = "modelled"
    """computed by the simulation of a device that is not there"""
    DECLARED = "declared"
    """typed in by somebody"""

    @property
    def measured(self) -> bool:
        """Whether joules or watts were read from hardware."""
        return self in (Source.COUNTER, Source.SAMPLED)

    @property
    def weakness(self) -> int:
        """Place in the order of evidence: 0 is the strongest."""
        return tuple(Source).index(self)


def weakest(sources: Iterable[Source]) -> Source:
    """The weakest of some sources: what a sum or a ratio of their numbers rests on. Raises ValueError if empty."""
    return max(sources, key=lambda source: source.weakness)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Energy of one scope over one window.

    Attributes:
        scope: what was measured, as a place in the tree that `contains` describes: "host" (the whole machine), "cpu"
            (all processors), "cpu:0/package", "cpu:0/dram", "gpu:GPU-uuid".
        energy_j: joules, idle included.
        source: how the number came about.
        sensor: name of the sensor.
        random_sd_j: standard deviation of the error that differs from window to window [J].
        gain_sd_fraction: standard deviation of the sensor's unknown factor.
        offset_sd_w: standard deviation of the sensor's unknown constant [W].
        corners_j: for estimated and modelled energy, the same window priced at each corner of the model's parameter
            range, in an order fixed by the sensor; empty for measured energy [J]. Where the ratio of two energies is
            not monotone in a parameter, the sensor gives points between the ends too.
        flags: what makes this reading doubtful beyond its stated error, a sentence each; empty if nothing was noticed.
    """

    scope: str
    energy_j: float
    source: Source
    sensor: str
    random_sd_j: float
    gain_sd_fraction: float
    offset_sd_w: float
    corners_j: tuple[float, ...] = ()
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = (self.energy_j, self.random_sd_j, self.gain_sd_fraction, self.offset_sd_w, *self.corners_j)
        if not all(math.isfinite(x) and x >= 0 for x in parts):
            raise ValueError(f"energies and errors are finite and not negative, got {self}")

    def __add__(self, later: Reading) -> Reading:
        """The reading of two adjacent windows of the same sensor and scope."""
        if (self.scope, self.sensor, self.source) != (later.scope, later.sensor, later.source):
            raise ScopeMismatchError(
                f"adding {self.scope} ({self.sensor}, {self.source}) to {later.scope} ({later.sensor}, {later.source})",
                "adjacent windows add up only for one scope of one sensor",
                "use negawatt.core.reading.total() to sum different scopes",
            )
        return replace(
            self,
            energy_j=self.energy_j + later.energy_j,
            random_sd_j=math.hypot(self.random_sd_j, later.random_sd_j),
            gain_sd_fraction=max(self.gain_sd_fraction, later.gain_sd_fraction),
            offset_sd_w=max(self.offset_sd_w, later.offset_sd_w),
            corners_j=tuple(a + b for a, b in zip(self.corners_j, later.corners_j, strict=True)),
            flags=tuple(dict.fromkeys(self.flags + later.flags)),
        )


def contains(whole: str, part: str) -> bool:
    """Whether the joules of scope `part` are among those of scope `whole`.

    Scopes form a tree: "host" is the root, "/" leads to a part, and ":" names one of several of a kind, so "cpu"
    contains "cpu:0", which contains "cpu:0/package".
    """
    return whole in ("host", part) or part.startswith((f"{whole}/", f"{whole}:"))


def overlap(one: str, other: str) -> bool:
    """Whether two scopes share joules: one is, or contains, the other."""
    return contains(one, other) or contains(other, one)


def disjoint(scopes: Iterable[str]) -> None:
    """Raise ScopeMismatchError if one scope is, or contains, another: their sum would count joules twice."""
    seen: list[str] = []
    for scope in scopes:
        for other in seen:
            if overlap(scope, other):
                raise ScopeMismatchError(
                    f"scopes {other!r} and {scope!r} overlap",
                    "adding them would count the same joules twice",
                    "keep one of the two sensors: `negawatt run --sensor NAME`",
                )
        seen.append(scope)


def total(readings: Sequence[Reading], time_s: float) -> tuple[float, float]:
    """Sum of readings of disjoint scopes over one window.

    Args:
        readings: at least one reading.
        time_s: length of the window [s], which turns the offset into joules.

    Returns:
        Energy and its standard deviation [J]. Gain and offset of one sensor are common to its scopes and add
        linearly; different sensors are independent and add in quadrature.

    Raises:
        ScopeMismatchError: if two scopes overlap.
    """
    disjoint(reading.scope for reading in readings)
    variance = sum(reading.random_sd_j**2 for reading in readings)
    for sensor in {reading.sensor for reading in readings}:
        mine = [reading for reading in readings if reading.sensor == sensor]
        variance += sum(reading.gain_sd_fraction * reading.energy_j for reading in mine) ** 2
        variance += (sum(reading.offset_sd_w for reading in mine) * time_s) ** 2
    return math.fsum(reading.energy_j for reading in readings), math.sqrt(variance)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMeasured:
    """Something that was not measured or tried, and why."""

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorInfo:
    """What a sensor is, for `negawatt doctor` and the report.

    Attributes:
        name: unique name, equal to its entry-point name.
        source: the evidence its readings give.
        measures: what it measures, in words.
        evidence: where its error figures come from.
        fallback: whether it is used only for what nothing better measures; of two fallbacks the stronger source is
            better.
    """

    name: str
    source: Source
    measures: str
    evidence: str
    fallback: bool = False


@runtime_checkable
class Probe(Protocol):
    """One physical quantity of an opened sensor."""

    @property
    def scope(self) -> str:
        """What it measures: the scope of its readings."""

    @property
    def period_s(self) -> float | None:
        """The longest time between two snapshots [s] (sampling, or before a counter wraps twice); None: no limit."""

    def snapshot(self) -> Any:  # noqa: ANN401 -- opaque to everybody but the probe itself
        """The state of the counter now: a number or a frozen dataclass of numbers, for another process to go on from.

        Cheap: called at both edges of every window. Raises SensorError.
        """

    def reading(self, start: Any, end: Any) -> Reading:  # noqa: ANN401
        """Energy between two snapshots of this probe. Raises SensorError if they cannot be subtracted."""


@runtime_checkable
class Sensor(Protocol):
    """A way to get joules out of a host: one file, one entry point in the group `negawatt.sensors`."""

    @property
    def info(self) -> SensorInfo:
        """What it is."""

    def available(self, host: Host) -> str | None:
        """None if it can be used here; else the reason as a sentence that ends with what to type."""

    def open(self) -> Sequence[Probe]:
        """Its probes, one per physical counter, no two overlapping. Raises SensorError or NeedsPrivilegeError."""
