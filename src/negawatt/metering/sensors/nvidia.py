"""NVIDIA GPUs through NVML: the energy counter where there is one (Volta and newer), else integrated power.

A GPU is metered whole. Under MIG every slice shows the whole GPU's counter (dcgm-exporter issue 317), so a slice in
CUDA_VISIBLE_DEVICES meters the GPU it is cut from, once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from negawatt.core.errors import NegawattError, SensorError
from negawatt.core.host import Host
from negawatt.core.reading import Reading, SensorInfo, Source
from negawatt.metering.counters import Count, Counter

if TYPE_CHECKING:
    from negawatt.core.reading import Probe

REFRESH_S = 0.1
"""NVML brings counter and power up to date about every 100 ms (arXiv 2312.02741; ml.energy, "Measuring GPU energy")."""
PERIOD_S = 0.1
"""Power is read as often as it changes."""
GAIN_SD_FRACTION = 0.025
"""NVML documents power to +-5 % (for Fermi and Kepler; arXiv 2312.02741 finds about as much on newer GPUs): taken as a
95 % interval."""
LIMIT_W = 5000.0
"""Above any GPU module sold today."""


class CounterProbe:
    """One GPU's total-energy counter [mJ since the driver was loaded]; 64 bits, so it does not wrap."""

    period_s = None

    def __init__(self, nvml: Any, handle: Any, uuid: str, clock: Callable[[], float]) -> None:  # noqa: ANN401
        self.scope = f"gpu:{uuid}"
        self._nvml = nvml
        self._handle = handle
        self._clock = clock
        self._counter = Counter(name=f"energy of {uuid}", unit_j=1e-3, refresh_s=REFRESH_S, limit_w=LIMIT_W)

    def snapshot(self) -> Count:
        """Counter and power now. Raises SensorError if the GPU is gone."""
        try:
            count = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
            power_w = self._nvml.nvmlDeviceGetPowerUsage(self._handle) * 1e-3
        except self._nvml.NVMLError as error:
            raise _lost(self.scope, error) from error
        return Count(time_s=self._clock(), count=count, power_w=power_w)

    def reading(self, start: Count, end: Count) -> Reading:
        """Energy between two snapshots. Raises SensorError if the driver was reloaded between them."""
        return Reading(
            scope=self.scope,
            energy_j=self._counter.energy_j(start, end),
            source=Source.COUNTER,
            sensor="nvidia",
            random_sd_j=self._counter.edge_sd_j(start.power_w, end.power_w),
            gain_sd_fraction=GAIN_SD_FRACTION,
            offset_sd_w=0.0,
        )


class PowerProbe:
    """One GPU's power, integrated: for GPUs older than Volta, whose power reading is instantaneous."""

    period_s = PERIOD_S

    def __init__(self, nvml: Any, handle: Any, uuid: str, clock: Callable[[], float]) -> None:  # noqa: ANN401
        self.scope = f"gpu:{uuid}"
        self._nvml = nvml
        self._handle = handle
        self._clock = clock

    def snapshot(self) -> Count:
        """Power now. Raises SensorError if the GPU is gone."""
        try:
            power_w = self._nvml.nvmlDeviceGetPowerUsage(self._handle) * 1e-3
        except self._nvml.NVMLError as error:
            raise _lost(self.scope, error) from error
        return Count(time_s=self._clock(), count=0, power_w=power_w)

    def reading(self, start: Count, end: Count) -> Reading:
        """Energy by the trapezoid rule; its error is that of a step somewhere between the two samples, uniformly."""
        time_s = end.time_s - start.time_s
        return Reading(
            scope=self.scope,
            energy_j=(start.power_w + end.power_w) / 2 * time_s,
            source=Source.SAMPLED,
            sensor="nvidia",
            random_sd_j=abs(end.power_w - start.power_w) * time_s / math.sqrt(12),
            gain_sd_fraction=GAIN_SD_FRACTION,
            offset_sd_w=0.0,
        )


def _lost(scope: str, error: Exception) -> SensorError:
    return SensorError(
        f"{scope} gives no more readings ({error})",
        "the energy of this window is unknown from here on",
        "check the GPU with `nvidia-smi -q`",
    )


