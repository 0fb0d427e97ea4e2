"""Linux hwmon: energy and power that kernel drivers show under /sys/class/hwmon, for what no better sensor measures.

Four kinds of chip are understood, and no joule is taken from two of them:

- Jetson (`ina3221`): the rail that feeds the whole module where there is one, else the processor's and the GPU's;
- `amd_energy`: a counter per socket;
- `amdgpu`: power of each GPU, unless the environment hides some, which cannot be told apart here;
- ACPI's `power_meter`: power of the whole machine, used only if there is none of the above.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from negawatt.core.errors import NeedsPrivilegeError, SensorError, refusal
from negawatt.core.host import Host
from negawatt.core.reading import Probe, SensorInfo, Source
from negawatt.metering.counters import Counter
from negawatt.metering.probes import CounterProbe, PowerProbe, Quantity
from negawatt.metering.sampled import Shown

GAIN_SD_FRACTION = 0.05
"""Assumption: none of these drivers states an accuracy, except ACPI's."""
SOCKET_REFRESH_S = 1e-3
"""The registers behind amd_energy are updated every millisecond (kernel.org/doc/Documentation/hwmon/amd_energy.rst)."""
SOCKET_LIMIT_W = 2000.0
"""Above any processor package sold today."""
SOCKET_LATE_S = 0.01
"""A counter that has not moved for ten of them is late."""
PERIOD_S = 0.1
"""Power is read at least this often [s]."""
RAIL = Shown(mean_s=0.1)
"""Assumptions: the INA3221 averages over up to 1,024 samples, and drivers differ in what they set; and its last digit
flickers, so that a number that stays is suspicious."""
GPU = Shown(mean_s=1.0, rest_s=600.0)
"""Assumption: the kernel says "average power", and not over how long."""
METER_DELAY_S = 1.0
"""How late an ACPI meter shows its mean beside the interval of the mean; assumption."""

_ROOT_RAILS = ("VDD_IN", "POM_5V_IN")
"""The whole module: NVIDIA's answers in forums.developer.nvidia.com/t/200883 and, for the Jetson Nano, /t/73608."""
_RAIL_SCOPES = {"CPU": "cpu", "GPU": "gpu"}
_RAIL_NAME = re.compile(r"(?:VDD_(?:SYS_)?|POM_5V_|SYS_VDD_)?(CPU|GPU)(?:_(?:CV|SOC))?")
"""Rails of one kind of processor: GPU, VDD_GPU_SOC, POM_5V_CPU, VDD_CPU_CV; not VDD_CPU_GPU_CV, which is both."""
_SOCKET = re.compile(r"Esocket(\d+)")
_HIDING = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
_GRANT = "sudo chmod a+r /sys/class/hwmon/hwmon*/energy*_input"

