"""ScriptedSensor: a sensor that follows a script, so that a test knows the joules. ManualClock, PlainContext."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from negawatt.core.errors import SensorError
from negawatt.core.host import Host
from negawatt.core.reading import Reading, SensorInfo, Source


class ManualClock:
    """Monotonic seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Simulated time [s]."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass [s]."""
        self.now_s += seconds


@dataclass(frozen=True, slots=True)
class PlainContext:
    """The least context a lever can be given: no energy before it, and a list of what it recorded."""

    host: Host
    clock: Callable[[], float]
    recorded: list[Reading] = field(default_factory=list)

    def time_s(self) -> float:
        """The clock [s]."""
        return self.clock()

    def readings(self) -> tuple[Reading, ...]:
        """What was recorded so far."""
        return tuple(self.recorded)

    def record(self, reading: Reading) -> None:
        """Keep it."""
        self.recorded.append(reading)


@dataclass(frozen=True, kw_only=True)
class ScriptedSensor:
    """A sensor and its only probe: power is a step function of time, so the joules of any window are exact.

    Attributes:
        script: (from, power) pairs, times ascending: power [W] from that time on [s]; 0 W before the first.
        clock: monotonic seconds.
        name: of the sensor.
        scope: of its readings.
        source: of its readings; estimated and modelled ones get corners at half and double energy.
        gain_sd_fraction: of its readings.
        period_s: as of a probe.
        fallback: as of a sensor.
        fails_at_s: from this time on it gives no readings [s].
        missing: the reason why it is not available, or "".
    """

    script: Sequence[tuple[float, float]]
    clock: Callable[[], float]
    name: str = "scripted"
    scope: str = "cpu:0/package"
    source: Source = Source.COUNTER
    gain_sd_fraction: float = 0.01
    period_s: float | None = None
    fallback: bool = False
    fails_at_s: float = math.inf
    missing: str = ""

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name=self.name, source=self.source, measures="a script", evidence="a script", fallback=self.fallback
        )

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the contract
        """The scripted reason."""
        return self.missing or None

    def open(self) -> Sequence[ScriptedSensor]:
        """Itself. Raises SensorError if it is scripted as missing."""
        if self.missing:
            raise SensorError(self.missing, "the script says so", "change the script")
        return [self]

    def snapshot(self) -> float:
        """The time. Raises SensorError when the script says that it fails."""
        now_s = self.clock()
        if now_s >= self.fails_at_s:
            raise SensorError(
                f"sensor {self.name!r} fails from {self.fails_at_s} s on, and it is {now_s} s",
                "the energy of this window is unknown from here on",
                "change the script",
            )
        return now_s

    def reading(self, start: float, end: float) -> Reading:
        """The script's energy between two times."""
        energy_j = self.energy_j(start, end)
        modelled = self.source in (Source.ESTIMATED, Source.MODELLED)
        return Reading(
            scope=self.scope,
            energy_j=energy_j,
            source=self.source,
            sensor=self.name,
            random_sd_j=0.0,
            gain_sd_fraction=self.gain_sd_fraction,
            offset_sd_w=0.0,
            corners_j=(energy_j / 2, energy_j * 2) if modelled else (),
        )

    def energy_j(self, start_s: float, end_s: float) -> float:
        """Joules between two times, exactly."""
        ends = [*(begin for begin, _ in self.script[1:]), math.inf]
        return math.fsum(
            power_w * max(0.0, min(end, end_s) - max(begin, start_s))
            for (begin, power_w), end in zip(self.script, ends, strict=True)
        )
