"""AMD GPUs through AMD SMI: the energy counter where it agrees with the power, else integrated power.

What is counted once: a package with two dies (MI250) or in partitions (MI300) shows up as several GPUs, of which the
first reports the power of all (Linux, "drm/amd/pm: Only primary die supports power data"). It is read once, also where
the work may use only another one.

The counter is not believed on sight: on an MI100 it was found frozen, and counting about a hundredth of the joules
(github.com/ROCm/amdsmi issue 38). It is compared with the power at opening, and again inside every window.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from negawatt.core.errors import SensorError, refusal
from negawatt.core.host import Host
from negawatt.core.reading import Probe, SensorInfo, Source
from negawatt.hardware.amdsmi import import_amdsmi, one_line
from negawatt.metering.counters import Counter
from negawatt.metering.probes import CheckedCounterProbe, CounterProbe, PowerProbe, Quantity
from negawatt.metering.sampled import Shown

REFRESH_S = 0.1
"""Assumption, on the safe side, as the next is one: AMD publishes neither refresh nor accuracy."""
GAIN_SD_FRACTION = 0.05
LIMIT_W = 5000.0
"""Above any GPU module sold today."""
LATE_S = 10 * REFRESH_S
"""A counter that has not moved for so long is late."""
SHOWN = Shown(mean_s=1.0, rest_s=600.0)
"""Power older than MI300's is a mean over a time that AMD does not publish: one second is an assumption. It is given in
whole watts, so an idle GPU may well show the same number for minutes."""
OFFSET_SD_W = 1 / math.sqrt(12)
"""Of a power in whole watts."""
POWER_PERIOD_S = 0.1
"""Power alone is read at least this often [s]."""
CHECK_S = 0.5
"""How long the counter is watched at opening."""
CHECK_FACTOR = 4.0
"""Further apart than this, counter and power do not measure the same thing. Wide, because the load may change
meanwhile; the fault that is looked for is a hundredfold."""

_VISIBLE = (("ROCR_VISIBLE_DEVICES",), ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"))
"""The second picks from what the first leaves, and CUDA's name counts where HIP's is not set (rocm.docs.amd.com, "GPU
isolation techniques")."""


@dataclass(frozen=True, slots=True, eq=False)
class _Gpu:
    """What AMD SMI lists as one GPU."""

    handle: Any
    bdf: str
    names: frozenset[str]  # UUIDs it may be called by, lower case
    order: int  # HIP's index, or the place in the list where the library does not tell it
    model: str
    power_w: float | None
    fault: str  # why its counter cannot be used, or ""

    @property
    def mute(self) -> bool:
        return not self.power_w and bool(self.fault)


class AmdSensor:
    """Energy of the AMD GPUs: all of them, or those that ROCR_, HIP_ or CUDA_VISIBLE_DEVICES leave.

    Args:
        amdsmi: a module with the interface of `amdsmi`; None imports it when it is first needed.
        environ: environment variables; None: those of this process.
        clock: monotonic seconds; replaced by simulators.
        wait: sleeps; replaced by simulators.
    """

    def __init__(
        self,
        amdsmi: Any | None = None,  # noqa: ANN401
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._given = amdsmi
        self._environ = environ
        self._clock = clock
        self._wait = wait
        self._checked: dict[str, str] = {}

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name="amd",
            source=Source.COUNTER,
            measures="whole AMD GPU packages with their memory, the idle part and every die and partition included. "
            "Where the energy counter is missing or wrong: power, sampled every 0.1 s",
            evidence="gain sd 5 % and refresh 0.1 s are assumptions: AMD publishes neither; the counter is compared "
            "with the power (github.com/ROCm/amdsmi issue 38)",
        )

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the driver knows
        """None if at least one GPU can be read; else why not and what to type."""
        return refusal(self.open)

    def open(self) -> Sequence[Probe]:
        """One probe per package with a visible GPU; the first call watches the counters for half a second.

        Raises:
            SensorError: if there is none, or one cannot be read.
        """
        smi = self._given or import_amdsmi(SensorError)
        gpus = self._list(smi)
        card_of = _cards(gpus)
        visible = _visible(gpus, os.environ if self._environ is None else self._environ)
        probes: list[Probe] = []
        for card in dict.fromkeys(card_of[gpu.bdf] for gpu in visible):
            dies = {gpu.bdf for gpu in gpus if card_of[gpu.bdf] is card}
            hidden = sorted(dies - {gpu.bdf for gpu in visible})
            probes.append(self._probe(smi, card, hidden))
        return probes

    def _list(self, smi: Any) -> list[_Gpu]:  # noqa: ANN401
        """All GPUs in PCI order, their counters checked."""
        try:
            smi.amdsmi_init(smi.AmdSmiInitFlags.INIT_AMD_GPUS)
            handles = {str(smi.amdsmi_get_gpu_device_bdf(h)).lower(): h for h in smi.amdsmi_get_processor_handles()}
        except smi.AmdSmiException as error:
            raise SensorError(
                f"AMD SMI cannot be used ({one_line(error)})",
                "without AMD's GPU driver no GPU's energy can be read",
                "on a machine with an AMD GPU, check its driver with `amd-smi list`",
            ) from error
        if not handles:
            raise SensorError("AMD SMI lists no GPU", "there is nothing to read", "check with `amd-smi list`")
        gpus = [_gpu(smi, bdf, handles[bdf], place) for place, bdf in enumerate(sorted(handles))]
        self._check(smi, [gpu for gpu in gpus if gpu.bdf not in self._checked])
        return [replace(gpu, fault=self._checked[gpu.bdf]) for gpu in gpus]

    def _check(self, smi: Any, gpus: Sequence[_Gpu]) -> None:  # noqa: ANN401
        """Note what is wrong with the counters, watching all of them at once."""
        before: dict[str, tuple[int, float]] = {}
        for gpu in gpus:
            try:
                before[gpu.bdf] = _count(smi, gpu)
            except SensorError:
                self._checked[gpu.bdf] = "there is no energy counter"
        if not before:
            return
        begin_s = self._clock()
        self._wait(CHECK_S)
        for gpu in gpus:
            if gpu.bdf in before:
                count, unit_j = before[gpu.bdf]
                energy_j = (_count(smi, gpu)[0] - count) * unit_j
                self._checked[gpu.bdf] = _fault(energy_j, gpu.power_w, self._clock() - begin_s)

    def _probe(self, smi: Any, card: _Gpu, hidden: Sequence[str]) -> Probe:  # noqa: ANN401
        """A probe of the best kind that this package supports."""
        flags = [f"its package holds {', '.join(hidden)} too, which this work cannot use"] if hidden else []
        if card.mute:
            raise SensorError(
                f"{card.model} ({card.bdf}) gives neither energy nor power: {card.fault}",
                "leaving one GPU out would understate the energy",
                "take it out with ROCR_VISIBLE_DEVICES if the work does not use it",
            )
        if not card.fault and not card.power_w:
            flags.append("no power was reported that the energy counter could be compared with")
        if card.fault and "no energy counter" not in card.fault:
            flags.append(f"power was integrated instead of the energy counter, because {card.fault}")
        quantity = Quantity(
            scope=_scope(card),
            sensor="amd",
            clock=self._clock,
            power=partial(_power_or_lost, smi, card),
            shown=SHOWN,
            gain_sd_fraction=GAIN_SD_FRACTION,
            flags=tuple(flags),
        )
        if card.fault:
            return PowerProbe(replace(quantity, offset_sd_w=OFFSET_SD_W), POWER_PERIOD_S)
        counter = Counter(
            name=f"energy of {card.bdf}",
            unit_j=_count(smi, card)[1],
            refresh_s=REFRESH_S,
            limit_w=LIMIT_W,
            late_s=LATE_S,
        )
        quantity = replace(quantity, counter=counter, energy=lambda: _count(smi, card)[0])
        return CheckedCounterProbe(quantity) if card.power_w else CounterProbe(quantity)


def _scope(gpu: _Gpu) -> str:
    """By PCI address, as the hwmon sensor names the same GPU, so that the two cannot both count it."""
    return f"gpu:pci-{gpu.bdf}"


def _fault(energy_j: float, power_w: float | None, time_s: float) -> str:
    """Why a counter that was watched cannot be used, or ""."""
    if energy_j <= 0:
        return f"the energy counter stood still for {time_s:.1f} s"
    if power_w and not 1 / CHECK_FACTOR < energy_j / (power_w * time_s) < CHECK_FACTOR:
        return f"it counted {energy_j / time_s:.4g} W while the GPU reported {power_w:.4g} W (ROCm/amdsmi issue 38)"
    return ""


def _gpu(smi: Any, bdf: str, handle: Any, place: int) -> _Gpu:  # noqa: ANN401
    """What the library tells of one GPU; what it does not tell is left out."""
    names: set[str] = set()
    model, order = "AMD GPU", place
    with contextlib.suppress(smi.AmdSmiException):
        names.add(str(smi.amdsmi_get_gpu_device_uuid(handle)).lower())
    with contextlib.suppress(smi.AmdSmiException, KeyError, ValueError):
        asic = smi.amdsmi_get_gpu_asic_info(handle)
        model = f"{asic['market_name']} {asic.get('target_graphics_version', '')}".strip()
        names.add(f"gpu-{int(asic['asic_serial'], 16):016x}")
    # Not in versions before 6.4.
    with contextlib.suppress(smi.AmdSmiException, AttributeError, KeyError, ValueError):
        told = smi.amdsmi_get_gpu_enumeration_info(handle)
        names.add(str(told["hip_uuid"]).lower())
        order = int(told["hip_id"])
    power_w = _power_w(smi, _Gpu(handle, bdf, frozenset(), place, model, None, ""), lost=False)
    return _Gpu(handle, bdf, frozenset(names), order, model, power_w, "")


def _cards(gpus: Sequence[_Gpu]) -> dict[str, _Gpu]:
    """For each listed GPU, by address, the one whose readings hold its joules: itself, or the first of its package."""
    found: dict[str, _Gpu] = {}
    previous: _Gpu | None = None
    for gpu in gpus:
        device = gpu.bdf.rpartition(".")[0]
        partition_of = next((found[g.bdf] for g in gpus if g.bdf in found and g.bdf.startswith(f"{device}.")), None)
        second_die = gpu.mute and bool(re.search(r"MI250|gfx90a", gpu.model))
        if partition_of is None and second_die and previous is not None and previous.model == gpu.model:
            partition_of = previous
        found[gpu.bdf] = partition_of or gpu
        previous = gpu if partition_of is None else None
    return found


def _visible(gpus: Sequence[_Gpu], environ: Mapping[str, str]) -> list[_Gpu]:
    """What the work can use. Raises SensorError if the environment hides everything."""
    left = sorted(gpus, key=lambda gpu: gpu.order)
    for names in _VISIBLE:
        name = next((name for name in names if environ.get(name)), None)
        if name is None:
            continue
        chosen: list[_Gpu] = []
        for entry in environ[name].split(","):
            gpu = _resolve(left, entry.strip().lower())
            if gpu is None:  # as the runtime does: nothing behind an unknown entry counts
                break
            chosen.append(gpu)
        if not chosen:
            raise SensorError(
                f"{name}={environ[name]!r} hides every AMD GPU",
                "a GPU that the work cannot use is not metered",
                f"type `unset {name}`, or name GPUs that `amd-smi list` lists",
            )
        left = list(dict.fromkeys(chosen))
    return left


def _resolve(gpus: Sequence[_Gpu], entry: str) -> _Gpu | None:
    """The GPU that one entry of a list of visible devices means; None if it means none."""
    if entry.isdigit():
        return gpus[int(entry)] if int(entry) < len(gpus) else None
    return next((gpu for gpu in gpus if entry in gpu.names), None)


def _count(smi: Any, gpu: _Gpu) -> tuple[int, float]:  # noqa: ANN401
    """The energy counter and its unit [J]. Raises SensorError if there is none."""
    try:
        told = smi.amdsmi_get_energy_count(gpu.handle)
    except smi.AmdSmiException as error:
        raise _lost(gpu, error) from error
    # It was called "power" before version 6.4.
    return int(told.get("energy_accumulator", told.get("power", 0))), float(told["counter_resolution"]) * 1e-6


def _power_w(smi: Any, gpu: _Gpu, *, lost: bool = True) -> float | None:  # noqa: ANN401
    """Power now; None if the GPU does not report it. Raises SensorError if it is gone, unless not `lost`."""
    try:
        told = smi.amdsmi_get_power_info(gpu.handle)
    except smi.AmdSmiException as error:
        if lost:
            raise _lost(gpu, error) from error
        return None
    # One of the first two is filled, by generation; what is not supported is "N/A" or, in old versions, all ones.
    values = [told.get(f"{name}_power") for name in ("current_socket", "average_socket", "socket")]
    watts = [float(value) for value in values if isinstance(value, int) and 0 <= value < 0xFFFF]
    return next((value for value in watts if value > 0), 0.0 if watts else None)


def _power_or_lost(smi: Any, gpu: _Gpu) -> float:  # noqa: ANN401
    """Power now. Raises SensorError if the GPU reports none any more."""
    power_w = _power_w(smi, gpu)
    if not power_w:
        raise _lost(gpu, "it reports no power")
    return power_w


def _lost(gpu: _Gpu, error: object) -> SensorError:
    return SensorError(
        f"{_scope(gpu)} gives no more readings ({one_line(error)})",
        "the energy of this window is unknown from here on",
        "check the GPU with `amd-smi metric --power --energy`",
    )


sensor = AmdSensor()
