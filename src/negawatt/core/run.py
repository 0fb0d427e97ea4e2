"""Run: something the user named and ran under the meter, and what of the host's joules it answers for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from negawatt.core.codec import to_json
from negawatt.core.host import Host
from negawatt.core.reading import NotMeasured, Reading, Source, total, weakest
from negawatt.core.tuned import Tuned


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """The part of the host's joules that one run answers for: attributed by a rule, not measured.

    Attributes:
        energy_j: its share; the shares of all outermost runs add up to the host's joules, and those of the runs inside
            another one to at most its share [J].
        process_j: joules of the processors times this process's part of the CPU time of all processes of the host, its
            children included; None where that is not known, and for a run inside another one of its process [J].
        runs: the most runs that shared at once, on the host or inside another run; 1: there was no other.
        rule: how the share was made, as a sentence.
        beyond_j: of `energy_j`, what came after the recorded run around it had ended [J].
    """

    energy_j: float
    process_j: float | None
    runs: int
    rule: str
    beyond_j: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Useful work that a run did, for joules per unit: 3,000 "step", 1.2 million "token"."""

    unit: str
    quantity: float  # in units

    def __post_init__(self) -> None:
        if not (math.isfinite(self.quantity) and self.quantity >= 0):
            raise ValueError(f"work is finite and not negative, got {self.quantity} {self.unit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A command, function or training run that was metered.

    Attributes:
        name: what the user calls it.
        started_utc: start, ISO 8601.
        time_s: wall time [s].
        readings: the host's, one per scope, whoever caused them. If a sensor failed on the way, those of the last
            checkpoint before, flagged; empty if there was none.
        attribution: what of them this run answers for; None without readings.
        work: what it did.
        argv: the command and its arguments; empty for code metered from inside.
        exit_code: of a command; None for anything else, and where a signal killed it.
        signal: name of the signal that killed it, or "".
        error: the exception that ended it, or "".
        fault: how a sensor failed, or "".
        not_measured: what was left out, and why.
        host: where it ran.
        parent: key of the run that this one is a part of, or "".
        wall_j, wall_sd_j: the host's joules at the wall and their standard deviation, by this host's calibration; None
            where there is none [J].
        tuned: limits of devices that were tuned while it went on.
    """

    name: str
    started_utc: str
    time_s: float
    readings: tuple[Reading, ...]
    attribution: Attribution | None
    work: tuple[Work, ...] = ()
    argv: tuple[str, ...] = ()
    exit_code: int | None = None
    signal: str = ""
    error: str = ""
    fault: str = ""
    not_measured: tuple[NotMeasured, ...] = ()
    host: Host
    parent: str = ""
    wall_j: float | None = None
    wall_sd_j: float | None = None
    tuned: tuple[Tuned, ...] = ()

    @property
    def energy_j(self) -> float | None:
        """Joules that it answers for; None without readings."""
        return self.attribution.energy_j if self.attribution else self.host_energy_j

    @property
    def host_energy_j(self) -> float | None:
        """Joules of the host while it ran; None without readings."""
        return total(self.readings, self.time_s)[0] if self.readings else None

    @property
    def host_energy_sd_j(self) -> float | None:
        """Standard deviation of the error of `host_energy_j` [J]."""
        return total(self.readings, self.time_s)[1] if self.readings else None

    @property
    def energy_sd_j(self) -> float | None:
        """Standard deviation of the meter's error of `energy_j` [J]; the rule that made a share has none stated."""
        host_j, host_sd_j = self.host_energy_j, self.host_energy_sd_j
        if self.attribution is None or not host_j or host_sd_j is None:
            return host_sd_j
        return host_sd_j * self.attribution.energy_j / host_j

    @property
    def energy_per_work_j(self) -> dict[str, float]:
        """Joules that it answers for per unit of each kind of work; empty without readings or work."""
        energy_j = self.energy_j
        if energy_j is None:
            return {}
        return {work.unit: energy_j / work.quantity for work in self.work if work.quantity > 0}

    def __str__(self) -> str:
        energy = "energy unknown" if self.energy_j is None else f"{self.energy_j:.4g} J (sd {self.energy_sd_j:.2g} J)"
        return f"{self.name}: {energy}, {self.source or self.fault}, {self.time_s:.4g} s"

    def summary(self) -> dict[str, Any]:
        """All of it as JSON types, with the sums in front; null where there are no readings."""
        sums = {
            "energy_j": self.energy_j,
            "energy_sd_j": self.energy_sd_j,
            "power_w": None if self.energy_j is None else self.energy_j / self.time_s,
            "source": None if self.source is None else str(self.source),
            "host_energy_j": self.host_energy_j,
            "energy_per_work_j": self.energy_per_work_j,
            "beyond_j": self.attribution.beyond_j if self.attribution and self.parent else None,
        }
        return {**sums, **to_json(self)}

    @property
    def source(self) -> Source | None:
        """The weakest source among the readings; None without."""
        return weakest(reading.source for reading in self.readings) if self.readings else None
