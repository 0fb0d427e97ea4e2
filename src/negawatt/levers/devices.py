"""Devices: the limits of a job's devices moved together, as one number. Which devices those are."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from negawatt.core.errors import HardwareError, NegawattError, SensorError
from negawatt.core.reading import Reading, Source, contains, overlap
from negawatt.hardware.control import Control, ControlInfo, Knob, Value
from negawatt.hardware.controls import found_controls
from negawatt.hardware.hand import Hand
from negawatt.hardware.nvml import open_nvml

STEPS = 16
"""About so many limits are worth telling apart between the one as found and none at all."""
_ROUND = (1.0, 2.0, 5.0, 10.0, 20.0, 25.0, 50.0, 100.0)
_SLOWEST_FRACTION = 1 / 3
"""Clocks below this part of the highest are not tried: below the lowest useful voltage nothing is saved."""


def of_job(knob: Knob, scopes: Sequence[str] = ()) -> tuple[Control, ...]:
    """The controls of a kind that a job's devices have: of its GPUs if it has some, else of the processors.

    Args:
        knob: what they set.
        scopes: of what is measured, which leaves out GPUs that are hidden from the job; none: not known yet, GPUs are
            those that CUDA_VISIBLE_DEVICES shows.

    Raises:
        HardwareError: if there are none, or one of its GPUs has none, with the reason for each kind.
    """
    controls, absent = found_controls()
    shown = _shown_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    mine = [c for c in controls if c.info.knob is knob and _is_of_job(c.info.scope, scopes, shown)]
    gpus = tuple(control for control in mine if control.info.scope.startswith("gpu:"))
    without = [s for s in scopes if s.startswith("gpu:") and not any(overlap(s, c.info.scope) for c in gpus)]
    if not mine or without:
        reasons = "; ".join(f"{left.what}: {left.why}" for left in absent)
        raise HardwareError(
            f"no {str(knob).replace('-', ' ')} of {', '.join(without) or 'what this job runs on'} can be set here",
            f"there is nothing to limit: {reasons or 'none of the devices measured has one'}",
            "`negawatt doctor` says what this host can set and why not more",
        )
    return gpus or tuple(mine)


def _is_of_job(scope: str, scopes: Sequence[str], shown: set[str] | None) -> bool:
    """Whether a device is one of the job's: measured or, where that is not known, not hidden."""
    if not scopes:
        return shown is None or not scope.startswith("gpu:") or scope in shown
    kind = scope.partition("/")[0]  # of processors with cores of several kinds: they are the same package
    return any(overlap(one, scope) or overlap(one, kind) for one in scopes)


def _shown_gpus(visible: str | None) -> set[str] | None:
    """Scopes of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES shows; None where it says nothing."""
    if visible is None:
        return None
    try:
        gpus = open_nvml(None, HardwareError)[1]
    except NegawattError:
        return None  # no NVIDIA GPU, so none is hidden
    shown = set()
    for entry in (entry.strip() for entry in visible.split(",")):
        named = [gpu.uuid for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
        if entry.isdigit() and int(entry) < len(gpus):
            named = [gpus[int(entry)].uuid]
        if len(named) != 1:
            break  # as CUDA does with what it does not know
        shown.add(f"gpu:{named[0]}")
    return shown


@final
class Devices:
    """Limits of one kind as one number, moved by the same fraction of what each was found at.

    A power limit of several devices is their sum, a clock limit the highest of theirs.

    Args:
        infos: of the controls, all of one kind.
        found: what each was found at, by address.

    Raises:
        HardwareError: if one was found at a limit of nothing.
    """

    def __init__(self, infos: Iterable[ControlInfo], found: Mapping[str, Value]) -> None:
        self._infos = tuple(infos)
        self.knob = self._infos[0].knob
        self.unit = self._infos[0].unit
        self.scopes = tuple(dict.fromkeys(info.scope for info in self._infos))
        self._before = {info.address: found[info.address] for info in self._infos}
        self._found = {info.address: _start(info, self._before[info.address]) for info in self._infos}
        self.found = self.combined(self._found.values())
        """The limit as found [in `unit`]."""

    @classmethod
    def of(cls, hand: Hand) -> Devices:
        """Those that a hand may change."""
        return cls(hand.infos.values(), hand.found)

    def combined(self, values: Iterable[float]) -> float:
        """One number for the limits of all: the sum of powers, the highest of clocks."""
        return math.fsum(values) if self.knob is Knob.POWER_LIMIT else max(values)

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
            each = [value for n in range(1, STEPS + 1) if (value := found - n * step) >= max(lowest * found, step / 2)]
        return (self.found, *(value * (self.found / found) for value in each))

    def values(self, fraction: float) -> dict[str, Value]:
        """What each control is to be set to for a part of what was found: within its range, from 1 on as found."""
        if fraction >= 1.0:
            return dict(self._before)
        return {info.address: _fit(info, self._found[info.address], fraction) for info in self._infos}

    def energy(self, readings: Sequence[Reading]) -> DeviceEnergy:
        """What these devices drew, and the rest of the host.

        Other GPUs are left out: they have other work to do, or another rank of this job counts them.

        Raises:
            SensorError: if these devices are not measured.
        """
        own = [reading for reading in readings if self._owns(reading.scope)]
        gpus = any(scope.startswith("gpu:") for scope in self.scopes)
        rest = [r for r in readings if not self._owns(r.scope) and not (gpus and r.scope.startswith("gpu:"))]
        if not own or not all(reading.source.measured for reading in own):
            raise SensorError(
                f"the energy of {', '.join(self.scopes)} is not measured here",
                "what a limit saves cannot be told from an estimate",
                "`negawatt doctor` says which sensor is missing",
            )
        sampled = [reading.random_sd_j for reading in own if reading.source is Source.SAMPLED]
        counted = [reading.random_sd_j for reading in own if reading.source is not Source.SAMPLED]
        return DeviceEnergy(
            own_j=math.fsum(reading.energy_j for reading in own),
            rest_j=math.fsum(reading.energy_j for reading in rest),
            edge_sd_j=math.hypot(*counted),
            walk_sd_j=math.hypot(*sampled),
            alone=not any(
                reading.scope not in self.scopes and contains(reading.scope, s) for reading in own for s in self.scopes
            ),
        )

    def _owns(self, scope: str) -> bool:
        """A power limit of a package does not act on its memory."""
        return not scope.endswith("/dram") and any(overlap(device, scope) for device in self.scopes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEnergy:
    """Joules since the beginning.

    Attributes:
        own_j: of the devices [J].
        rest_j: of the rest of the host [J].
        edge_sd_j, walk_sd_j: random error of `own_j`, as in `tuning.windows.Mark` [J].
        alone: whether `own_j` is of the devices alone, so that draw and limit can be compared.
    """

    own_j: float
    rest_j: float
    edge_sd_j: float
    walk_sd_j: float
    alone: bool


def _start(info: ControlInfo, found: Value) -> float:
    """Where the search starts: what is found, or the highest where nothing, or more than the device does, is set."""
    start = info.highest if found is None else min(found, info.highest)
    if start <= 0:
        raise HardwareError(
            f"{info.address} was found at {start:g} {info.unit}",
            "no part of that can be tried",
            "look at the device's own tools",
        )
    return start


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
