"""FakeNvml: the part of the `pynvml` module that sensors use, over GPUs with known joules."""
# ruff: noqa: N802 -- the names are NVML's

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


class NVMLError(Exception):
    """What `pynvml` raises."""


@dataclass(kw_only=True, eq=False)
class FakeGpu:
    """One GPU; also its own NVML handle.

    Attributes:
        uuid: as NVML gives it.
        name: product name.
        counter: whether it has an energy counter (Volta and newer).
        power: whether it reports power.
        slices: UUIDs of its MIG slices.
        power_w: what it draws now; set by `FakeNvml.advance`.
        energy_j: joules drawn so far.
        counter_j: joules that the counter shows: those up to its last refresh.
        lost: whether it fell off the bus.
    """

    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    name: str = "NVIDIA Fake"
    counter: bool = True
    power: bool = True
    slices: tuple[str, ...] = ()
    power_w: float = 50.0
    energy_j: float = 0.0
    counter_j: float = 0.0
    lost: bool = False


class FakeNvml:
    """Stands in for the module `pynvml`: `NvidiaSensor(nvml=fake, environ={}, clock=fake.clock)`.

    Args:
        gpus: the machine's GPUs in PCI order.
        driver: whether the driver is there; without it `nvmlInit` raises.
        refresh_s: the counters are brought up to date this often [s].
    """

    NVMLError = NVMLError

    def __init__(self, gpus: Sequence[FakeGpu], *, driver: bool = True, refresh_s: float = 0.1) -> None:
        self.gpus = tuple(gpus)
        self.driver = driver
        self.refresh_s = refresh_s
        self.time_s = 0.0

    def advance(self, seconds: float, power_w: float) -> None:
        """Let time pass while every GPU draws this power."""
        begin_s, self.time_s = self.time_s, self.time_s + seconds
        # The nudge keeps 3 * 0.1 s a multiple of 0.1 s.
        refreshed_s = math.floor(self.time_s / self.refresh_s + 1e-9) * self.refresh_s
        for gpu in self.gpus:
            if refreshed_s > begin_s:
                gpu.counter_j = gpu.energy_j + power_w * (min(refreshed_s, self.time_s) - begin_s)
            gpu.energy_j += power_w * seconds
            gpu.power_w = power_w

    def clock(self) -> float:
        """Simulated monotonic seconds."""
        return self.time_s

    def nvmlInit(self) -> None:
        """Raises NVMLError without a driver."""
        if not self.driver:
            raise NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:
        """Number of GPUs."""
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        """The GPU at a place in PCI order."""
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[FakeGpu, str]:
        """The handle of a MIG slice."""
        for gpu in self.gpus:
            if uuid in gpu.slices:
                return gpu, uuid
        raise NVMLError("Not Found")

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: tuple[FakeGpu, str]) -> FakeGpu:
        """The GPU that a MIG slice is cut from."""
        return handle[0]

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        """Its UUID."""
        return gpu.uuid

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        """Its product name."""
        return gpu.name

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        """Millijoules since the driver was loaded, up to the last refresh."""
        return int(self._alive(gpu, supported=gpu.counter).counter_j * 1e3)

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        """Milliwatts now."""
        return int(self._alive(gpu, supported=gpu.power).power_w * 1e3)

    def _alive(self, gpu: FakeGpu, *, supported: bool) -> FakeGpu:
        if gpu.lost:
            raise NVMLError("GPU is lost")
        if not supported:
            raise NVMLError("Not Supported")
        return gpu
