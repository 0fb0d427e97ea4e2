"""Levels: which settings of a gateway its controller may choose from, the safe one first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from negawatt.core.errors import UsageError
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.tuning.serving import Level

MOST = 12
"""More levels would take too long to learn."""
_BATCHES = ((0.02, 8, 0.9), (0.05, 32, 0.8))
"""Part of the promise that requests wait for others, how many go together, and a guess of what that leaves to draw."""
MOST_WAIT = 0.5
"""A window beyond this part of the promise would break it by itself."""
_LIMITS = (1.0, 0.5, 0.0)
"""Parts of the range of the power limit."""
_IDLE = 0.3
"""A guess: what a replica that is awake draws without work, as part of what it draws at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A level, and the setting that it stands for."""

    level: Level
    setting: ServingSetting


def rungs(options: ServingOptions, *, lowest_fraction: float | None = None, up_s: float = 0.0) -> tuple[Rung, ...]:
    """At most 12 levels, each expected to draw less than the one before it, and to take no more.

    First come wider batching windows (at most 5 % of the promise, unless the safe setting's is wider), then fewer
    replicas and lower power limits in an order that is a guess: power grows with the cube of the clock, speed with the
    clock, and a replica draws 30 % of its power without work. What draws more and takes less than another, by this
    guess, is left out. The guess says only what is tried first: what a level takes and draws is learnt.

    Args:
        options: of the gateway; its setting is the safe one.
        lowest_fraction: lowest power limit of the devices, as part of the one found; None: it cannot be turned.
        up_s: time until a replica that was woken can serve [s].

    Raises:
        UsageError: without a promise, or if the safe setting cannot keep it.
    """
    promise_s, safe = options.p99_s, options.setting
    if promise_s is None or promise_s <= 0:
        raise UsageError(
            f"control with a p99 of {promise_s}",
            "settings that save energy make answers later, and nothing says how late they may be",
            "give a promise, e.g. --p99 200ms",
        )
    if safe.window_s > MOST_WAIT * promise_s:
        raise UsageError(
            f"a batching window of {safe.window_s:g} s under a p99 of {promise_s:g} s",
            "waiting for others would take most of the time that an answer may take",
            f"give a window of at most {MOST_WAIT * promise_s:g} s",
        )
    most = len(options.upstreams) or 1
    awake = min(safe.replicas or most, most)
    found = [Rung(level=Level(name="safe", effort=_draw(awake, 1.0), awake=awake, up_s=up_s), setting=safe)]
    setting, thrift = safe, 1.0
    for part, batch, thrift_ in _BATCHES:
        wider = replace(safe, window_s=max(safe.window_s, part * promise_s), max_batch=max(safe.max_batch, batch))
        if wider != setting:
            setting, thrift = wider, thrift_
            found.append(_rung(setting, thrift * _draw(awake, 1.0), awake, up_s))
    limits = [safe.limit_fraction * limit for limit in (_LIMITS if lowest_fraction is not None else _LIMITS[:1])]
    guesses = []
    for number in range(awake, 0, -1):
        for limit in dict.fromkeys(limits):
            low = 1.0 if lowest_fraction is None else lowest_fraction
            power = low + (1.0 - low) * limit
            rung = _rung(
                replace(setting, replicas=number if number < most else safe.replicas, limit_fraction=limit),
                thrift * _draw(number, power),
                number,
                up_s,
            )
            guesses.append((number * power ** (1 / 3), rung))
    last = found[-1].level.effort
    frugal = []
    for _, rung in sorted(guesses, key=lambda guess: (-guess[0], guess[1].level.effort)):
        if rung.level.effort < last:
            frugal.append(rung)
            last = rung.level.effort
    room = MOST - len(found)
    if len(frugal) > room:
        frugal = [frugal[round(i * (len(frugal) - 1) / (room - 1))] for i in range(room)]
    return (*found, *frugal)


def _draw(awake: int, power: float) -> float:
    """A guess of what some replicas draw, in that of one without a limit."""
    return awake * (_IDLE + (1.0 - _IDLE) * power)


def _rung(setting: ServingSetting, effort: float, awake: int, up_s: float) -> Rung:
    parts = []
    if setting.max_batch > 1:
        parts.append(f"up to {setting.max_batch} together within {setting.window_s:.3g} s")
    parts.append(f"{awake} replica{'s' * (awake != 1)}")
    if setting.limit_fraction < 1.0:
        parts.append(f"power limit at {setting.limit_fraction:.0%} of its range")
    return Rung(level=Level(name=", ".join(parts), effort=effort, awake=awake, up_s=up_s), setting=setting)
