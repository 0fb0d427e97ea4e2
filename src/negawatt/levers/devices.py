"""Devices: the limits of a job's devices moved together, as one number. Which devices those are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import final

from negawatt.core.errors import HardwareError, NegawattError
from negawatt.core.reading import Reading, contains
from negawatt.hardware.control import Control, ControlInfo, Knob, Value
from negawatt.hardware.controls import found_controls
from negawatt.hardware.hand import Hand

STEPS = 16
"""About so many limits are worth telling apart between the one as found and none at all."""
_ROUND = (1.0, 2.0, 5.0, 10.0, 20.0, 25.0, 50.0, 100.0)
_SLOWEST_FRACTION = 1 / 3
"""Clocks below this part of the highest are not tried: below the lowest useful voltage nothing is saved."""


def of_job(knob: Knob, scopes: Sequence[str] = ()) -> tuple[Control, ...]:
    """The controls of a kind that a job's devices have: of its GPUs if it has some, else of the processors.

    Args:
        knob: what they set.
        scopes: of what is measured, which leaves out GPUs that are hidden from the job; none: all of the host.

    Raises:
        HardwareError: if there are none, with the reason for each kind.
    """
    controls, absent = found_controls()
    mine = [c for c in controls if c.info.knob is knob and (not scopes or _measured(c.info.scope, scopes))]
    gpus = [control for control in mine if control.info.scope.startswith("gpu:")]
    if not mine:
        reasons = [f"{left.what}: {left.why}" for left in absent]
        raise HardwareError(
            f"no {str(knob).replace('-', ' ')}{' of what is measured' if scopes else ''} can be set here",
            "there is nothing to limit: " + ("; ".join(reasons) or "none of the devices measured has one"),
            "`negawatt doctor` says what this host can set and why not more",
        )
    return tuple(gpus or mine)


def _measured(scope: str, scopes: Sequence[str]) -> bool:
    """Whether a device is measured: by itself, within something larger, or in parts."""
    return any(contains(one, scope) or contains(scope, one) for one in scopes)


@final
class Devices:
    """Limits of one kind as one number, moved by the same fraction of what each was found at.

    A power limit of several devices is their sum, a clock limit the highest of theirs.

    Args:
        infos: of the controls, all of one kind.
        found: what each was found at, by address.
    """

    def __init__(self, infos: Iterable[ControlInfo], found: Mapping[str, Value]) -> None:
        self._infos = tuple(infos)
        self.knob = self._infos[0].knob
        self.unit = self._infos[0].unit
        self.scopes = tuple(dict.fromkeys(info.scope for info in self._infos))
        self._found = {info.address: _start(info, found[info.address]) for info in self._infos}
        sums = self.knob is Knob.POWER_LIMIT
        self.found = math.fsum(self._found.values()) if sums else max(self._found.values())
        """The limit as found [in `unit`]."""

    @classmethod
    def held(cls, hand: Hand) -> Devices:
        """Those that a hand holds."""
        return cls(hand.infos.values(), hand.found)

    @property
    def lowest(self) -> float:
        """The lowest limit that all of them take [in `unit`]."""
        return self.found * max(info.lowest / self._found[info.address] for info in self._infos)

    @property
    def limits(self) -> tuple[float, ...]:
        """What is worth trying, highest first, the limit as found in front."""
        first = self._infos[0]
        found = self._found[first.address]
        lowest = self.lowest / self.found
        if self.knob is not Knob.POWER_LIMIT:
            lowest = max(lowest, _SLOWEST_FRACTION)
        if first.values:
            inside = [value for value in reversed(first.values) if lowest * found <= value < found]
            each = inside[:: max(1, math.ceil(len(inside) / STEPS))]
        else:
            step = next((r for r in _ROUND if r >= found / STEPS), found / STEPS)
            each = [value for n in range(1, STEPS + 1) if (value := found - n * step) >= lowest * found]
        return (self.found, *(value * (self.found / found) for value in each))

    def values(self, limit: float) -> dict[str, float]:
        """What each control is to be set to under a limit, by address: within its range, not above what was found."""
        fraction = limit / self.found
        return {info.address: _fit(info, self._found[info.address], fraction) for info in self._infos}

    def energy_j(self, readings: Sequence[Reading]) -> tuple[float, float, float]:
        """Joules of these devices, of what is no GPU besides, and the random sd of the first [J].

        Other GPUs have other work to do, or another rank of this job counts them.
        """
        own = [reading for reading in readings if self._owns(reading.scope)]
        rest = [
            reading for reading in readings if not self._owns(reading.scope) and not reading.scope.startswith("gpu:")
        ]
        sd_j = math.hypot(*(reading.random_sd_j for reading in own))
        return math.fsum(r.energy_j for r in own), math.fsum(r.energy_j for r in rest), sd_j

    def _owns(self, scope: str) -> bool:
        return any(contains(device, scope) or contains(scope, device) for device in self.scopes)


def _start(info: ControlInfo, found: float | None) -> float:
    """Where the search starts: what is found, or the highest where nothing is set."""
    return info.highest if found is None else found


def _fit(info: ControlInfo, found: float, fraction: float) -> float:
    """A value that the device takes, not above what was found."""
    value = found * fraction
    if info.values:
        return max((v for v in info.values if v <= value + 1e-6), default=info.values[0])
    return min(max(value, info.lowest), found)


def why_not(knob: Knob) -> str | None:
    """None if this user can change a limit of some device here, else why not and what to type. Changes nothing."""
    from negawatt.hardware.guard.client import guard_available

    try:
        controls = of_job(knob)
        commands = "; ".join(control.command(control.read()) for control in controls[:2])
    except NegawattError as error:
        return error.reason
    if os.geteuid() == 0 or guard_available() is None:
        return None
    return (
        f"changing a {knob} takes the privilege of an administrator, and no guard lets this user; "
        f"ask for `negawatt guard` (docs/guard.md), or see what would pay with `negawatt cap --advise -- CMD` "
        f"(an administrator sets it with `{commands}`)"
    )
