"""Apple Silicon through the package zeus-apple-silicon (Apache-2.0), which reads macOS's IOReport without root.

The numbers come from counters in the system, but "are believed to be model-based estimates derived from utilization,
frequency, and voltage" (README of zeus-apple-silicon 1.1; Apple's manual of powermetrics says "estimated and may be
inaccurate"), as RAPL's are on some processors. Hence the wide gain.
"""

from __future__ import annotations

import importlib
import math
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

from negawatt.core.errors import SensorError, refusal
from negawatt.core.host import Host
from negawatt.core.reading import Reading, SensorInfo, Source
from negawatt.metering.counters import Count, Counter

CHANNELS = {"cpu": "cpu_total_mj", "gpu": "gpu_mj", "dram": "dram_mj", "ane": "ane_mj"}
"""Scopes and the package's fields [mJ]. gpu_sram_mj is left out: whether gpu_mj holds it is not documented."""
MAY_REST = ("gpu", "dram", "ane")
"""What macOS switches off, or does not count on every chip: standing still is no fault there."""
REFRESH_S = 0.01
"""Windows "under ~10 ms may be dominated by quantization noise" (same README)."""
QUANTUM_J = 1e-3
"""Resolution of most channels (same README)."""
GAIN_SD_FRACTION = 0.1
"""Assumption: no comparison with a meter was found that holds for all chips."""
LIMIT_W = 1000.0
"""Above any Apple chip sold today."""
SAME_S = 1e-3
"""The scopes are read one right after the other: counters younger than this serve for all of them [s]."""


class _Counters:
    """The package's monitor, asked once for all scopes."""

    def __init__(self, monitor: Any, clock: Callable[[], float]) -> None:  # noqa: ANN401
        self._monitor = monitor
        self._clock = clock
        self._latest: tuple[float, Any] | None = None

    def read(self) -> tuple[float, Any]:
        """Time [s] and counters now. Raises SensorError if macOS does not give them."""
        if self._latest is None or not 0 <= self._clock() - self._latest[0] < SAME_S:
            try:
                metrics = self._monitor.get_cumulative_energy()
            except (RuntimeError, ValueError) as error:
                raise SensorError(
                    f"macOS gives no energy counters ({error})",
                    "the energy of this window is unknown from here on",
                    "type `pip install --upgrade zeus-apple-silicon`",
                ) from error
            self._latest = (self._clock(), metrics)
        return self._latest


class AppleProbe:
    """One part of the chip."""

    period_s = None

    def __init__(self, scope: str, counters: _Counters) -> None:
        self.scope = scope
        self._counters = counters
        self._counter = Counter(name=CHANNELS[scope], unit_j=1e-3, refresh_s=REFRESH_S, limit_w=LIMIT_W)

    def snapshot(self) -> Count:
        """The counter now. Raises SensorError if it is gone."""
        time_s, metrics = self._counters.read()
        count = getattr(metrics, CHANNELS[self.scope])
        if count is None:
            raise SensorError(
                f"{CHANNELS[self.scope]} is not counted any more",
                "the energy of this window is unknown from here on",
                "type `pip install --upgrade zeus-apple-silicon`, and restart",
            )
        return Count(time_s=time_s, count=int(count))

    def reading(self, start: Count, end: Count) -> Reading:
        """Energy between two snapshots. Raises SensorError if a counter was reset, or the processor's stands still."""
        resting = self.scope in MAY_REST and start.count == end.count
        energy_j = 0.0 if resting else self._counter.energy_j(start, end)
        power_w = energy_j / max(end.time_s - start.time_s, REFRESH_S)
        return Reading(
            scope=self.scope,
            energy_j=energy_j,
            source=Source.COUNTER,
            sensor="apple",
            random_sd_j=math.hypot(self._counter.edge_sd_j(power_w, power_w), QUANTUM_J / math.sqrt(6)),
            gain_sd_fraction=GAIN_SD_FRACTION,
            offset_sd_w=0.0,
        )


class AppleSensor:
    """Processor, GPU, memory and neural engine of an Apple chip.

    Args:
        monitor: an object with the interface of `zeus_apple_silicon.AppleEnergyMonitor`; None imports and makes one.
        clock: monotonic seconds; replaced by simulators.
    """

    def __init__(
        self,
        monitor: Any | None = None,  # noqa: ANN401
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._given = monitor
        self._clock = clock

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name="apple",
            source=Source.COUNTER,
            measures="processor, GPU, memory and neural engine of the chip, what of them macOS counts; not the screen, "
            "storage or power supply",
            evidence="IOReport counts by a model of Apple's; gain sd 10 % is an assumption; refresh and resolution "
            "from zeus-apple-silicon",
        )

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the interpreter's own platform counts
        """None if the chip's counters can be read; else why not and what to type."""
        return refusal(self.open)

    def open(self) -> Sequence[AppleProbe]:
        """One probe per part that is counted. Raises SensorError if there is none."""
        counters = _Counters(self._given or _import_monitor(), self._clock)
        metrics = counters.read()[1]
        probes = [AppleProbe(scope, counters) for scope, name in CHANNELS.items() if getattr(metrics, name) is not None]
        if not any(probe.scope == "cpu" for probe in probes):
            raise SensorError(
                "macOS names no energy counter of the processor that is understood",
                "Apple renames them with new chips, and half of a chip would understate the energy",
                "type `pip install --upgrade zeus-apple-silicon`",
            )
        return probes


def _import_monitor() -> Any:  # noqa: ANN401 -- an extension type
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Darwin", "arm64"):
        raise SensorError(
            f"this Python runs on {system} {machine}, not on an Apple chip",
            "the counters belong to macOS on Apple Silicon",
            "on such a Mac, install a Python for arm64 and type `pip install zeus-apple-silicon`",
        )
    try:
        return importlib.import_module("zeus_apple_silicon").AppleEnergyMonitor()
    except (ImportError, RuntimeError) as error:
        raise SensorError(
            f"the package zeus-apple-silicon cannot be used ({error})",
            "it is how macOS's energy counters are read",
            "type `pip install zeus-apple-silicon`",
        ) from error


sensor = AppleSensor()
