"""CPU model: an estimate of processor energy from utilisation, for hosts without a counter.

    P(u) = rated * (IDLE + (FULL - IDLE) * u)      [W], u the host's mean utilisation

`rated` comes from the processor's name (`negawatt.metering.processor`). IDLE and FULL were fitted on RAPL package power
under stepped load, and every error stated here is that on processors held out from the fit: `benchmarks/cpu_model.py`
makes the fit again and tells it all. The line was not assumed: the best bent curve is one point better on held-out
processors (mean absolute error 33 % for 34 %) and worse on the load profiles of whole servers.

It is an estimate and says so: source ESTIMATED, and the same window priced at the corners of the range of idle power
and bend, so that a saving can be checked for holding over all of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from negawatt.core.errors import SensorError
from negawatt.core.host import Host
from negawatt.core.reading import Reading, SensorInfo, Source
from negawatt.hardware.host import this_host
from negawatt.hardware.processes import busy_s, host_cpus
from negawatt.metering.processor import Processor, recognise

IDLE_FRACTION = 0.158
FULL_FRACTION = 0.837
"""Idle and full power over rated power: least squares of the logarithm over 10 load profiles of 8 processors, each
processor with the same weight."""
GAIN_SD_FRACTION = 0.37
"""Root mean square of true over estimated power, less one, on processors held out from the fit: 0.364, rounded up. Of
their points 93 % lie in the 95 % interval that a fit and a width made without them give."""
CORNERS = tuple((idle, exponent) for idle in (0.05, 0.4) for exponent in (0.1, 0.4, 0.7, 1.0, 1.5))
"""Idle over full power, and the exponent of u, all priced with the same full power. The profiles one by one have 0.06
to 0.39 and, fitted alone, 0.14 to 1.33; rounded outwards."""
PERIOD_S = 0.5
"""Short, because a bent curve must be applied to the load of the moment and not to its mean over the window; not
shorter, because the kernel counts busy time in ticks of 10 ms, which at 0.5 s and 2 CPUs are 1 % of utilisation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The host's load up to a moment.

    Attributes:
        time_s: monotonic time [s].
        busy_s: CPU time spent working since boot, over all logical CPUs [s]. Time stolen by a hypervisor is not ours.
    """

    time_s: float
    busy_s: float


def _read_load() -> Load:
    return Load(time_s=time.perf_counter(), busy_s=busy_s())


class CpuModelProbe:
    """Load of the whole host through the power model."""

    scope = "cpu"
    period_s = PERIOD_S

    def __init__(self, processor: Processor, cpus: int, tick_s: float, read: Callable[[], Load]) -> None:
        self._processor = processor
        self._cpus = cpus
        self._read = read
        self._gain_sd_fraction = math.hypot(GAIN_SD_FRACTION, processor.rated_sd_fraction)
        # Busy time is off by a uniform part of a tick per CPU at each of two edges.
        self._busy_sd_s = tick_s * math.sqrt(cpus / 6)

    def snapshot(self) -> Load:
        """The load up to now. Raises SensorError if the system does not say."""
        try:
            return self._read()
        except (OSError, RuntimeError, ValueError) as error:
            raise SensorError(
                f"the system's CPU times cannot be read ({error})",
                "the power model has nothing to price",
                "check `cat /proc/stat`",
            ) from error

    def reading(self, start: Load, end: Load) -> Reading:
        """The model's energy between two loads; idle power is charged for the whole time."""
        time_s, worked_s = end.time_s - start.time_s, end.busy_s - start.busy_s
        if worked_s < -2 * self._busy_sd_s - 1e-6:
            raise SensorError(
                f"the host's busy time went back by {-worked_s:.3f} s",
                "the power model cannot price a load that is negative",
                "run again; a virtual machine that was moved or a CPU that was taken offline does this",
            )
        load_fraction = min(1.0, max(0.0, worked_s / (self._cpus * time_s))) if time_s > 0 else 0.0
        full_w = self._processor.rated_w * FULL_FRACTION
        span_w = self._processor.rated_w * (FULL_FRACTION - IDLE_FRACTION)
        return Reading(
            scope=self.scope,
            energy_j=(full_w - span_w * (1 - load_fraction)) * time_s,
            source=Source.ESTIMATED,
            sensor="cpu-model",
            random_sd_j=span_w * self._busy_sd_s / self._cpus,
            gain_sd_fraction=self._gain_sd_fraction,
            # The unknown idle power is in the corners, where it is varied together with the curve.
            offset_sd_w=0.0,
            corners_j=tuple(
                full_w * (idle + (1 - idle) * math.pow(load_fraction, exponent)) * time_s for idle, exponent in CORNERS
            ),
            flags=self._processor.flags,
        )


class CpuModelSensor:
    """Estimated processor energy of the whole host, every logical CPU that the system shows.

    Args:
        cpus: logical CPUs; None asks the system.
        host: whose processor it is; None: this one.
        read: gives the load; replaced in tests.
    """

    def __init__(
        self, *, cpus: int | None = None, host: Host | None = None, read: Callable[[], Load] = _read_load
    ) -> None:
        self._cpus = cpus
        self._host = host
        self._read = read

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name="cpu-model",
            source=Source.ESTIMATED,
            measures="the whole host's CPUs by utilisation and rated power, other processes included; in a virtual "
            "machine its part of the processor, by logical CPUs, without time stolen by a hypervisor; not GPUs, memory "
            "or disks",
            evidence=f"fitted on RAPL load profiles of 8 processors; error of {GAIN_SD_FRACTION:.0%} (one standard "
            "deviation) on held-out ones, more where the processor's model is hidden",
            fallback=True,
        )

    def available(self, host: Host) -> str | None:
        """None if the system tells its CPU times."""
        try:
            self._read()
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            return f"CPU times of {host.system} cannot be read ({error}); type `pip install --force-reinstall psutil`"
        return None

    def open(self) -> Sequence[CpuModelProbe]:
        """One probe."""
        tick_s = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 1 / 64
        cpus = self._cpus or host_cpus()
        probe = CpuModelProbe(recognise(self._host or this_host(), cpus), cpus, tick_s, self._read)
        probe.snapshot()
        return [probe]


sensor = CpuModelSensor()
