"""CPU model: an estimate of processor energy from utilisation, for hosts without a counter.

    P(u) = cpus * (idle + (full - idle) * u^k)      [W], u the host's mean utilisation, k = 1

It is an estimate and says so: source ESTIMATED, a gain error of 50 %, and the same window priced at the corners of the
range of the model's parameters, so that a saving can be checked for holding over all of them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from negawatt.core.errors import SensorError
from negawatt.core.host import Host
from negawatt.core.reading import Reading, SensorInfo, Source

TABLE_W = {
    "Haswell": (1.90, 5.99),
    "Broadwell": (0.71, 3.54),
    "Skylake": (0.64, 4.05),
    "Cascade Lake": (0.64, 3.80),
    "EPYC 1st gen": (0.82, 2.55),
    "EPYC 2nd gen": (0.47, 1.64),
    "EPYC 3rd gen": (0.45, 1.87),
}
"""Idle and full power per logical CPU [W]: Cloud Carbon Footprint's coefficients, derived from SPECpower_ssj2008
(https://www.cloudcarbonfootprint.org/docs/methodology/)."""
IDLE_W = median(idle for idle, _ in TABLE_W.values())
FULL_W = median(full for _, full in TABLE_W.values())
GAIN_SD_FRACTION = 0.5
"""CodeCarbon's published profiling against load formulas of this kind: mean absolute error 42 % over 96 points, with
the processor's rated power known. Here it is not, so 50 % is taken as the standard deviation: an assumption."""
CORNERS = tuple((idle_fraction, exponent) for idle_fraction in (0.05, 0.7) for exponent in (0.5, 0.75, 1.0, 1.25, 1.5))
"""Idle over full power, and k, all priced with the same full power. Assumption: wider than the table (idle 0.16 to 0.32
of full, k = 1), because other processors, frequency scaling and hyper-threads bend the line both ways."""
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
    import psutil

    times = psutil.cpu_times()
    # Guest time is inside user and nice; iowait is idle; Windows has its interrupts inside system.
    busy_s = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    return Load(time_s=time.perf_counter(), busy_s=busy_s)


class CpuModelProbe:
    """Load of the whole host through the power model."""

    scope = "cpu"
    period_s = PERIOD_S

    def __init__(self, cpus: int, tick_s: float, read: Callable[[], Load]) -> None:
        self._cpus = cpus
        self._read = read
        # Busy time is off by a uniform part of a tick per CPU at each of two edges.
        self._busy_sd_s = tick_s * math.sqrt(cpus / 6)

    def snapshot(self) -> Load:
        """The load up to now. Raises SensorError if the system does not say."""
        try:
            return self._read()
        except (OSError, RuntimeError) as error:
            raise SensorError(
                f"the system's CPU times cannot be read ({error})",
                "the power model has nothing to price",
                "check `cat /proc/stat`",
            ) from error

    def reading(self, start: Load, end: Load) -> Reading:
        """The model's energy between two loads; idle power is charged for the whole time."""
        time_s, busy_s = end.time_s - start.time_s, end.busy_s - start.busy_s
        if busy_s < -2 * self._busy_sd_s - 1e-6:
            raise SensorError(
                f"the host's busy time went back by {-busy_s:.3f} s",
                "the power model cannot price a load that is negative",
                "run again; a virtual machine that was moved or a CPU that was taken offline does this",
            )
        load_fraction = min(1.0, max(0.0, busy_s / (self._cpus * time_s))) if time_s > 0 else 0.0

        def energy_j(idle_w: float, exponent: float) -> float:
            return self._cpus * (idle_w + (FULL_W - idle_w) * math.pow(load_fraction, exponent)) * time_s

        return Reading(
            scope=self.scope,
            energy_j=energy_j(IDLE_W, 1.0),
            source=Source.ESTIMATED,
            sensor="cpu-model",
            random_sd_j=(FULL_W - IDLE_W) * self._busy_sd_s,
            gain_sd_fraction=GAIN_SD_FRACTION,
            # The unknown idle power is in the corners, where it is varied together with the curve.
            offset_sd_w=0.0,
            corners_j=tuple(energy_j(idle_fraction * FULL_W, exponent) for idle_fraction, exponent in CORNERS),
        )


class CpuModelSensor:
    """Estimated processor energy of the whole host, every logical CPU that the system shows.

    Args:
        cpus: logical CPUs; None asks the system.
        read: gives the load; replaced in tests.
    """

    def __init__(self, *, cpus: int | None = None, read: Callable[[], Load] = _read_load) -> None:
        self._cpus = cpus
        self._read = read

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name="cpu-model",
            source=Source.ESTIMATED,
            measures="the whole host's CPUs by utilisation, other processes included; not GPUs, memory or disks, and "
            "not time stolen by a hypervisor",
            evidence="Cloud Carbon Footprint coefficients (SPECpower), median of 7 server CPUs; about +-50 %",
            fallback=True,
        )

    def available(self, host: Host) -> str | None:
        """None if the system tells its CPU times."""
        try:
            self._read()
        except (ImportError, OSError, RuntimeError) as error:
            return f"CPU times of {host.system} cannot be read ({error}); type `pip install --force-reinstall psutil`"
        return None

    def open(self) -> Sequence[CpuModelProbe]:
        """One probe."""
        tick_s = 1 / os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 1 / 64
        probe = CpuModelProbe(self._cpus or os.cpu_count() or 1, tick_s, self._read)
        probe.snapshot()
        return [probe]


sensor = CpuModelSensor()
