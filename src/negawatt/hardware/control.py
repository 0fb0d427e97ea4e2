"""Control: one thing of the hardware that can be set and read back, such as a power limit. It knows no crash safety.

Who wants to change a control takes a `Lease` on it, which remembers how it was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

Value = float | None
"""What a control is set to, in its unit; None: not set at all (clocks that are not locked, no profile)."""


class Knob(StrEnum):
    """What kind of thing a control sets."""

    POWER_LIMIT = "power-limit"
    """what a device may draw on average [W]"""
    CLOCK_LIMIT = "clock-limit"
    """the highest clock a device may run at [MHz]"""
    MEMORY_CLOCK_LIMIT = "memory-clock-limit"
    """the highest clock its memory may run at [MHz]"""
    PROFILE = "profile"
    """a workload power profile of its maker's, by number"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlInfo:
    """What a control is.

    Attributes:
        address: names it on this host, also to another process and after a crash; `open_control` opens it.
        scope: what it acts on, as readings name it: "gpu:GPU-...", "cpu:0".
        knob: what it sets.
        unit: of its value: "W", "MHz" or "".
        lowest: of the device's own range.
        highest: of the device's own range.
        step: what is read back may differ by so much from what was written.
        values: the only values it takes, in rising order; empty: any in the range.
    """

    address: str
    scope: str
    knob: Knob
    unit: str
    lowest: float  # in `unit`
    highest: float  # in `unit`
    step: float  # in `unit`
    values: tuple[float, ...] = ()  # in `unit`


@runtime_checkable
class Control(Protocol):
    """One control. Nothing here remembers, restores or limits anything: `Lease` does."""

    @property
    def info(self) -> ControlInfo:
        """What it is."""

    def read(self) -> Value:
        """What it is set to. Raises HardwareError if the device is gone."""

    def write(self, value: Value) -> None:
        """Set it. Raises NeedsPrivilegeError if this user may not, HardwareError if the device refuses or is gone."""

    def command(self, value: Value) -> str:
        """What an administrator types to set it."""
