"""NVIDIA GPUs through NVML: power limit, locked clocks of cores and memory, workload power profile.

What NVML cannot tell (API reference, "Device Commands"): it has no call that reads a clock lock. So nobody can see
that somebody else has locked the clocks of a GPU, and giving a lock back means unlocking: on a machine whose
administrator locks clocks, set power limits only. What can be checked is checked: a clock above the lock that was set
here says that the lock did not take.

Settings last until the driver lets go of the GPU, which without persistence mode is when its last user ends. A job
keeps the GPU open, so that matters only for what an administrator types: `command` then turns the mode on first.

A slice of a GPU in MIG mode has no limit of its own, and a GPU that is cut into several slices has several users: it is
not set.
"""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from ctypes import byref
from itertools import pairwise
from typing import Any, ClassVar, final

from negawatt.core.errors import HardwareError, NeedsPrivilegeError
from negawatt.core.reading import NotMeasured
from negawatt.hardware.control import ControlInfo, Knob, Value
from negawatt.hardware.controls import usable
from negawatt.hardware.nvml import NvmlGpu, open_nvml, slices_of

STEP_W = 1.0
"""NVML counts in milliwatts; drivers may round to whole watts."""
SETTLE_S = 0.5
"""Assumption: so long after a lock a clock may still be seen above it."""
_ADDRESS = re.compile(r"nvidia:(?P<uuid>GPU-[0-9A-Za-z-]+):(?P<knob>[a-z-]+)")


class _GpuControl(ABC):
    """What the controls of a GPU share."""

    knob: ClassVar[Knob]
    unit: ClassVar[str] = "MHz"

    def __init__(self, nvml: Any, gpu: NvmlGpu) -> None:  # noqa: ANN401
        self._nvml = nvml
        self._gpu = gpu
        lowest, highest, step, values = self._range()
        self.info = ControlInfo(
            address=f"nvidia:{gpu.uuid}:{self.knob}",
            scope=f"gpu:{gpu.uuid}",
            knob=self.knob,
            unit=self.unit,
            lowest=lowest,
            highest=highest,
            step=step,
            values=values,
        )
        self._persistent = self._keeps()

    @abstractmethod
    def _range(self) -> tuple[float, float, float, tuple[float, ...]]:
        """Lowest, highest, step and values. Raises NVMLError where this cannot be set."""

    @abstractmethod
    def _set(self, value: Value) -> None:
        """Set it. Raises NVMLError."""

    @abstractmethod
    def _read(self) -> Value:
        """What is set. Raises NVMLError."""

    @abstractmethod
    def _arguments(self, value: Value) -> str:
        """Of nvidia-smi."""

    def read(self) -> Value:
        """What it is set to."""
        return self._asked(self._read)

    def write(self, value: Value) -> None:
        """Set it."""
        try:
            self._set(value)
        except self._nvml.NVMLError as error:
            if getattr(error, "value", None) == self._nvml.NVML_ERROR_NO_PERMISSION:
                raise NeedsPrivilegeError(
                    f"this user may not change the {self.knob} of {self.info.scope}",
                    "NVIDIA's driver lets only root do so",
                    f"type `{self.command(value)}`",
                ) from error
            raise self._refused(f"refuses {value} {self.unit}", error) from error

    def command(self, value: Value) -> str:
        """What an administrator types."""
        gpu = f"sudo nvidia-smi -i {self._gpu.uuid}"
        keep = "" if self._persistent or value is None else f"{gpu} -pm 1 && "
        return f"{keep}{gpu} {self._arguments(value)}"

    def _keeps(self) -> bool:
        try:
            return bool(self._ask("nvmlDeviceGetPersistenceMode"))
        except self._nvml.NVMLError:  # not on Windows, where the driver always stays
            return True

    def _ask(self, name: str, *more: Any) -> Any:  # noqa: ANN401
        return getattr(self._nvml, name)(self._gpu.handle, *more)

    def _asked(self, call: Callable[[], Value]) -> Value:
        try:
            return call()
        except self._nvml.NVMLError as error:
            raise self._refused("cannot be asked", error) from error

    def _refused(self, what: str, error: object) -> HardwareError:
        return HardwareError(
            f"{self.info.scope} {what} ({self.knob}: {error})",
            "what is set there is unknown or was not changed",
            f"check the GPU with `nvidia-smi -q -i {self._gpu.uuid}`",
        )


