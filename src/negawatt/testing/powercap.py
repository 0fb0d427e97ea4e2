"""SimulatedPowercap: a powercap tree in a folder, with known joules and the pathologies of real ones."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass, field
from pathlib import Path

_CORE_FRACTION = 0.8
_PLATFORM_W = 10.0
"""What psys counts beside the packages and their DRAM."""


@dataclass(kw_only=True)
class SimulatedPowercap:
    """A powercap tree whose counters move only when told to.

    Give its `root`, `read` and `clock` to a sensor: `RaplSensor(sim.root, read=sim.read, clock=sim.clock)`.

    Attributes:
        root: folder that is filled; it stands for /sys/class/powercap.
        packages: number of processor packages, each with a `core` sub-zone inside it.
        dies: zones per package; more than one are named package-N-die-M.
        one_counter: whether all die zones of a package show the package's one counter, as some kernels do.
        dram: whether each package has a `dram` sub-zone beside it.
        psys: whether there is a zone for the platform, which contains all the others.
        mmio: whether package 0 is listed a second time as intel-rapl-mmio:0.
        range_uj: the value at which counters wrap to 0 [uJ].
        start_uj: value of the counters at the start [uJ].
        time_s: simulated time [s]; `clock` returns it.
        package_j: joules that the packages have drawn, all together.
        dram_j: joules that their DRAM has drawn, all together.
    """

    root: Path
    packages: int = 1
    dies: int = 1
    one_counter: bool = False
    dram: bool = False
    psys: bool = False
    mmio: bool = False
    range_uj: int = 262_143_328_850
    start_uj: int = 1_000_000
    time_s: float = 0.0
    package_j: float = field(default=0.0, init=False)
    dram_j: float = field(default=0.0, init=False)
    _zones: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _permitted: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        for number, (package, die) in enumerate((p, d) for p in range(self.packages) for d in range(self.dies)):
            zone = f"intel-rapl:{number}"
            # Dies with counters of their own have drawn different amounts since boot.
            head_start_j = 0.0 if self.one_counter else 1234.5 * die
            self._add(zone, f"package-{package}" + (f"-die-{die}" if self.dies > 1 else ""), head_start_j)
            self._add(f"{zone}:0", "core", head_start_j)
            if self.dram:
                self._add(f"{zone}:1", "dram", head_start_j)
        if self.psys:
            self._add(f"intel-rapl:{self.packages * self.dies}", "psys", 0.0)
        if self.mmio:
            self._add("intel-rapl-mmio:0", "package-0", 0.0)
        (self.root / "intel-rapl").mkdir(parents=True, exist_ok=True)

    def advance(self, seconds: float, power_w: float, dram_w: float = 0.0) -> None:
        """Let time pass.

        Args:
            seconds: how long [s].
            power_w: what each package draws; its dies share it evenly.
            dram_w: what each package's DRAM draws.
        """
        self.time_s += seconds
        self.package_j += self.packages * power_w * seconds
        self.dram_j += self.packages * dram_w * seconds
        share = 1.0 if self.one_counter else 1.0 / self.dies
        power_of = {
            "package": power_w * share,
            "core": power_w * share * _CORE_FRACTION,
            "dram": dram_w * share,
            "psys": self.packages * (power_w + dram_w) + _PLATFORM_W,
        }
        for zone in self._zones:
            kind = (self.root / zone / "name").read_text(encoding="ascii").partition("-")[0].strip()
            self._zones[zone] += power_of[kind] * seconds
            self._write(zone)

    def clock(self) -> float:
        """Simulated monotonic seconds."""
        return self.time_s

    def read(self, path: Path) -> str:
        """The text of a file of the tree; refuses energy counters while they are not permitted, even to root."""
        if path.name == "energy_uj" and not self._permitted:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path.read_text(encoding="ascii")

    def permit(self, allowed: bool) -> None:  # noqa: FBT001 -- reads as what it does
        """Grant or withdraw the permission to read the energy counters."""
        self._permitted = allowed
        for zone in self._zones:
            (self.root / zone / "energy_uj").chmod(0o644 if allowed else 0o200)

    def reset(self) -> None:
        """Set all counters to 0, as a reboot or a suspend does."""
        for zone in self._zones:
            self._zones[zone] = -self.start_uj * 1e-6
            self._write(zone)

    def vanish(self) -> None:
        """Remove the tree, as unloading the kernel module does."""
        shutil.rmtree(self.root)

    def _add(self, zone: str, name: str, head_start_j: float) -> None:
        folder = self.root / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n", encoding="ascii")
        (folder / "max_energy_range_uj").write_text(f"{self.range_uj}\n", encoding="ascii")
        self._zones[zone] = head_start_j
        self._write(zone)

    def _write(self, zone: str) -> None:
        count = (self.start_uj + round(self._zones[zone] * 1e6)) % self.range_uj
        (self.root / zone / "energy_uj").write_text(f"{count}\n", encoding="ascii")
