"""Run: something the user named and ran under the meter, and what of the host's joules it answers for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from negawatt.core.host import Host
from negawatt.core.measurement import PowerPoint
from negawatt.core.plan import NotMeasured
from negawatt.core.reading import Reading, Source, total, weakest


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """The part of the host's joules that one run answers for: attributed by a rule, not measured.

    Attributes:
        energy_j: shares of runs at the same time; the shares of all metered runs add up to the host's joules [J].
        process_j: joules of the processors times this process's part of the CPU time of all processes of the host, its
            children included; None where no scope of processors was read [J].
        runs: the most runs that shared the host's joules at once; 1: nobody else was metering.
        rule: how the shares were made, as a sentence.
    """

    energy_j: float
    process_j: float | None
    runs: int
    rule: str


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
        readings: the host's, one per scope, whoever caused them; empty if a sensor failed on the way.
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
        power_curve: mean power of all scopes over time.
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
    power_curve: tuple[PowerPoint, ...] = ()

    @property
    def host_energy_j(self) -> float | None:
        """Joules of the host while it ran; None without readings."""
        return total(self.readings, self.time_s)[0] if self.readings else None

    @property
    def host_energy_sd_j(self) -> float | None:
        """Standard deviation of the error of `host_energy_j` [J]."""
        return total(self.readings, self.time_s)[1] if self.readings else None

    @property
    def source(self) -> Source | None:
        """The weakest source among the readings; None without."""
        return weakest(reading.source for reading in self.readings) if self.readings else None
