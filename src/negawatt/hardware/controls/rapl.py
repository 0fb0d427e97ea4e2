"""RAPL power limits: the long-term constraint of every processor package in the powercap tree.

The kernel's files and units: Documentation/power/powercap/powercap.rst. Writing them needs root.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import final

from negawatt.core.errors import HardwareError, NeedsPrivilegeError
from negawatt.hardware.control import ControlInfo, Knob, Value

POWERCAP = Path("/sys/class/powercap")
LOWEST_FRACTION = 0.3
"""The tree tells no lower end of the range; below a third of its design power a package hardly works."""
_ADDRESS = re.compile(r"rapl:(?P<file>/.*/intel-rapl:\d+/constraint_\d+_power_limit_uw)")


@final
class RaplLimit:
    """One constraint file. `file` is its constraint_N_power_limit_uw; raises HardwareError if it cannot be read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        zone = file.parent
        watts = self.read()
        name = _text(zone / "name")
        most_w = _micro(file.with_name(file.name.replace("power_limit", "max_power"))) or watts
        self.info = ControlInfo(
            address=f"rapl:{file}",
            scope=f"cpu:{name.removeprefix('package-')}",
            knob=Knob.POWER_LIMIT,
            unit="W",
            lowest=LOWEST_FRACTION * most_w,
            highest=max(most_w, watts),
            step=0.5,  # hardware units are 1/8 W
        )

    def read(self) -> float:
        """The limit [W]."""
        microwatts = _micro(self._file)
        if microwatts is None:
            raise _gone(self._file, "it cannot be read")
        return microwatts

    def write(self, value: Value) -> None:
        """Set the limit [W]."""
        if value is None:
            raise _gone(self._file, "a power limit is a number, got none")
        try:
            self._file.write_text(f"{round(value * 1e6)}\n", encoding="ascii")
        except PermissionError as error:
            raise NeedsPrivilegeError(
                f"{self._file} may not be written", "the power limit stays as it is", self.command(value)
            ) from error
        except OSError as error:
            raise _gone(self._file, error.strerror or str(error)) from error

    def command(self, value: Value) -> str:
        """What an administrator types."""
        return f"echo {round((value or 0.0) * 1e6)} | sudo tee {self._file}"


def found(root: Path = POWERCAP) -> Sequence[RaplLimit]:
    """The long-term limit of every package. Raises HardwareError if there is none."""
    limits = []
    for zone in sorted(root.glob("intel-rapl:*")) if root.is_dir() else []:
        if not re.fullmatch(r"intel-rapl:\d+", zone.name) or not _text(zone / "name").startswith("package-"):
            continue
        limits += [
            RaplLimit(name.with_name(name.name.replace("_name", "_power_limit_uw")))
            for name in sorted(zone.glob("constraint_*_name"))
            if _text(name) == "long_term"
        ]
    if not limits:
        raise HardwareError(
            f"{root} has no power limit of a processor package",
            "the processors' power cannot be limited",
            "on an Intel or AMD machine load it: `sudo modprobe intel_rapl_msr`; virtual machines have none",
        )
    return limits


def opened(address: str) -> RaplLimit:
    """The control of an address. Raises HardwareError if it names no constraint or that is gone."""
    match = _ADDRESS.fullmatch(address)
    if match is None or ".." in address:
        raise HardwareError(
            f"{address!r} names no RAPL power limit", "nothing was changed", "take an address from `negawatt doctor`"
        )
    return RaplLimit(Path(match["file"]))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _micro(file: Path) -> float | None:
    """A number of a file, divided by a million; None if there is none."""
    text = _text(file)
    return int(text) * 1e-6 if text.isdigit() else None


def _gone(file: Path, reason: str) -> HardwareError:
    return HardwareError(f"{file}: {reason}", "the power limit is unknown", "look whether the file is still there")
