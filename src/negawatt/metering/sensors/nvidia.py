"""NVIDIA GPUs through NVML: the energy counter where there is one (Volta and newer), else integrated power.

A GPU is metered whole. Under MIG every slice shows the whole GPU's counter (dcgm-exporter issue 317), so a slice in
CUDA_VISIBLE_DEVICES meters the GPU it is cut from, once, and the probe says which part of it the slices are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from negawatt.core.errors import SensorError, refusal
from negawatt.core.host import Host
from negawatt.core.reading import SensorInfo, Source
from negawatt.hardware.nvml import NvmlGpu, open_nvml, slices_of, text
from negawatt.metering.counters import Counter
from negawatt.metering.probes import CheckedCounterProbe, PowerProbe, Quantity
from negawatt.metering.sampled import Shown

if TYPE_CHECKING:
    from negawatt.core.reading import Probe

REFRESH_S = 0.1
"""NVML brings the energy counter up to date about every 100 ms (ml.energy, "Measuring GPU energy"; 10 ms were seen,
too: gpuopenanalytics/pynvml pull request 18)."""
GAIN_SD_FRACTION = 0.025
"""NVML documents power to +-5 % (for Fermi and Kepler; arXiv 2312.02741 finds about as much on newer GPUs): taken as a
95 % interval."""
LIMIT_W = 5000.0
"""Above any GPU module sold today."""
AVERAGE_S = 1.0
"""nvmlDeviceGetPowerUsage is a mean over 1 s on Ampere, except GA100, and newer (NVML API reference)."""
PART_TIME = ("A100", "H100")
"""GPUs whose power sensor looks 25 % of the time (arXiv 2312.02741v2, abstract)."""
_GA100 = ("A100", "A30")


class NvidiaSensor:
    """Energy of the NVIDIA GPUs: all of them, or those that CUDA_VISIBLE_DEVICES names.

    Indexes are taken in NVML's order (PCI bus), over the GPUs that this user may use: a container or Slurm hides the
    others. CUDA counts that way only with CUDA_DEVICE_ORDER=PCI_BUS_ID or when all GPUs are alike: name GPUs by UUID on
    mixed machines. As in CUDA, entries after the first unknown one do not count.

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
        self._source = Source.COUNTER

    @property
    def info(self) -> SensorInfo:
        """What it is; its source is what the GPUs gave that were opened last."""
        return SensorInfo(
            name="nvidia",
            source=self._source,
            measures="whole GPUs with their memory, the idle part included; the host around them is not measured. "
            "Older than Volta, or where the driver hides the counter: power, sampled every 0.02 s. GH200: the whole "
            "module, its CPU and memory included",
            evidence="gain +-5 % (NVML documentation, as a 95 % interval); refresh ~100 ms (ml.energy); A100 and H100 "
            "look 25 % of the time (arXiv 2312.02741)",
        )

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the driver knows
        """None if at least one GPU can be read; else why not and what to type."""
        return refusal(self.open)

    def open(self) -> Sequence[Probe]:
        """One probe per visible GPU.

        Raises:
            SensorError: if there is none or one cannot be read.
            NeedsPrivilegeError: if there are GPUs and this user may use none of them.
        """
        nvml, devices = open_nvml(self._given, SensorError)
        environ = os.environ if self._environ is None else self._environ
        seen = _visible(nvml, devices, environ.get("CUDA_VISIBLE_DEVICES"))
        probes = [self._probe(nvml, device, fraction) for device, fraction in seen]
        sampled = any(isinstance(probe, PowerProbe) for probe in probes)
        self._source = Source.SAMPLED if sampled else Source.COUNTER
        return probes

    def _probe(self, nvml: Any, device: NvmlGpu, slice_fraction: float) -> Probe:  # noqa: ANN401
        """A probe of the best kind that this GPU supports."""
        scope = f"gpu:{device.uuid}"
        read_power, mean_s = _power_reader(nvml, device)

        def energy() -> int:
            return int(nvml.nvmlDeviceGetTotalEnergyConsumption(device.handle))

        counter = Counter(
            name=f"energy of {device.uuid}",
            unit_j=1e-3,
            refresh_s=REFRESH_S,
            limit_w=LIMIT_W,
            late_s=5 * REFRESH_S,
        )
        gpu = Quantity(
            scope=scope,
            sensor="nvidia",
            power=partial(_asked, nvml, scope, read_power),
            shown=Shown(mean_s=mean_s),
            energy=partial(_asked, nvml, scope, energy),
            counter=counter,
            clock=self._clock,
            gain_sd_fraction=GAIN_SD_FRACTION,
            slice_fraction=slice_fraction,
            flags=_flags(device.name),
        )
        reason = ""
        for probe in (CheckedCounterProbe(gpu), PowerProbe(gpu)):
            try:
                probe.snapshot()
            except SensorError as error:
                reason = error.got
            else:
                return probe
        raise SensorError(
            f"{device.name} ({device.uuid}) gives neither energy nor power: {reason}",
            "leaving one GPU out would understate the energy",
            "take it out with CUDA_VISIBLE_DEVICES if the work does not use it",
        )


