"""SimulatedCpufreq: the kernel's cpufreq files in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCpufreq:
    """A tree of cpufreq policies: `cpufreq.found(sim.root)`.

    Attributes:
        root: folder that is filled; it stands for /sys/devices/system/cpu/cpufreq, so its name is "cpufreq".
        ranges_mhz: lowest and highest clock of each policy [MHz].
        limits_mhz: highest clock of each policy as found; empty: as high as it goes [MHz].
        available_mhz: the only clocks of all policies, as some drivers tell them; empty: any [MHz].
    """

    root: Path
    ranges_mhz: Sequence[tuple[float, float]] = ((800.0, 3600.0),) * 4
    limits_mhz: Sequence[float] = ()
    available_mhz: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.root.name != "cpufreq":
            raise ValueError(f"the folder of the policies is named cpufreq, got {self.root}")
        for number, (lowest, highest) in enumerate(self.ranges_mhz):
            folder = self.root / f"policy{number}"
            folder.mkdir(parents=True)
            limit = self.limits_mhz[number] if self.limits_mhz else highest
            files = {"cpuinfo_min_freq": lowest, "cpuinfo_max_freq": highest}
            files |= {"scaling_min_freq": lowest, "scaling_max_freq": limit}
            for name, mhz in files.items():
                (folder / name).write_text(f"{round(mhz * 1e3)}\n", encoding="ascii")
            if self.available_mhz:
                clocks = " ".join(f"{round(mhz * 1e3)}" for mhz in self.available_mhz)
                (folder / "scaling_available_frequencies").write_text(f"{clocks} \n", encoding="ascii")

    @property
    def limits(self) -> tuple[float, ...]:
        """The highest clock of each policy now [MHz]."""
        return tuple(int(file.read_text(encoding="ascii")) / 1e3 for file in self._files)

    def permit(self, allowed: bool) -> None:  # noqa: FBT001 -- reads as what it does
        """Grant or withdraw the permission to set clocks, which the kernel can refuse to root, too."""
        for file in self._files:
            file.chmod(0o644 if allowed else 0o444)

    @property
    def _files(self) -> list[Path]:
        return [self.root / f"policy{number}" / "scaling_max_freq" for number in range(len(self.ranges_mhz))]
