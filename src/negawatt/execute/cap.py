"""Cap: limit a command's devices while it runs, at a fixed limit or tuned from its steps, or only say what would pay.

The command comes first: whatever cannot be limited or measured is noted in the record, and it runs all the same.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import final

from negawatt.core.errors import NegawattError
from negawatt.core.tuned import Tuned
from negawatt.execute.fleetfile import Member
from negawatt.execute.steps import StepFeed
from negawatt.hardware.control import Control, Knob
from negawatt.hardware.hand import Hand, take
from negawatt.levers.devices import Devices, of_job
from negawatt.levers.limiting import Limiting
from negawatt.metering.run import LiveRun
from negawatt.tuning.advice import advise
from negawatt.tuning.objective import Objective
from negawatt.tuning.online import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user wants.

    Attributes:
        objective: what tuning is to reach.
        knob: what is limited.
        limit: a fixed limit of each device instead of tuning [W or MHz]; None: tune.
        advise: change nothing, say what would pay.
        fleet: the fleet whose slow-down the job shares; its objective takes the place of the one above.
        pace: how long tuning takes; None: as for real devices.
    """

    objective: Objective
    knob: Knob = Knob.POWER_LIMIT
    limit: float | None = None  # in the unit of the knob
    advise: bool = False
    fleet: Member | None = None
    pace: Pace | None = None


@final
@dataclass(slots=True)
class Capped:
    """How it goes. Attributes: `environ` is for the command; `lines` are for the user, filled at the end."""

    environ: Mapping[str, str]
    lines: list[str] = field(default_factory=list)


@contextmanager
def capped(wish: Wish, live: LiveRun, scopes: tuple[str, ...]) -> Iterator[Capped]:
    """Limit the devices inside the block, in which the command runs.

    Args:
        wish: what the user wants.
        live: the run under the meter, which keeps what was tuned.
        scopes: of what is metered.
    """
    controls: tuple[Control, ...] = ()
    hand, why = None, ""
    try:
        controls = of_job(wish.knob, scopes)
        if not wish.advise:
            hand = take([control.info.address for control in controls], owner=f"negawatt cap, {live.name}")
    except NegawattError as error:
        why = f"not limited: {error.reason}"
    if hand is None:
        yield from _advising(wish, live, controls, why)
    elif wish.limit is None:
        yield from _tuning(wish, live, hand)
    else:
        yield from _fixed(wish.limit, live, hand)


def _tuning(wish: Wish, live: LiveRun, hand: Hand) -> Iterator[Capped]:
    try:
        objective = wish.fleet.admit() if wish.fleet else wish.objective
    except NegawattError:
        hand.release()
        raise  # nothing has been run yet
    limiting = Limiting(hand, objective, readings=lambda: live.readings, clock=time.monotonic, pace=wish.pace)
    try:
        with StepFeed(limiting.step, os.environ) as feed:
            done = Capped(feed.environ)
            yield done
    finally:
        tuned = limiting.close()
        live.tuned(tuned if feed.unit else replace(tuned, notes=(*tuned.notes, _NO_STEPS)))
        told = _left(wish.fleet, tuned, live.time_s) if wish.fleet else []
    done.lines += [*lines(tuned, feed.unit), *told]
    if not feed.unit:
        done.lines.append(_NO_STEPS)


def _left(fleet: Member, tuned: Tuned, time_s: float) -> list[str]:
    """Tell the fleet what the job lost; how the fleet stands."""
    try:
        return [fleet.finish(tuned, time_s)]
    except NegawattError as error:
        return [f"the fleet was not told what this job lost, and counts what was set aside for it: {error.reason}"]


_NO_STEPS = (
    "no step was seen: PyTorch optimizers are counted by themselves; any other program appends a line "
    '{"work": 1} per step to the file named in $NEGAWATT_PROGRESS'
)


