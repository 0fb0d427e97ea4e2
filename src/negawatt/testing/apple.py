"""FakeAppleMonitor: the part of `zeus_apple_silicon` that sensors use, with known joules."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

_SHARES = {"cpu_total_mj": 0.5, "gpu_mj": 0.3, "gpu_sram_mj": 0.0, "dram_mj": 0.15, "ane_mj": 0.05}


class FakeAppleMonitor:
    """Stands in for an `AppleEnergyMonitor`: `AppleSensor(fake, clock=fake.clock)`.

    Args:
        missing: names of fields that this chip does not count.
        shares: part of the chip's power per field; fields that are not named rest.
    """

    def __init__(self, missing: tuple[str, ...] = (), shares: Mapping[str, float] = _SHARES) -> None:
        self.missing = missing
        self.shares = dict(shares)
        self.time_s = 0.0
        self.energy_j = 0.0
        """Joules that the chip has drawn."""
        self.broken = False
        self.reads = 0

    def advance(self, seconds: float, power_w: float) -> None:
        """Let time pass while the chip draws this power."""
        self.time_s += seconds
        self.energy_j += power_w * seconds

    def clock(self) -> float:
        """Simulated monotonic seconds."""
        return self.time_s

    def get_cumulative_energy(self) -> SimpleNamespace:
        """Millijoules since some moment, as an AppleEnergyMetrics has them; None for what is not counted."""
        self.reads += 1
        if self.broken:
            raise RuntimeError("Failed to create IOReport subscription.")
        joules = {name: 1e6 + self.energy_j * 1e3 * self.shares.get(name, 0.0) for name in _SHARES}
        return SimpleNamespace(**{name: None if name in self.missing else int(mj) for name, mj in joules.items()})
