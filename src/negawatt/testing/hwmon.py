"""SimulatedHwmon: a /sys/class/hwmon in a folder, with known joules and the habits of real chips."""

from __future__ import annotations

import errno
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from negawatt.testing.load import Load

_VOLTAGE_MV = 5000
_GPU_MEAN_S = 0.5


@dataclass(kw_only=True)
class SimulatedHwmon:
    """A tree whose chips draw what `advance` says, each of their quantities the same power.

    Give its `root`, `read` and `clock` to a sensor: `HwmonSensor(sim.root, read=sim.read, clock=sim.clock)`.

    Attributes:
        root: folder that is filled; it stands for /sys/class/hwmon.
        rails: names of the rails of a Jetson's INA3221; none: there is no such chip.
        sockets: processor sockets with an energy counter of the driver amd_energy, each beside a core's.
        gpus: PCI addresses of AMD GPUs.
        apu: whether the GPUs share their chip with a processor.
        meter_mean_s: the ACPI power meter shows the mean over this time; 0: there is none [s].
        accuracy: what it says of its accuracy.
        others: names of chips that measure temperatures only.
        refresh_s: numbers are brought up to date this often [s].
        scale: shown watts and joules per true one.
        noise_fraction: shown power flickers evenly by up to this, anew with every refresh.
        time_s: simulated time [s]; `clock` returns it.
        load: what every single quantity draws; `advance` goes along it, or prolongs it.
        energy_j: joules that every single quantity has drawn.
    """

    root: Path
    rails: tuple[str, ...] = ()
    sockets: int = 0
    gpus: tuple[str, ...] = ()
    apu: bool = False
    meter_mean_s: float = 0.0
    accuracy: str = "98.0%"
    others: tuple[str, ...] = ("nvme",)
    refresh_s: float = 0.0
    scale: float = 1.0  # shown per true
    noise_fraction: float = 0.0
    time_s: float = 0.0
    load: Load = field(default_factory=lambda: Load([(0.0, 20.0)]), repr=False)
    energy_j: float = field(default=0.0, init=False)
    _means_s: dict[Path, float] = field(default_factory=dict, init=False, repr=False)
    _frozen_s: float = field(default=math.inf, init=False, repr=False)
    _permitted: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in self.others:
            self._chip(name, temp1_input="41000")
        if self.rails:
            self._rails()
        if self.sockets:
            labels = ["Ecore000", *(f"Esocket{socket}" for socket in range(self.sockets))]
            chip = self._chip("amd_energy", **{f"energy{n}_label": text for n, text in enumerate(labels, 1)})
            for number in range(1, len(labels) + 1):
                (chip / f"energy{number}_input").touch()
        for address in self.gpus:
            chip = self._chip("amdgpu", **({"in1_input": "900"} if self.apu else {}))
            device = self.root.parent / "devices" / address
            device.mkdir(parents=True)
            (chip / "device").symlink_to(device)
            self._powers(chip / "power1_average", _GPU_MEAN_S)
        if self.meter_mean_s:
            interval = f"{self.meter_mean_s * 1e3:.0f}"
            chip = self._chip("power_meter", power1_average_interval=interval, power1_accuracy=self.accuracy)
            self._powers(chip / "power1_average", self.meter_mean_s)

    def advance(self, seconds: float, power_w: float | None = None) -> None:
        """Let time pass while every quantity draws this power; None: what the load says."""
        begin_s, self.time_s = self.time_s, self.time_s + seconds
        if power_w is not None:
            self.load.extend([(begin_s, power_w), (self.time_s, power_w)])
        self.energy_j += self.load.joules_to(self.time_s) - self.load.joules_to(begin_s)

    def clock(self) -> float:
        """Simulated monotonic seconds."""
        return self.time_s

    def read(self, path: Path) -> str:
        """The text of a file of the tree as it is now."""
        text = path.read_text(encoding="ascii")
        now_s = min(self.time_s, self._frozen_s)
        if self.refresh_s:
            now_s = math.floor(now_s / self.refresh_s + 1e-9) * self.refresh_s
        if path.name.startswith("energy") and path.name.endswith("_input"):
            if not self._permitted:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return f"{round((5.0 + self.scale * self.load.joules_to(now_s)) * 1e6)}\n"
        if path not in self._means_s:
            return text
        mean_s = self._means_s[path]
        power_w = self.load.power_w(now_s)
        if mean_s:
            power_w = (self.load.joules_to(now_s) - self.load.joules_to(now_s - mean_s)) / mean_s
        flicker = Random(f"{path.name} {now_s}").uniform(-1, 1) if self.noise_fraction else 0.0
        power_w *= self.scale * (1 + self.noise_fraction * flicker)
        # The current of a rail is in mA.
        return f"{round(power_w * (1e6 if path.name.startswith('power') else 1e6 / _VOLTAGE_MV))}\n"

    def freeze(self) -> None:
        """From now on all numbers stay as they are."""
        self._frozen_s = self.time_s

    def permit(self, allowed: bool) -> None:  # noqa: FBT001 -- reads as what it does
        """Grant or withdraw the permission to read the energy counters."""
        self._permitted = allowed

    def vanish(self) -> None:
        """Remove the tree, as unloading the drivers does."""
        shutil.rmtree(self.root)

    def _chip(self, name: str, **files: str) -> Path:
        self.root.mkdir(parents=True, exist_ok=True)
        chip = self.root / f"hwmon{len(list(self.root.iterdir()))}"
        chip.mkdir()
        for file, text in {"name": name, **files}.items():
            (chip / file).write_text(f"{text}\n", encoding="ascii")
        return chip

    def _rails(self) -> None:
        """Chips of three rails each, which measure voltage and current, and the sum of their shunts' voltages."""
        for first in range(0, len(self.rails), 3):
            chip = self._chip("ina3221", in7_label="sum of shunt voltages", in7_input="12")
            for number, rail in enumerate(self.rails[first : first + 3], 1):
                (chip / f"in{number}_label").write_text(f"{rail}\n", encoding="ascii")
                (chip / f"in{number}_input").write_text(f"{_VOLTAGE_MV}\n", encoding="ascii")
                self._powers(chip / f"curr{number}_input", 0.0)

    def _powers(self, file: Path, mean_s: float) -> None:
        file.touch()
        self._means_s[file] = mean_s