def _fixed(limit: float, live: LiveRun, hand: Hand) -> Iterator[Capped]:
    """A limit that the user gave, for each device."""
    done, devices = Capped(os.environ), Devices.held(hand)
    notes: list[str] = []
    try:
        held = math.fsum(hand.set(address, limit) or 0.0 for address in hand.infos)
    except NegawattError as error:
        held = devices.found
        notes += [f"{limit:g} {devices.unit} could not be set: {error.reason}", *_released(hand)]
    try:
        yield done
    finally:
        notes += _released(hand)
        live.tuned(
            Tuned(
                knob=str(devices.knob),
                unit=devices.unit,
                scopes=devices.scopes,
                objective="a fixed limit",
                found=devices.found,
                held=held,
                notes=tuple(notes),
            )
        )
    done.lines += [f"{devices.knob}: {held:g} {devices.unit}, found {devices.found:g} {devices.unit}", *notes]


def _released(hand: Hand) -> list[str]:
    """Put everything back; what went wrong with that."""
    try:
        hand.release()
    except NegawattError as error:
        return [f"not put back: {error.reason}"]
    return []


def _advising(wish: Wish, live: LiveRun, controls: tuple[Control, ...], why: str) -> Iterator[Capped]:
    """Run the command as it is; afterwards say what would pay."""
    done = Capped(os.environ, [why] if why else [])
    began_s = time.monotonic()
    yield done
    if controls:
        try:
            done.lines += _advice(wish, live, controls, time.monotonic() - began_s)
        except NegawattError as error:
            done.lines.append(f"no advice: {error.reason}")


def _advice(wish: Wish, live: LiveRun, controls: tuple[Control, ...], time_s: float) -> list[str]:
    found = {control.info.address: control.read() for control in controls}
    devices = Devices([control.info for control in controls], found)
    if devices.knob is not Knob.POWER_LIMIT:
        return [f"no advice: what a {devices.knob} saves is not known beforehand; it takes the privilege to try"]
    if find_spec("numpy") is None:
        return ["no advice: it takes NumPy (`pip install numpy`)"]
    own_j, rest_j, _ = devices.energy_j(live.readings)
    if own_j <= 0:
        return ["no advice: these devices are not metered"]
    told = advise(devices.limits, own_j / time_s, wish.objective.with_rest(rest_j / own_j))
    draw = f"{own_j / time_s:.3g} W drawn on average under {devices.found:g} W"
    if told.limit_w >= devices.found:
        return [f"advice ({wish.objective}): leave the {devices.knob} as it is; {draw}"]
    values = devices.values(told.limit_w)
    return [
        f"advice ({wish.objective}): a {devices.knob} of {told.limit_w:.4g} W; {draw}",
        "  expected per step, from curves of other work (80 % range): energy "
        + _range(told.energy_ratio, told.energy_low, told.energy_high)
        + ", time "
        + _range(told.time_ratio, told.time_low, told.time_high),
        *(f"  an administrator sets it with: {control.command(values[control.info.address])}" for control in controls),
        *(f"  and puts it back with: {control.command(found[control.info.address])}" for control in controls),
    ]


def _range(ratio: float, low: float, high: float) -> str:
    return f"{_change(ratio)} ({_change(low)} to {_change(high)})"


def _change(ratio: float) -> str:
    return f"{(ratio - 1) * 100:+.1f} %"


def lines(tuned: Tuned, unit: str) -> list[str]:
    """What was tuned, as lines for the user."""
    told = [f"{tuned.knob} of {', '.join(tuned.scopes)} ({tuned.objective}): found {tuned.found:g} {tuned.unit}"]
    if tuned.probes:
        told[0] += f", held {tuned.held:.4g} {tuned.unit} after {len(tuned.probes)} windows"
    if changes := tuned.changes:
        time_ratio, energy_ratio = changes
        told.append(
            f"  by this run's own windows: {_change(energy_ratio)} energy and {_change(time_ratio)} time per "
            f"{unit} (`negawatt plan` would prove it)"
        )
    if tuned.saved_j:
        told.append(f"  {tuned.held_steps:g} steps under it, {tuned.saved_j:.4g} J less")
    return [*told, *(f"  {note}" for note in tuned.notes)]
