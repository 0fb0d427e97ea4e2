"""RAPL: energy counters of Intel and AMD processors, through Linux's powercap tree.

What is counted once and what is left out: a `package-N` zone holds the cores and the uncore, so those sub-zones are
skipped; `psys` holds the packages, so it is skipped; `dram` lies beside the package and is added. A package that is
listed twice (MSR and MMIO, or once per die although the hardware has one counter) is read once.
"""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from negawatt.core.errors import NeedsPrivilegeError, SensorError
from negawatt.core.host import Host
from negawatt.core.reading import SensorInfo, Source
from negawatt.metering.counters import Counter
from negawatt.metering.probes import CounterProbe, Quantity

REFRESH_S = 1e-3
"""The counters are brought up to date about every millisecond (Intel SDM vol. 3B, "Package RAPL Domain")."""
LATE_S = 0.01
"""A counter that has not moved for ten refreshes is late."""
LIMIT_W = 2000.0
"""Above any processor package sold today; fixes how often a wrap has to be looked for."""
GAIN_SD_FRACTION = 0.05
"""Assumption: no published figure holds for all processors. Package RAPL follows plug power closely (Khan et al.,
2018, doi:10.1145/3177754), but AMD's and older Intel's are models, and energy filtering (SGX) skews values."""
DRAM_OFFSET_SD_W = 1.0
"""Assumption: DRAM RAPL has a constant offset, worst when idle (Desrochers et al., 2016,
doi:10.1145/2989081.2989088)."""

_TOP = re.compile(r"intel-rapl(?:-mmio)?:\d+")
_PACKAGE = re.compile(r"package-(\d+)(?:-die-(\d+))?")
_SAME_COUNTER_UJ = 1_000_000
"""Two dies whose counters differ by less than a joule, out of some 10^5 J, are one counter read twice."""
_GRANT = "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj"


@dataclass(frozen=True, slots=True)
class _Zone:
    """A zone that is to be read."""

    folder: Path
    scope: str
    kind: str  # "package" or "dram"
    flags: tuple[str, ...] = ()