class NvidiaSensor:
    """Energy of the NVIDIA GPUs: all of them, or those that CUDA_VISIBLE_DEVICES names.

    Indexes are taken in NVML's order (PCI bus). CUDA counts that way only with CUDA_DEVICE_ORDER=PCI_BUS_ID or when all
    GPUs are alike: name GPUs by UUID on mixed machines. As in CUDA, entries after the first unknown one do not count.

    Args:
        nvml: a module with the interface of `pynvml`; None imports it when it is first needed.
        environ: environment variables; None: those of this process.
        clock: monotonic seconds; replaced by simulators.
    """

    def __init__(
        self,
        nvml: Any | None = None,  # noqa: ANN401
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._given = nvml
        self._environ = environ
        self._clock = clock

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name="nvidia",
            source=Source.COUNTER,
            measures="whole GPUs with their memory, the idle part included; the host around them is not measured. "
            "Older than Volta: power sampled every 0.1 s",
            evidence="gain +-5 % (NVML documentation, as a 95 % interval); refresh ~100 ms (arXiv 2312.02741)",
        )

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the driver knows
        """None if at least one GPU can be read; else why not and what to type."""
        try:
            self.open()
        except NegawattError as error:
            return f"{error.got}; {error.fix}"
        return None

    def open(self) -> Sequence[Probe]:
        """One probe per visible GPU. Raises SensorError if there is none or one cannot be read."""
        nvml = self._given or _import_nvml()
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            gpus = {_text(nvml.nvmlDeviceGetUUID(handle)): handle for handle in handles}
        except nvml.NVMLError as error:
            raise SensorError(
                f"NVML cannot be used ({error})",
                "without the NVIDIA driver no GPU's energy can be read",
                "on a machine with an NVIDIA GPU, check its driver with `nvidia-smi`",
            ) from error
        if not gpus:
            raise SensorError("NVML lists no GPU", "there is nothing to read", "check with `nvidia-smi -L`")
        return [self._probe(nvml, gpus[uuid], uuid) for uuid in self._visible(nvml, tuple(gpus))]

    def _visible(self, nvml: Any, uuids: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ANN401
        """The GPUs to meter, by UUID. Raises SensorError if CUDA_VISIBLE_DEVICES hides all of them."""
        environ = os.environ if self._environ is None else self._environ
        wanted = environ.get("CUDA_VISIBLE_DEVICES")
        if wanted is None:
            return uuids
        visible: list[str] = []
        for entry in wanted.split(","):
            uuid = _resolve(nvml, uuids, entry.strip())
            if uuid is None:
                break
            if uuid not in visible:
                visible.append(uuid)
        if not visible:
            raise SensorError(
                f"CUDA_VISIBLE_DEVICES={wanted!r} hides every GPU",
                "a GPU that the work cannot use is not metered",
                "type `unset CUDA_VISIBLE_DEVICES`, or name GPUs that `nvidia-smi -L` lists",
            )
        return tuple(visible)

    def _probe(self, nvml: Any, handle: Any, uuid: str) -> Probe:  # noqa: ANN401
        """A probe of the best kind that this GPU supports."""
        for kind in (CounterProbe, PowerProbe):
            probe = kind(nvml, handle, uuid, self._clock)
            try:
                probe.snapshot()
            except SensorError as error:
                reason = str(error.got)
                continue
            return probe
        name = _text(nvml.nvmlDeviceGetName(handle))
        raise SensorError(
            f"{name} ({uuid}) gives neither energy nor power: {reason}",
            "leaving one GPU out would understate the energy",
            "take it out with CUDA_VISIBLE_DEVICES if the work does not use it",
        )


def _resolve(nvml: Any, uuids: tuple[str, ...], entry: str) -> str | None:  # noqa: ANN401
    """The GPU that one entry of CUDA_VISIBLE_DEVICES means; None if it means none."""
    if entry.isdigit():
        return uuids[int(entry)] if int(entry) < len(uuids) else None
    if entry.startswith("MIG-GPU-"):  # drivers before R470: MIG-GPU-<uuid>/<gpu instance>/<compute instance>
        entry = entry.removeprefix("MIG-").partition("/")[0]
    elif entry.startswith("MIG-"):
        try:
            slice_ = nvml.nvmlDeviceGetHandleByUUID(entry)
            return _text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slice_)))
        except nvml.NVMLError:
            return None  # as CUDA does with an unknown entry; _visible says so if nothing is left
    matches = [uuid for uuid in uuids if entry.startswith("GPU-") and uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _text(name: str | bytes) -> str:
    """NVML gave bytes before version 12 of its binding."""
    return name.decode() if isinstance(name, bytes) else name


def _import_nvml() -> ModuleType:
    try:
        import pynvml
    except ImportError as error:
        raise SensorError(
            f"the package nvidia-ml-py cannot be imported ({error})",
            "it is how GPU energy is read",
            "type `pip install nvidia-ml-py`",
        ) from error
    return pynvml  # type: ignore[no-any-return]


sensor = NvidiaSensor()
