"""RAPL power limits: the long-term constraint of every processor package in the powercap tree.

Files and units: Linux, Documentation/power/powercap/powercap.rst. The short-term constraint, which allows bursts above
the long-term one for milliseconds, is left alone, and so are the parts inside a package: a limit on `core` alone moves
power to the rest. AMD processors count their energy in this tree and have no constraints in it. Where the firmware has
locked the limits, the kernel shows the zone as not enabled and refuses to write (drivers/powercap/intel_rapl_common.c,
"locked by BIOS").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

from negawatt.core.errors import HardwareError
from negawatt.core.reading import NotMeasured
from negawatt.hardware.control import ControlInfo, Knob, Value
from negawatt.hardware.controls import usable
from negawatt.hardware.controls.kernelfile import number_of, refused, text_of, write_number

POWERCAP = Path("/sys/class/powercap")
LOWEST_FRACTION = 0.3
"""The tree tells no lower end of the range. An assumption: further below the highest limit a package hardly works."""
STEP_W = 0.5
"""Registers count in units of 1/8 W (Intel SDM, volume 3, "RAPL interfaces": MSR_RAPL_POWER_UNIT)."""
_ADDRESS = re.compile(r"rapl:(?P<file>/(?:[^/]+/)*intel-rapl:\d+/constraint_\d+_power_limit_uw)")


@final
class RaplLimit:
    """One constraint file.

    Args:
        file: its constraint_N_power_limit_uw.
        read: gives the text of a file, "" if there is none; replaced by simulators.

    Raises:
        HardwareError: if it cannot be read.
    """

    def __init__(self, file: Path, *, read: Callable[[Path], str] = text_of) -> None:
        self._file = file
        self._read = read
        found_w = self.read()
        most_uw = number_of(text_of(file.with_name(file.name.replace("power_limit", "max_power"))))
        most_w = most_uw * 1e-6 if most_uw else found_w
        self.info = ControlInfo(
            address=f"rapl:{file}",
            scope=f"cpu:{text_of(file.parent / 'name').removeprefix('package-')}",
            knob=Knob.POWER_LIMIT,
            unit="W",
            lowest=LOWEST_FRACTION * most_w,
            highest=max(most_w, found_w),
            step=STEP_W,
        )

    def read(self) -> float:
        """The limit [W]."""
        microwatts = number_of(self._read(self._file).strip())
        if microwatts is None:
            raise refused(self._file, "there is no number in it")
        return microwatts * 1e-6

    def write(self, value: Value) -> None:
        """Set the limit [W]."""
        if value is None:
            raise refused(self._file, "a power limit is a number, got none")
        write_number(self._file, round(value * 1e6), self.command(value))

    def command(self, value: Value) -> str:
        """What an administrator types."""
        return f"echo {round((value or 0.0) * 1e6)} | sudo tee {self._file}"


def look(
    root: Path = POWERCAP, *, read: Callable[[Path], str] = text_of
) -> tuple[tuple[RaplLimit, ...], tuple[NotMeasured, ...]]:
    """The long-term limit of every package, and those that are not in use, with the reason. HardwareError if none."""
    limits: list[RaplLimit] = []
    off: list[NotMeasured] = []
    for zone in sorted(root.glob("intel-rapl:*")):
        if not re.fullmatch(r"intel-rapl:\d+", zone.name) or not text_of(zone / "name").startswith("package-"):
            continue
        for name in sorted(zone.glob("constraint_*_name")):
            if text_of(name) != "long_term":
                continue
            if text_of(zone / "enabled") == "0":
                why = "its power limit is switched off, or locked by the firmware: look into the firmware's setup"
                off.append(NotMeasured(what=f"rapl {zone}", why=why))
            else:
                limits.append(RaplLimit(name.with_name(name.name.replace("_name", "_power_limit_uw")), read=read))
    if not limits and not off:
        raise HardwareError(
            f"{root} has no power limit of a processor package",
            "the processors' power cannot be limited",
            "on an Intel machine load it: `sudo modprobe intel_rapl_msr`; AMD processors and virtual machines have "
            "none, there limit the clock",
        )
    return tuple(limits), tuple(off)


def found(root: Path = POWERCAP, *, read: Callable[[Path], str] = text_of) -> Sequence[RaplLimit]:
    """The limits that can be set. Raises HardwareError if there is none."""
    return usable(*look(root, read=read))


def opened(address: str) -> RaplLimit:
    """The control of an address. Raises HardwareError if it names no constraint or that is gone."""
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in Path(address).parts:
        raise HardwareError(
            f"{address!r} names no RAPL power limit", "nothing was changed", "take an address from `negawatt doctor`"
        )
    return RaplLimit(Path(match["file"]))