def _reader(path: Path) -> Callable[[], bytes]:
    """Reads one file again and again without opening it each time; closes it with the last reference."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read() -> bytes:
        return os.pread(file, 32, 0)

    weakref.finalize(read, os.close, file)
    return read


def _read_text(path: Path) -> str:
    return path.read_text(encoding="ascii")


_Read = Callable[[Path], str]


def _count(file: Path, read: Callable[[], bytes | str]) -> int:
    """The counter now. Raises SensorError if the zone vanished or its permission was withdrawn."""
    try:
        return int(read())
    except (OSError, ValueError) as error:
        raise SensorError(
            f"{file} cannot be read any more ({error})",
            "the energy of this window is unknown from here on",
            f"check `ls -l {file}`, and if the permission was withdrawn `{_GRANT}`",
        ) from error


class RaplSensor:
    """Package and DRAM energy of the processors.

    Args:
        root: the powercap tree.
        read: reads one of its files; replaced by simulators.
        clock: monotonic seconds; replaced by simulators.
    """

    def __init__(
        self,
        root: Path = Path("/sys/class/powercap"),
        *,
        read: _Read = _read_text,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._root = root
        self._read = read
        self._clock = clock

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name="rapl",
            source=Source.COUNTER,
            measures="CPU packages (cores and uncore inside) and, where the processor counts it, DRAM. psys is left "
            "out because it contains the packages; power supply, fans and disks are not measured",
            evidence="update every ~1 ms (Intel SDM); gain sd 5 % is an assumption, see Khan 2018 and Desrochers 2016",
        )

    def available(self, host: Host) -> str | None:
        """None if every package counter can be read; else why not and what to type."""
        if not host.system.startswith("Linux"):
            return f"RAPL is read through Linux, and this is {host.system}; run this on Linux"
        try:
            self.open()
        except NeedsPrivilegeError as error:
            return error.reason
        except SensorError as error:
            where = f" (this is {host.virtual})" if host.virtual else ""
            return f"{error.got}{where}; {error.fix}"
        return None

    def open(self) -> Sequence[CounterProbe]:
        """One probe per package and DRAM counter.

        Raises:
            NeedsPrivilegeError: if a counter may not be read.
            SensorError: if there is none.
        """
        try:
            probes = [self._probe(zone) for zone in self._zones() if self._alive(zone)]
        except PermissionError as error:
            raise NeedsPrivilegeError(
                f"{error.filename or self._root} may be read by root only",
                "Linux hides the energy counters from ordinary users since CVE-2020-8694, a side-channel attack",
                f"type `{_GRANT}` (until the next boot)",
            ) from error
        except (OSError, ValueError) as error:
            raise SensorError(
                f"the powercap tree at {self._root} cannot be understood ({error})",
                "a counter that is half understood would give wrong joules",
                "check it with `grep . /sys/class/powercap/*/name`",
            ) from error
        if not any(probe.scope.endswith("/package") for probe in probes):
            raise SensorError(
                f"no live RAPL package counter under {self._root}",
                "without one the processor's energy cannot be counted",
                "on a physical machine type `sudo modprobe intel_rapl_msr`; in a virtual machine or container run "
                "`negawatt doctor` on the machine below",
            )
        return probes

    def _name(self, folder: Path) -> str:
        return self._read(folder / "name").strip()

    def _alive(self, zone: _Zone) -> bool:
        """Whether the counter ever counted: hypervisors and some boards show zones that stay at 0."""
        return int(self._read(zone.folder / "energy_uj")) > 0

    def _zones(self) -> list[_Zone]:
        """The zones to read, no joule in two of them."""
        if not self._root.is_dir():
            return []
        found = [folder for folder in self._root.iterdir() if _TOP.fullmatch(folder.name)]
        packages: dict[str, dict[str, Path]] = {}
        # "intel-rapl:" sorts before "intel-rapl-mmio:" here, so the MSR's counter wins over its MMIO double.
        for folder in sorted(found, key=lambda f: ("mmio" in f.name, f.name)):
            match = _PACKAGE.fullmatch(self._name(folder))
            if match:  # everything else at the top (psys) contains packages
                packages.setdefault(match[1], {}).setdefault(match[2] or "", folder)
        zones: list[_Zone] = []
        for package in sorted(packages, key=int):
            dies = self._distinct(packages[package])
            doubles = ", ".join(f.name for f in packages[package].values() if f not in dies.values())
            flags = (
                (f"{doubles} shows the same joules as {min(dies.values()).name} and is left out",) if doubles else ()
            )
            for die, folder in dies.items():
                prefix = f"cpu:{package}" + (f"/die-{die}" if len(dies) > 1 else "")
                zones.append(_Zone(folder, f"{prefix}/package", "package", flags))
                zones += [
                    _Zone(sub, f"{prefix}/dram", "dram", flags)
                    for sub in sorted(self._root.glob(f"{folder.name}:*"))
                    if self._name(sub) == "dram"
                ]
        return zones

    def _distinct(self, dies: dict[str, Path]) -> dict[str, Path]:
        """The dies of a package that have a counter of their own.

        Some kernels list a zone per die although the processor has one counter per package; summing them doubles the
        joules (codecarbon issue 1274).
        """
        kept: dict[str, Path] = {}
        for die, folder in dies.items():
            if not any(self._same(folder, other) for other in kept.values()):
                kept[die] = folder
        return kept

    def _same(self, one: Path, other: Path) -> bool:
        """Whether two zones show one counter: read between two reads of the first, the second fits in."""
        before, between, after = (int(self._read(zone / "energy_uj")) for zone in (one, other, one))
        return before - _SAME_COUNTER_UJ <= between <= after + _SAME_COUNTER_UJ

    def _probe(self, zone: _Zone) -> CounterProbe:
        # The kernel gives the largest value, one energy unit (some 10 uJ) below the modulus: less than the quantum.
        counter = Counter(
            name=f"{zone.folder.name}/energy_uj",
            unit_j=1e-6,
            refresh_s=REFRESH_S,
            limit_w=LIMIT_W,
            modulus=int(self._read(zone.folder / "max_energy_range_uj")),
            late_s=LATE_S,
        )
        file = zone.folder / "energy_uj"
        return CounterProbe(
            Quantity(
                scope=zone.scope,
                sensor="rapl",
                clock=self._clock,
                energy=partial(_count, file, _reader(file) if self._read is _read_text else partial(self._read, file)),
                counter=counter,
                gain_sd_fraction=GAIN_SD_FRACTION,
                offset_sd_w=DRAM_OFFSET_SD_W if zone.kind == "dram" else 0.0,
                typical_w=self._tdp_w(zone),
                flags=zone.flags,
            )
        )

    def _tdp_w(self, zone: _Zone) -> float:
        """The zone's rated power, or 100 W where the kernel does not say; used only for the error of short windows."""
        try:
            return int(self._read(zone.folder / "constraint_0_max_power_uw")) * 1e-6 or 100.0
        except (OSError, ValueError):
            return 100.0


sensor = RaplSensor()
