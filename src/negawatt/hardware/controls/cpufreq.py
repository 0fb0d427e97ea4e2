"""Highest clocks of the processors through the kernel's cpufreq files, in MHz.

Files and units (kHz): Linux, Documentation/admin-guide/pm/cpufreq.rst, "Policy Interface in sysfs". A job wants one
clock limit, and cores of different kinds have different ranges: all policies of the same range are one control, which
is one control for all on most machines, and one for each kind of core on the others. Policies that have limits of
their own already are left to whoever set them: one number could not put them back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import final

from negawatt.core.errors import HardwareError
from negawatt.core.reading import NotMeasured
from negawatt.hardware.control import ControlInfo, Knob, Value
from negawatt.hardware.controls import usable
from negawatt.hardware.controls.kernelfile import number_of, refused, text_of, write_number

CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")
STEP_MHZ = 1.0
_RANGES = r"\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*"
_ADDRESS = re.compile(rf"cpufreq:(?P<root>/(?:[^/]+/)*cpufreq)/policy(?P<policies>{_RANGES})")
_MOST_POLICIES = 65536
"""No machine has more: an address that names more is nonsense."""


@final
class CpuClockLimit:
    """The highest clock of some policies, which are set and read as one.

    Args:
        root: the folder of all policies.
        policies: numbers of these.

    Raises:
        HardwareError: if one of them cannot be read.
    """

    def __init__(self, root: Path, policies: Sequence[int]) -> None:
        self._files = [root / f"policy{number}" / "scaling_max_freq" for number in policies]
        names = _ranges(policies)
        self._all = set(policies) == set(_policies(root))
        self._root = root
        lowest = [
            _mhz(file.with_name(name)) for file in self._files for name in ("cpuinfo_min_freq", "scaling_min_freq")
        ]
        available = text_of(self._files[0].with_name("scaling_available_frequencies")).split()
        self.info = ControlInfo(
            address=f"cpufreq:{root}/policy{names}",
            scope="cpu" if self._all else f"cpu/policy{names}",
            knob=Knob.CLOCK_LIMIT,
            unit="MHz",
            lowest=max(lowest),  # the kernel lets no highest clock fall below the lowest one that is set
            highest=min(_mhz(file.with_name("cpuinfo_max_freq")) for file in self._files),
            step=STEP_MHZ,
            values=tuple(sorted({int(khz) / 1e3 for khz in available if int(khz) / 1e3 >= max(lowest)})),
        )

    def read(self) -> float:
        """The limit [MHz]; where the policies differ, as after a write that was cut short, the highest one."""
        return max(map(_mhz, self._files))

    def write(self, value: Value) -> None:
        """Set the limit of all [MHz]."""
        if value is None:
            raise refused(self._files[0], "a highest clock is a number, got none")
        for file in self._files:
            write_number(file, round(value * 1e3), self.command(value))

    def command(self, value: Value) -> str:
        """What an administrator types."""
        files = f"{self._root}/policy*/scaling_max_freq" if self._all else " ".join(map(str, self._files))
        return f"echo {round((value or 0.0) * 1e3)} | sudo tee {files}"


def look(root: Path = CPUFREQ) -> tuple[tuple[CpuClockLimit, ...], tuple[NotMeasured, ...]]:
    """One control for each kind of core, and the kinds that cannot be set as one. HardwareError if there is none."""
    policies = _policies(root)
    if not policies:
        raise HardwareError(
            f"{root} has no policies",
            "the processors' clocks cannot be limited",
            "most virtual machines have none; on others, look with `cpupower frequency-info`",
        )

    def kind(policy: int) -> tuple[float, float]:
        folder = root / f"policy{policy}"
        return _mhz(folder / "cpuinfo_max_freq"), _mhz(folder / "cpuinfo_min_freq")

    controls: list[CpuClockLimit] = []
    different: list[NotMeasured] = []
    for _, group in groupby(sorted(policies, key=lambda policy: (kind(policy), policy)), key=kind):
        numbers = list(group)
        found_mhz = {_mhz(root / f"policy{number}" / "scaling_max_freq") for number in numbers}
        if len(found_mhz) == 1:
            controls.append(CpuClockLimit(root, numbers))
        else:
            clocks = ", ".join(f"{mhz:g}" for mhz in sorted(found_mhz))
            why = f"their highest clocks are set apart already ({clocks} MHz); set them alike first"
            different.append(NotMeasured(what=f"cpufreq {root}/policy{_ranges(numbers)}", why=why))
    return tuple(controls), tuple(different)


def found(root: Path = CPUFREQ) -> Sequence[CpuClockLimit]:
    """The controls that can be set. Raises HardwareError if there is none."""
    return usable(*look(root))


def opened(address: str) -> CpuClockLimit:
    """The control of an address. Raises HardwareError if it names no policies or one is gone."""
    match = _ADDRESS.fullmatch(address)
    policies = list(_numbers(match["policies"])) if match else []
    if match is None or not policies or ".." in Path(address).parts:
        raise HardwareError(
            f"{address!r} names no clock limit", "nothing was changed", "take an address from `negawatt doctor`"
        )
    return CpuClockLimit(Path(match["root"]), policies)


def _policies(root: Path) -> list[int]:
    names = (re.fullmatch(r"policy(\d+)", folder.name) for folder in root.glob("policy*"))
    return sorted(int(name[1]) for name in names if name)


def _mhz(file: Path) -> float:
    khz = number_of(text_of(file))
    if khz is None:
        raise refused(file, "there is no number in it")
    return khz / 1e3


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers as the kernel writes lists of processors: "0-3,8"."""
    pieces: list[list[int]] = []
    for number in sorted(numbers):
        if pieces and number == pieces[-1][-1] + 1:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces)


def _numbers(ranges: str) -> list[int]:
    """The numbers of such a list; none if it is longer than any machine's or runs backwards."""
    numbers: list[int] = []
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not 0 < len(span) <= _MOST_POLICIES - len(numbers):
            return []
        numbers += span
    return numbers
