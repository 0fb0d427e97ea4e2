"""Measurement: what one run of one phase cost and gave."""

from __future__ import annotations

import math
from dataclasses import dataclass

from negawatt.core.reading import Reading, Source, total, weakest


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Quantiles of the time that one batch, or one request to a server, took [s]."""

    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerPoint:
    """Mean power of all scopes over the interval that ends at `time_s` after the start."""

    time_s: float
    power_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Cost and result of one window.

    Attributes:
        readings: one per scope, disjoint, at least one.
        time_s: wall time of the window [s].
        work_units: useful work done. In the infer phase, units of the workload (images, tokens). In the train phase 1:
            the work is "a trained model", so that a run that gets there in fewer steps did the same work.
        quality: the workload's quality metric on the data split that the trial names; None if it reports none.
        samples: training samples or requests passed through, for information.
        latency: time per batch in the infer phase; of a server, per request from its arrival to the last byte.
        peak_memory_bytes: highest resident memory of the process (with its children for commands); 0 if unknown.
        transform_j: joules spent before the window to change the model (export, quantise); 0.0 where nothing is done.
        power_curve: mean power over time, where the meter sampled it.
    """

    readings: tuple[Reading, ...]
    time_s: float
    work_units: float
    quality: float | None = None
    samples: float = 0.0  # dimensionless count
    latency: Latency | None = None
    peak_memory_bytes: int = 0
    transform_j: float = 0.0
    power_curve: tuple[PowerPoint, ...] = ()

    def __post_init__(self) -> None:
        if not self.readings:
            raise ValueError("a measurement has at least one reading")
        if not (math.isfinite(self.time_s) and self.time_s > 0 and math.isfinite(self.work_units)):
            raise ValueError(f"time is positive and work finite, got {self.time_s} s, {self.work_units} units")
        if self.work_units <= 0:
            raise ValueError(f"no work was done in this window ({self.work_units} units)")
        if not math.isfinite(self.samples):
            raise ValueError(f"samples are a finite number, got {self.samples}")
        if self.quality is not None and not math.isfinite(self.quality):
            raise ValueError(f"quality is a finite number, got {self.quality}")

    @property
    def energy_j(self) -> float:
        """Joules of all scopes."""
        return total(self.readings, self.time_s)[0]

    @property
    def energy_sd_j(self) -> float:
        """Standard deviation of the meter's error on `energy_j` [J]."""
        return total(self.readings, self.time_s)[1]

    @property
    def energy_per_work_j(self) -> float:
        """Joules per unit of work."""
        return self.energy_j / self.work_units

    @property
    def time_per_work_s(self) -> float:
        """Seconds per unit of work."""
        return self.time_s / self.work_units

    @property
    def source(self) -> Source:
        """The weakest source among the readings."""
        return weakest(reading.source for reading in self.readings)

    @property
    def scopes(self) -> tuple[str, ...]:
        """What was measured, sorted."""
        return tuple(sorted(reading.scope for reading in self.readings))

    def corner_energies_j(self) -> tuple[float, ...]:
        """Total energy at each corner of the power models' parameter ranges [J]; empty if all was measured.

        Models of different sensors are varied together, corner by corner where they have equally many, else one
        model at a time with the others at their central value.
        """
        models = [reading for reading in self.readings if reading.corners_j]
        if not models:
            return ()
        rest = self.energy_j - math.fsum(reading.energy_j for reading in models)
        counts = {len(reading.corners_j) for reading in models}
        if len(counts) == 1:
            corners = zip(*(reading.corners_j for reading in models), strict=True)
            return tuple(rest + math.fsum(corner) for corner in corners)
        return tuple(self.energy_j - reading.energy_j + corner for reading in models for corner in reading.corners_j)
