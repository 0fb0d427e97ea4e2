"""Cap: limit a command's devices while it runs, at a fixed limit or tuned from its steps, or only say what would pay.

The command comes first: whatever cannot be limited or measured is noted in the record, and it runs all the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import final

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.tuned import Tuned
from negawatt.execute.fleetfile import Member
from negawatt.execute.steps import StepFeed
from negawatt.hardware.control import Control, Knob
from negawatt.hardware.hand import Hand, put_back, take
from negawatt.hardware.lease import held, repair
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
    """How it goes. `environ` is for the command; `before` and `lines` are for the user, before and after it."""

    environ: Mapping[str, str]
    before: list[str] = field(default_factory=list)
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
        if ranks := _other_ranks():
            why = f"not limited: this is one of {ranks} ranks, and each would see the others' trials; use `tune_limits`"
        elif not wish.advise:
            hand = take([control.info.address for control in controls], owner=f"negawatt cap, {live.name}")
    except NegawattError as error:
        why = f"not limited: {error.reason}"
    if hand is None:
        yield from _advising(wish, live, controls, why)
    elif wish.limit is None:
        yield from _tuning(wish, live, hand)
    else:
        yield from _fixed(wish.limit, live, hand)


def _other_ranks() -> int:
    """How many ranks of a job were started beside this one, by what their starters tell; 0: none."""
    told = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE"))
    return max((int(text) for text in told if text.isdigit() and int(text) > 1), default=0)


def _tuning(wish: Wish, live: LiveRun, hand: Hand) -> Iterator[Capped]:
    try:
        objective = wish.fleet.admit() if wish.fleet else wish.objective
        limiting = Limiting(hand, objective, readings=lambda: live.readings, clock=time.monotonic, pace=wish.pace)
    except NegawattError:
        hand.release()
        raise  # nothing has been run yet
    with StepFeed(limiting.step, os.environ) as feed:
        done = Capped(feed.environ, [feed.fault] if feed.fault else [])
        under_way = replace(limiting.now, notes=(_UNDER_WAY,))
        live.tuned(under_way)
        try:
            yield done
        finally:
            tuned = limiting.close()
            if feed.fault or not feed.unit:
                tuned = replace(tuned, notes=(*tuned.notes, feed.fault or _NO_STEPS))
            live.tuned(tuned, under_way)
            told = _left(wish.fleet, tuned, live.time_s) if wish.fleet else []
    done.lines += [*lines(tuned, feed.unit), *told]


def _left(fleet: Member, tuned: Tuned, time_s: float) -> list[str]:
    """Tell the fleet what the job lost; how the fleet stands."""
    try:
        return [fleet.finish(tuned, time_s)]
    except NegawattError as error:
        return [f"the fleet was not told what this job lost, and counts what was set aside for it: {error.reason}"]


_UNDER_WAY = "the run ended while its limits were changed; they were put back by the watchdog or at the next start"
_NO_STEPS = (
    "no step was seen: PyTorch optimizers are counted by themselves (not under `python -I` or `-E`, nor in a container "
    'without negawatt); any other program appends a line {"work": 1} per step to the file named in $NEGAWATT_PROGRESS'
)


def _fixed(limit: float, live: LiveRun, hand: Hand) -> Iterator[Capped]:
    """A limit that the user gave, for each device."""
    done, devices = Capped(os.environ), Devices.of(hand)
    notes: list[str] = []
    limited = devices.found
    try:
        limited = devices.combined([hand.set(address, limit) or limit for address in hand.infos])
    except NegawattError as error:
        notes += [f"{limit:g} {devices.unit} could not be set: {error.reason}", *put_back(hand)]
        if isinstance(error, UsageError):
            raise  # nothing has been run yet
        done.before.append(notes[0])
    try:
        yield done
    finally:
        notes += put_back(hand)
        tuned = Tuned(
            knob=str(devices.knob),
            unit=devices.unit,
            scopes=devices.scopes,
            objective="a fixed limit",
            found=devices.found,
            fixed=limited,
            notes=tuple(notes),
        )
        live.tuned(tuned)
    done.lines += lines(tuned, "")


def _advising(wish: Wish, live: LiveRun, controls: tuple[Control, ...], why: str) -> Iterator[Capped]:
    """Run the command as it is; afterwards say what would pay."""
    done = Capped(os.environ, [why] if why else [], [why] if why else [])
    try:
        repair()  # else a limit that a killed job has left behind would pass for the one as found
        done.lines += [f"{one.scope} is held by {one.holder}: what is set now is not as found" for one in held()]
    except NegawattError as error:
        done.lines.append(error.reason)
    yield done
    if controls:
        try:
            done.lines += _advice(wish, live, controls)
        except NegawattError as error:
            done.lines.append(f"no advice: {error.reason}")


_SHORTEST_S = 2.0
"""Counters lag by 0.1 s, and power sensors average up to a second."""


def _advice(wish: Wish, live: LiveRun, controls: tuple[Control, ...]) -> list[str]:
    found = {control.info.address: control.read() for control in controls}
    devices = Devices([control.info for control in controls], found)
    if devices.knob is not Knob.POWER_LIMIT:
        return [f"no advice: what a {devices.knob} saves is not known beforehand; it takes the privilege to try"]
    if find_spec("numpy") is None:
        return ["no advice: it takes NumPy (`pip install numpy`)"]
    energy, time_s = devices.energy(live.readings), live.time_s
    if time_s < _SHORTEST_S:
        return [
            f"no advice: {time_s:.2g} s are too short to tell the draw; run the command for {_SHORTEST_S:g} s or more"
        ]
    if energy.own_j <= 0 or not energy.alone:
        return ["no advice: the draw of these devices alone is not metered"]
    told = advise(devices.limits, energy.own_j / time_s, wish.objective.with_rest(energy.rest_j / energy.own_j))
    draw = f"{energy.own_j / time_s:.3g} W drawn on average under {devices.found:g} W"
    if told.limit_w >= devices.found:
        return [f"advice ({wish.objective}): leave the {devices.knob} as it is; {draw}"]
    values = devices.values(told.limit_w / devices.found)
    return [
        f"advice ({wish.objective}): a {devices.knob} of {told.limit_w:.4g} W; {draw}",
        "  expected per step, from curves of other work (80 % range): energy of these devices "
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
    if len(tuned.scopes) > 1:
        told[0] += " together"
    if tuned.fixed is not None or tuned.holds:
        told[0] += f", held {tuned.held:.4g} {tuned.unit}"
    if tuned.probes:
        told[0] += f" after {len(tuned.probes)} window{'s' * (len(tuned.probes) > 1)}"
    if changes := tuned.changes:
        time_ratio, energy_ratio = changes
        told.append(
            f"  by this run's own windows: {_change(energy_ratio)} energy and {_change(time_ratio)} time per "
            f"{unit} (`negawatt plan` would prove it)"
        )
    if tuned.saved_j is not None:
        told.append(f"  {tuned.held_steps:g} steps under limits held, {tuned.saved_j:.4g} J less by the same windows")
    return [*told, *(f"  {note}" for note in tuned.notes)]