@final
class PowerLimit(_GpuControl):
    """What a GPU may draw on average. Where a lower limit was set past NVML, nothing above that one is offered."""

    knob = Knob.POWER_LIMIT
    unit = "W"

    def _range(self) -> tuple[float, float, float, tuple[float, ...]]:
        lowest_mw, highest_mw = self._ask("nvmlDeviceGetPowerManagementLimitConstraints")
        enforced_mw = self._ask("nvmlDeviceGetEnforcedPowerLimit")
        if enforced_mw < self._ask("nvmlDeviceGetPowerManagementLimit"):
            highest_mw = max(lowest_mw, min(highest_mw, enforced_mw))
        return lowest_mw * 1e-3, highest_mw * 1e-3, STEP_W, ()

    def _read(self) -> Value:
        return float(self._ask("nvmlDeviceGetPowerManagementLimit")) * 1e-3

    def _set(self, value: Value) -> None:
        if value is None:
            raise self._refused("cannot be without a power limit", "got none")
        self._ask("nvmlDeviceSetPowerManagementLimit", round(value * 1e3))

    def _arguments(self, value: Value) -> str:
        return f"-pl {value or 0.0:g}"


class _LockedClock(_GpuControl):
    """The highest clock of a lock whose lowest clock is the lowest one there is."""

    since: ClassVar[str]
    set_call: ClassVar[str]
    reset_call: ClassVar[str]
    set_option: ClassVar[str]
    reset_option: ClassVar[str]
    _locked: Value = None

    @abstractmethod
    def _clocks(self) -> list[int]:
        """The supported clocks. Raises NVMLError."""

    @abstractmethod
    def _clock_type(self) -> int:
        """NVML's number of this kind of clock."""

    def _range(self) -> tuple[float, float, float, tuple[float, ...]]:
        new = self._ask("nvmlDeviceGetArchitecture") >= getattr(self._nvml, f"NVML_DEVICE_ARCH_{self.since}")
        values = tuple(sorted(map(float, self._clocks()))) if new else ()
        if len(values) < 2:
            raise self._nvml.NVMLError(self._nvml.NVML_ERROR_NOT_SUPPORTED)
        step = min(above - below for below, above in pairwise(values))
        return values[0], values[-1], step, values

    def _read(self) -> Value:
        """The lock set here, None where none was; where the GPU runs faster than that, its clock."""
        if self._locked is None:
            return None
        end_s = time.monotonic() + SETTLE_S
        while True:
            clock = float(self._ask("nvmlDeviceGetClockInfo", self._clock_type()))
            if clock <= self._locked + self.info.step:
                return self._locked
            if time.monotonic() >= end_s:
                return clock
            time.sleep(SETTLE_S / 20)

    def _set(self, value: Value) -> None:
        if value is None:
            self._ask(self.reset_call)
        else:
            self._ask(self.set_call, round(self.info.lowest), round(value))
        self._locked = value

    def _arguments(self, value: Value) -> str:
        return self.reset_option if value is None else f"{self.set_option} {self.info.lowest:.0f},{value:.0f}"


@final
class ClockLimit(_LockedClock):
    """The highest clock of a GPU's cores; None: not locked. Volta and newer."""

    knob = Knob.CLOCK_LIMIT
    since = "VOLTA"
    set_call, reset_call = "nvmlDeviceSetGpuLockedClocks", "nvmlDeviceResetGpuLockedClocks"
    set_option, reset_option = "-lgc", "-rgc"

    def _clocks(self) -> list[int]:
        memory_mhz = max(self._ask("nvmlDeviceGetSupportedMemoryClocks"), default=0)
        return list(self._ask("nvmlDeviceGetSupportedGraphicsClocks", memory_mhz))

    def _clock_type(self) -> int:
        return int(self._nvml.NVML_CLOCK_GRAPHICS)