_Read = Callable[[Path], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A quantity that can be read.

    Attributes:
        kind: "root" and "meter" hold the whole machine, "part" a part of it.
        scope: what it measures.
        files: one with energy [uJ], one with power [uW], or two with voltage [mV] and current [mA].
        shown: how power is shown; None: it is an energy counter.
        gain_sd_fraction: standard deviation of its unknown factor.
    """

    kind: str
    scope: str
    files: tuple[Path, ...]
    shown: Shown | None
    gain_sd_fraction: float = GAIN_SD_FRACTION


def _read_text(path: Path) -> str:
    return path.read_text(encoding="ascii")


class HwmonSensor:
    """What the kernel's hardware monitoring drivers show.

    Args:
        root: the tree.
        environ: environment variables; None: those of this process.
        read: reads one of its files; replaced by simulators.
        clock: monotonic seconds; replaced by simulators.
    """

    def __init__(
        self,
        root: Path = Path("/sys/class/hwmon"),
        *,
        environ: Mapping[str, str] | None = None,
        read: _Read = _read_text,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._environ = environ
        self._root = root
        self._text = read
        self._clock = clock

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name="hwmon",
            source=Source.SAMPLED,
            measures="what Linux drivers show: a Jetson module (not its carrier board), AMD sockets by their energy "
            "counter, AMD GPUs, or the whole machine by its ACPI power meter",
            evidence="gain sd 5 % is an assumption, except where an ACPI meter states its accuracy; averaging times: "
            "ACPI's as stated, 0.1 s (Jetson) and 1 s (GPUs) are assumptions",
            fallback=True,
        )

    def available(self, host: Host) -> str | None:
        """None if something is measured here; else why not and what to type."""
        if not host.system.startswith("Linux"):
            return f"hwmon belongs to Linux, and this is {host.system}; run this on Linux"
        return refusal(self.open)

    def open(self) -> Sequence[Probe]:
        """One probe per quantity, no joule in two of them.

        Raises:
            NeedsPrivilegeError: if an energy counter is there and may not be read.
            SensorError: if nothing is measured, or something that is cannot be understood.
        """
        try:
            chips = self._chips()
            found = [quantity for folder, name in chips for quantity in self._quantities(folder, name)]
            probes = [self._probe(quantity) for quantity in _chosen(found)]
        except PermissionError as error:
            raise NeedsPrivilegeError(
                f"{error.filename or self._root} may be read by root only",
                "Linux hides energy counters from ordinary users (CVE-2020-12912, a side-channel attack)",
                f"type `{_GRANT}` (until the next boot)",
            ) from error
        except (OSError, ValueError) as error:
            raise SensorError(
                f"a chip under {self._root} cannot be understood ({error})",
                "a power that is half understood would give wrong joules",
                f"check it with `grep . {self._root}/*/name {self._root}/*/*_label`",
            ) from error
        if not probes:
            names = ", ".join(sorted({name for _, name in chips})) or "none"
            names += "; GPUs are left out because the environment hides some" if self._hides() else ""
            raise SensorError(
                f"no hwmon chip under {self._root} measures energy or power that is understood (chips: {names})",
                "temperatures and fans do not give joules",
                "see what is there with `sensors`; on an AMD GPU load its driver with `sudo modprobe amdgpu`",
            )
        return probes

    def _chips(self) -> list[tuple[Path, str]]:
        """Folder and name of every chip."""
        folders = sorted(self._root.iterdir()) if self._root.is_dir() else []
        return [(folder, self._text(folder / "name").strip()) for folder in folders if (folder / "name").exists()]

    def _quantities(self, folder: Path, name: str) -> Iterator[_Found]:
        if name == "ina3221":
            yield from self._rails(folder)
        elif name == "amd_energy":
            for file in sorted(folder.glob("energy*_label")):
                if socket := _SOCKET.fullmatch(self._text(file).strip()):
                    energy = file.with_name(file.name.replace("_label", "_input"))
                    yield _Found(kind="part", scope=f"cpu:{socket[1]}/package", files=(energy,), shown=None)
        elif name == "amdgpu":
            yield from self._gpu(folder)
        elif name == "power_meter":
            yield from self._meter(folder)

    def _rails(self, folder: Path) -> Iterator[_Found]:
        """Rails of a Jetson that are understood. The chip measures voltage and current; some drivers multiply them."""
        for file in sorted(folder.glob("in[1-3]_label")):
            rail, number = self._text(file).strip().upper(), file.name[2]
            power = folder / f"power{number}_input"
            files = (power,) if power.exists() else (folder / f"in{number}_input", folder / f"curr{number}_input")
            if rail in _ROOT_RAILS:
                yield _Found(kind="root", scope="host", files=files, shown=RAIL)
            elif match := _RAIL_NAME.fullmatch(rail):
                yield _Found(kind="part", scope=_RAIL_SCOPES[match[1]], files=files, shown=RAIL)

    def _hides(self) -> bool:
        """Whether the environment hides GPUs, by numbers that hwmon does not know."""
        environ = os.environ if self._environ is None else self._environ
        return any(environ.get(name) for name in _HIDING)

    def _gpu(self, folder: Path) -> Iterator[_Found]:
        if self._hides():
            return
        files = [folder / name for name in ("power1_average", "power1_input")]
        file = next((file for file in files if file.exists()), None)
        try:
            power_uw = int(self._text(file)) if file else 0
        except OSError:  # a GPU without a power sensor, lent to a virtual machine, or switched off
            return
        if not file or not power_uw:  # the second die of an MI250 shows 0: the first one's power holds both
            return
        # Where there is a north bridge's voltage the processor is inside (docs.kernel.org, "GPU Power/Thermal
        # Controls and Monitoring": "On APUs this includes the CPU").
        scope = "cpu" if (folder / "in1_input").exists() else f"gpu:pci-{(folder / 'device').resolve().name}"
        yield _Found(kind="part", scope=scope, files=(file,), shown=GPU)

    def _meter(self, folder: Path) -> Iterator[_Found]:
        """The ACPI power meter, unless it sits on a battery."""
        file = folder / "power1_average"
        if not file.exists() or self._number(folder / "power1_is_battery"):
            return
        delay_s = METER_DELAY_S + self._number(folder / "power1_average_interval") * 1e-3
        # "98.0%" is how much of the truth it shows (ACPI specification, "_PMC"): taken as a 95 % interval.
        accuracy = self._number(folder / "power1_accuracy") / 100
        gain = (1 - accuracy) / 2 if 0 < accuracy < 1 else GAIN_SD_FRACTION
        shown = Shown(pace_s=METER_DELAY_S, mean_s=delay_s, rest_s=60 + 10 * delay_s)
        yield _Found(kind="meter", scope="host", files=(file,), shown=shown, gain_sd_fraction=gain)

    def _number(self, file: Path) -> float:
        """The number in a file that not every chip has; 0 without it."""
        return float(self._text(file).strip().rstrip("%")) if file.exists() else 0.0

    def _probe(self, found: _Found) -> Probe:
        for file in found.files:
            self._text(file)  # raises what open() explains, while _number would say that it was lost
        quantity = Quantity(
            scope=found.scope, sensor="hwmon", clock=self._clock, gain_sd_fraction=found.gain_sd_fraction
        )
        if found.shown is None:
            counter = Counter(
                name=str(found.files[0]),
                unit_j=1e-6,
                refresh_s=SOCKET_REFRESH_S,
                limit_w=SOCKET_LIMIT_W,
                late_s=SOCKET_LATE_S,
            )
            energy = partial(_number, found.files[0], self._text)
            return CounterProbe(replace(quantity, counter=counter, energy=energy))
        may_be_off = found.shown is RAIL and found.kind == "part"  # an idle GPU's rail is switched off
        power = partial(_power_w, found.files, self._text, may_be_off=may_be_off)
        return PowerProbe(replace(quantity, power=power, shown=found.shown), PERIOD_S)


def _chosen(found: Sequence[_Found]) -> list[_Found]:
    """What is read: the root rail alone, or the parts, or one meter of the whole; never two for one scope."""
    for kind in ("root", "part", "meter"):
        mine = [quantity for quantity in found if quantity.kind == kind]
        scopes = [quantity.scope for quantity in mine]
        if len(set(scopes)) < len(scopes):
            raise ValueError(f"several chips measure {max(scopes, key=scopes.count)!r}")
        if mine:
            return mine
    return []


def _number(file: Path, read: _Read) -> int:
    """The number in a file. Raises SensorError if it cannot be read any more."""
    try:
        return int(read(file))
    except (OSError, ValueError) as error:
        raise SensorError(
            f"{file} cannot be read any more ({error})",
            "the energy of this window is unknown from here on",
            f"check `cat {file}`, and whether the driver is still loaded with `lsmod`",
        ) from error


def _power_w(files: Sequence[Path], read: _Read, *, may_be_off: bool) -> float:
    """Power now [W]: both uW and mV times mA are microwatts. A current below 0 is the chip's offset."""
    power_uw = math.prod(_number(file, read) for file in files)
    if power_uw <= 0 and not may_be_off:
        raise SensorError(
            f"{files[0]} shows {power_uw:g} uW",
            "hardware that is on draws power, so its energy would be understated",
            "keep this sensor out with `--sensor NAME` for another one",
        )
    return max(0.0, power_uw * 1e-6)


sensor = HwmonSensor()