def _visible(nvml: Any, devices: tuple[NvmlGpu, ...], wanted: str | None) -> list[tuple[NvmlGpu, float]]:  # noqa: ANN401
    """The GPUs to meter, each once, and the part of each that is visible. Raises SensorError if all are hidden."""
    if wanted is None:
        return [(device, _slices(nvml, device)) for device in devices]
    fractions: dict[str, float] = {}
    seen: set[str] = set()
    for entry in (entry.strip() for entry in wanted.split(",")):
        found = _resolve(nvml, devices, entry)
        if found is None:
            break
        device, fraction = found
        if entry not in seen:
            fractions[device.uuid] = min(1.0, fractions.get(device.uuid, 0.0) + fraction)
        seen.add(entry)
    if not fractions:
        raise SensorError(
            f"CUDA_VISIBLE_DEVICES={wanted!r} hides every GPU",
            "a GPU that the work cannot use is not metered",
            "type `unset CUDA_VISIBLE_DEVICES`, or name GPUs that `nvidia-smi -L` lists",
        )
    by_uuid = {device.uuid: device for device in devices}
    return [(by_uuid[uuid], fraction) for uuid, fraction in fractions.items()]


def _resolve(nvml: Any, devices: tuple[NvmlGpu, ...], entry: str) -> tuple[NvmlGpu, float] | None:  # noqa: ANN401
    """The GPU, and the part of it, that one entry of CUDA_VISIBLE_DEVICES means; None if it means none."""
    if entry.isdigit():
        device = devices[int(entry)] if int(entry) < len(devices) else None
        return (device, _slices(nvml, device)) if device else None
    if entry.startswith("MIG-GPU-"):  # drivers before R470: MIG-GPU-<uuid>/<gpu instance>/<compute instance>
        entry = entry.removeprefix("MIG-").partition("/")[0]
    elif entry.startswith("MIG-"):
        try:
            piece = nvml.nvmlDeviceGetHandleByUUID(entry)
            uuid = text(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(piece)))
            device = next((device for device in devices if device.uuid == uuid), None)
            return (device, _part(nvml, device, piece)) if device else None
        except nvml.NVMLError:
            return None  # as CUDA does with an unknown entry; _visible says so if nothing is left
    matches = [device for device in devices if entry.startswith("GPU-") and device.uuid.startswith(entry)]
    return (matches[0], _slices(nvml, matches[0])) if len(matches) == 1 else None


def _slices(nvml: Any, device: NvmlGpu) -> float:  # noqa: ANN401
    """The part of a GPU that its MIG slices, those that this process may use, make up; 1 without MIG."""
    slices = slices_of(nvml, device.handle)
    parts = [_part(nvml, device, piece) for piece in slices or ()]
    return min(1.0, sum(parts)) or 1.0


def _part(nvml: Any, device: NvmlGpu, piece: Any) -> float:  # noqa: ANN401
    """Compute slices of a MIG device over those of its GPU, which are as many as MIG devices fit on it: 7, or 4."""
    most = nvml.nvmlDeviceGetMaxMigDeviceCount(device.handle)
    return float(nvml.nvmlDeviceGetAttributes(piece).computeInstanceSliceCount / most)


def _power_reader(nvml: Any, device: NvmlGpu) -> tuple[Callable[[], float], float]:  # noqa: ANN401
    """How to read power [W], instant where the driver tells it, and over how long it is averaged [s]."""
    handle, field = device.handle, nvml.NVML_FI_DEV_POWER_INSTANT

    def instant() -> float:
        value = nvml.nvmlDeviceGetFieldValues(handle, [field])[0]
        if value.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(value.nvmlReturn)
        return float(value.value.uiVal) * 1e-3

    def usage() -> float:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) * 1e-3

    try:
        instant()
    except nvml.NVMLError:  # drivers before R530, and old GPUs
        try:
            new = nvml.nvmlDeviceGetArchitecture(handle) >= nvml.NVML_DEVICE_ARCH_AMPERE
        except nvml.NVMLError:  # drivers before R450 know no Ampere
            new = False
        averaged = new and not any(name in device.name for name in _GA100)
        return usage, AVERAGE_S if averaged else 0.0
    return instant, 0.0


def _asked(nvml: Any, scope: str, ask: Callable[[], Any]) -> Any:  # noqa: ANN401
    """An answer of NVML. Raises SensorError if the GPU is gone."""
    try:
        return ask()
    except nvml.NVMLError as error:
        raise SensorError(
            f"{scope} gives no more readings ({error})",
            "the energy of this window is unknown from here on",
            "check the GPU with `nvidia-smi -q`",
        ) from error


def _flags(name: str) -> tuple[str, ...]:
    """What is doubtful about every reading of a product."""
    flags = []
    if any(part in name for part in PART_TIME):
        flags.append(
            "the power sensor of A100 and H100 looks 25 % of the time (arXiv 2312.02741): a load that repeats in step "
            "with it can be off by more than is stated"
        )
    if "GH200" in name:
        flags.append("the counter of a GH200 counts the whole module, CPU and memory included (zeus pull request 172)")
    return tuple(flags)


sensor = NvidiaSensor()