@final
class MemoryClockLimit(_LockedClock):
    """The highest clock of a GPU's memory; None: not locked. Ampere and newer."""

    knob = Knob.MEMORY_CLOCK_LIMIT
    since = "AMPERE"
    set_call, reset_call = "nvmlDeviceSetMemoryLockedClocks", "nvmlDeviceResetMemoryLockedClocks"
    set_option, reset_option = "-lmc", "-rmc"

    def _clocks(self) -> list[int]:
        return list(self._ask("nvmlDeviceGetSupportedMemoryClocks"))

    def _clock_type(self) -> int:
        return int(self._nvml.NVML_CLOCK_MEM)


@final
class Profile(_GpuControl):
    """The one workload power profile that is requested, by NVML's number; None: none. Blackwell and newer.

    A GPU takes requests for several at once (NVML API reference, "Power Profile Information"). One number cannot put
    those back, so they are left alone.
    """

    knob = Knob.PROFILE
    unit = ""

    def _range(self) -> tuple[float, float, float, tuple[float, ...]]:
        values = tuple(map(float, _bits(self._current().perfProfilesMask)))
        if not values:
            raise self._nvml.NVMLError(self._nvml.NVML_ERROR_NOT_SUPPORTED)
        return values[0], values[-1], 0.0, values

    def _read(self) -> Value:
        requested = _bits(self._current().requestedProfilesMask)
        if len(requested) > 1:
            raise self._refused("has more than one profile requested", ", ".join(map(str, requested)))
        return float(requested[0]) if requested else None

    def _set(self, value: Value) -> None:
        """By the call that replaces all requests; older drivers have two, one to clear and one to set."""
        nvml = self._nvml
        requested = _bits(self._current().requestedProfilesMask)
        wanted = [] if value is None else [round(value)]
        try:
            update = nvml.c_nvmlWorkloadPowerProfileUpdateProfiles_v1_t()
            update.operation = nvml.NVML_POWER_PROFILE_OPERATION_SET_AND_OVERWRITE
            if not wanted:
                update.operation = nvml.NVML_POWER_PROFILE_OPERATION_CLEAR
            _mark(update.updateProfilesMask, wanted or requested)
            self._ask("nvmlDeviceWorkloadPowerProfileUpdateProfiles_v1", byref(update))
        except (AttributeError, nvml.NVMLError) as error:
            if not isinstance(error, AttributeError) and error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                raise
            for call, profiles in (("Clear", requested), ("Set", wanted)):
                if profiles:
                    request = nvml.c_nvmlWorkloadPowerProfileRequestedProfiles_v1_t()
                    _mark(request.requestedProfilesMask, profiles)
                    self._ask(f"nvmlDeviceWorkloadPowerProfile{call}RequestedProfiles", byref(request))

    def command(self, value: Value) -> str:
        """What an administrator types: it has a command of its own."""
        gpu = f"sudo nvidia-smi power-profiles -i {self._gpu.uuid}"
        try:
            requested = _bits(self._current().requestedProfilesMask)
        except self._nvml.NVMLError:  # a GPU that is gone: whatever was requested went with it
            requested = []
        clear = f"{gpu} -cr {','.join(map(str, requested))}" if requested else ""
        return " && ".join(filter(None, (clear, self._arguments(value)))) or f"{gpu} -gr"

    def _arguments(self, value: Value) -> str:
        return "" if value is None else f"sudo nvidia-smi power-profiles -i {self._gpu.uuid} -sr {value:.0f}"

    def _current(self) -> Any:  # noqa: ANN401 -- a structure of NVML's
        try:
            current = self._nvml.c_nvmlWorkloadPowerProfileCurrentProfiles_v1_t()
        except AttributeError as error:  # a binding older than the profiles
            raise self._nvml.NVMLError(self._nvml.NVML_ERROR_NOT_SUPPORTED) from error
        self._ask("nvmlDeviceWorkloadPowerProfileGetCurrentProfiles", byref(current))
        return current


