"""FakeAmdsmi: the part of the `amdsmi` module that sensors and controls use, over GPUs with known joules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

RESOLUTION_UJ = 15.259
"""Microjoules per count, as AMD SMI gives them."""


class AmdSmiException(Exception):  # noqa: N818 -- the name is AMD SMI's
    """What `amdsmi` raises."""


NO_PERMISSION = "10 | AMDSMI_STATUS_NO_PERM - Permission Denied"
"""AMD SMI's answer to users who may not set anything."""


@dataclass(kw_only=True, eq=False)
class FakeAmdGpu:
    """One listed GPU; also its own handle.

    Attributes:
        bdf: PCI address.
        uuid: as ROCR_VISIBLE_DEVICES takes it.
        hip_id: HIP's index; None: the library does not tell it, as before version 6.4.
        model: product name.
        counter_factor: what the energy counter counts of the true joules; 0 stands still; None: there is no counter.
        power: which field of the power report is filled: "current", "average" or "".
        second_die: whether it is the second die of an MI250, which reports 0.
        power_w: what it would draw now without a cap; set by `FakeAmdsmi.advance`.
        energy_j: joules drawn so far.
        limit_w: its power cap; it draws no more [W].
        lowest_w: the lowest cap [W].
        highest_w: the highest cap; 0: it has none [W].
        limit_error: what AMD SMI answers to a new cap; "": it takes it.
        limit_ignored: whether a new cap is answered with success, and not taken.
        lost: whether it fell off the bus.
    """

    bdf: str = "0000:03:00.0"
    uuid: str = "GPU-00000000000000a1"
    hip_id: int | None = 0
    model: str = "AMD Instinct MI300X"
    counter_factor: float | None = 1.0  # of the true joules
    power: str = "current"
    second_die: bool = False
    power_w: float = 100.0
    energy_j: float = 0.0
    lost: bool = False
    limit_w: float = 750.0
    lowest_w: float = 0.0
    highest_w: float = 750.0
    limit_error: str = ""
    limit_ignored: bool = False
    _count: float = field(default=1e9, init=False, repr=False)


class FakeAmdsmi:
    """Stands in for `amdsmi`: `AmdSensor(fake, environ={}, clock=fake.clock, wait=fake.idle)`.

    Args:
        gpus: in any order.
        driver: whether the driver is there.
        old: whether it answers as versions before 6.4 do.
    """

    AmdSmiException = AmdSmiException
    AmdSmiInitFlags = SimpleNamespace(INIT_AMD_GPUS=2)

    def __init__(self, gpus: Sequence[FakeAmdGpu], *, driver: bool = True, old: bool = False) -> None:
        self.gpus = tuple(gpus)
        self.driver = driver
        self.old = old
        self.time_s = 0.0

    def advance(self, seconds: float, power_w: float) -> None:
        """Let time pass while every package draws this power."""
        for gpu in self.gpus:
            gpu.power_w = 0.0 if gpu.second_die else power_w
        self.idle(seconds)

    def idle(self, seconds: float) -> None:
        """Let time pass at the power that is drawn now."""
        for gpu in self.gpus:
            power_w = min(gpu.power_w, gpu.limit_w)
            gpu.energy_j += power_w * seconds
            gpu._count += power_w * seconds * (gpu.counter_factor or 0.0) * 1e6 / RESOLUTION_UJ  # noqa: SLF001
        self.time_s += seconds

    def clock(self) -> float:
        """Simulated monotonic seconds."""
        return self.time_s

    def amdsmi_init(self, flag: object) -> None:  # noqa: ARG002 -- the interface
        """Raises AmdSmiException without a driver."""
        if not self.driver:
            raise AmdSmiException("Error code:\n\t34 | AMDSMI_STATUS_DRIVER_NOT_LOADED")

    def amdsmi_get_processor_handles(self) -> list[FakeAmdGpu]:
        """All GPUs."""
        return list(self.gpus)

    def amdsmi_get_gpu_device_bdf(self, gpu: FakeAmdGpu) -> str:
        """PCI address."""
        return gpu.bdf

    def amdsmi_get_gpu_device_uuid(self, gpu: FakeAmdGpu) -> str:
        """AMD SMI's own identity, which ROCR_VISIBLE_DEVICES does not take."""
        return f"uuid-of-{gpu.bdf}"

    def amdsmi_get_gpu_asic_info(self, gpu: FakeAmdGpu) -> dict[str, Any]:
        """Names and serial number."""
        return {"market_name": gpu.model, "asic_serial": f"0x{gpu.uuid.removeprefix('GPU-').upper()}"}

    def amdsmi_get_gpu_enumeration_info(self, gpu: FakeAmdGpu) -> dict[str, Any]:
        """HIP's index and UUID."""
        if self.old or gpu.hip_id is None:
            raise AmdSmiException("Error code:\n\t2 | AMDSMI_STATUS_NOT_SUPPORTED")
        return {"hip_id": gpu.hip_id, "hip_uuid": gpu.uuid}

    def amdsmi_get_energy_count(self, gpu: FakeAmdGpu) -> dict[str, Any]:
        """The counter and its unit [uJ]."""
        self._alive(gpu, supported=gpu.counter_factor is not None)
        name = "power" if self.old else "energy_accumulator"
        return {name: int(gpu._count), "counter_resolution": RESOLUTION_UJ, "timestamp": int(self.time_s * 1e9)}  # noqa: SLF001

    def amdsmi_get_power_info(self, gpu: FakeAmdGpu) -> dict[str, Any]:
        """Watts, whole ones."""
        self._alive(gpu, supported=True)
        none = 0xFFFF if self.old else "N/A"
        return {
            f"{name}_socket_power": round(min(gpu.power_w, gpu.limit_w)) if gpu.power == name else none
            for name in ("current", "average")
        }

    def amdsmi_get_power_cap_info(self, gpu: FakeAmdGpu) -> dict[str, Any]:
        """The cap and its range [uW]."""
        self._alive(gpu, supported=gpu.highest_w > 0)
        caps = {"power_cap": gpu.limit_w, "min_power_cap": gpu.lowest_w, "max_power_cap": gpu.highest_w}
        return {name: round(watts * 1e6) for name, watts in caps.items()}

    def amdsmi_set_power_cap(self, gpu: FakeAmdGpu, sensor: int, cap_uw: int) -> None:  # noqa: ARG002 -- the interface
        """Set the cap, which the driver keeps in whole watts."""
        self._alive(gpu, supported=gpu.highest_w > 0)
        if gpu.limit_error:
            raise AmdSmiException(f"Error code:\n\t{gpu.limit_error}")
        if not gpu.lowest_w <= cap_uw * 1e-6 <= gpu.highest_w:
            raise AmdSmiException("Error code:\n\t1 | AMDSMI_STATUS_INVAL - Invalid parameters")
        if not gpu.limit_ignored:
            gpu.limit_w = float(cap_uw // 1_000_000)

    def _alive(self, gpu: FakeAmdGpu, *, supported: bool) -> None:
        if gpu.lost or not supported:
            raise AmdSmiException("Error code:\n\t31 | AMDSMI_STATUS_NOT_FOUND")