_CONTROLS = (PowerLimit, ClockLimit, MemoryClockLimit, Profile)


def look(nvml: Any | None = None) -> tuple[tuple[_GpuControl, ...], tuple[NotMeasured, ...]]:  # noqa: ANN401
    """Everything that can be set of whole GPUs, and the GPUs that are not set, with the reason.

    Args:
        nvml: a module with the interface of `pynvml`; None imports it.

    Raises:
        HardwareError: if there is no GPU or driver, or one is lost.
        NeedsPrivilegeError: if this user may use none of the GPUs.
    """
    nvml, gpus = open_nvml(nvml, HardwareError)
    controls: list[_GpuControl] = []
    refused: list[NotMeasured] = []
    for gpu in gpus:
        shared = _shared(nvml, gpu)
        if shared:
            refused.append(NotMeasured(what=f"nvidia {gpu.uuid}", why=shared))
            continue
        here = [control for kind in _CONTROLS if (control := _made(kind, nvml, gpu))]
        controls += here
        if not here:
            why = f"{gpu.name} lets nothing be set, as most laptops' and virtual machines' GPUs"
            refused.append(NotMeasured(what=f"nvidia {gpu.uuid}", why=why))
    return tuple(controls), tuple(refused)


def found(nvml: Any | None = None) -> Sequence[_GpuControl]:  # noqa: ANN401
    """Everything that can be set. Raises as `look`, and HardwareError if that is nothing."""
    return usable(*look(nvml))


def opened(address: str, nvml: Any | None = None) -> _GpuControl:  # noqa: ANN401
    """The control of an address. Raises HardwareError if it names none, the GPU is gone or has several users."""
    match = _ADDRESS.fullmatch(address)
    kinds = {str(kind.knob): kind for kind in _CONTROLS}
    if match is None or match["knob"] not in kinds:
        raise HardwareError(
            f"{address!r} names nothing of an NVIDIA GPU",
            "nothing was changed",
            "take an address from `negawatt doctor`",
        )
    nvml, gpus = open_nvml(nvml, HardwareError)
    gpu = next((gpu for gpu in gpus if gpu.uuid == match["uuid"]), None)
    reason = f"there is no GPU {match['uuid']}" if gpu is None else _shared(nvml, gpu)
    control = None if gpu is None or reason else _made(kinds[match["knob"]], nvml, gpu)
    if control is None:
        raise HardwareError(
            f"{address} cannot be set: {reason or 'the GPU does not support it'}",
            "nothing was changed",
            "see which GPUs there are with `nvidia-smi -L`",
        )
    return control


def _made(kind: type[_GpuControl], nvml: Any, gpu: NvmlGpu) -> _GpuControl | None:  # noqa: ANN401
    """A control; None where GPU, driver or binding do not support it. Raises HardwareError if the GPU is gone."""
    absent = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    try:
        return kind(nvml, gpu)
    except nvml.NVMLError as error:
        if getattr(error, "value", None) in absent:
            return None
        raise HardwareError(
            f"{gpu.name} ({gpu.uuid}) cannot be asked ({error})",
            "what is set there is unknown",
            f"check the GPU with `nvidia-smi -q -i {gpu.uuid}`",
        ) from error


def _shared(nvml: Any, gpu: NvmlGpu) -> str:  # noqa: ANN401
    """Why a GPU has several users, or ""."""
    slices = slices_of(nvml, gpu.handle)
    if slices is None or len(slices) < 2:
        return ""
    return f"it is cut into {len(slices)} MIG slices, which have one power limit and one clock together"


def _bits(mask: Any) -> list[int]:  # noqa: ANN401 -- a structure of NVML's
    return [32 * word + bit for word, bits in enumerate(mask.mask) for bit in range(32) if bits >> bit & 1]


def _mark(mask: Any, bits: Sequence[int]) -> None:  # noqa: ANN401
    for bit in bits:
        mask.mask[bit // 32] |= 1 << bit % 32
