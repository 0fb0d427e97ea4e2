"""Rungs: which settings of a gateway its controller may choose from, the safe one first."""

from __future__ import annotations

import math
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
    fan = _Fan(safe=safe, most=most, lowest=1.0 if lowest_fraction is None else lowest_fraction, up_s=up_s)
    first = fan.rung(safe, awake)
    found = [Rung(level=replace(first.level, name="safe"), setting=safe)]
    setting, thrift = safe, 1.0
    for part, batch, left in _BATCHES:
        wider = replace(safe, window_s=max(safe.window_s, part * promise_s), max_batch=max(safe.max_batch, batch))
        if wider != setting:
            setting, thrift = wider, left
            found.append(fan.rung(setting, awake, thrift))
    limits = [safe.limit_fraction * limit for limit in (_LIMITS if fan.lowest < 1.0 else _LIMITS[:1])]
    guesses = [
        (fan.speed(number, limit), fan.rung(replace(setting, limit_fraction=limit), number, thrift))
        for number in range(awake, 0, -1)
        for limit in limits
    ]
    frugal: list[Rung] = []
    for _, rung in sorted(guesses, key=lambda guess: (-guess[0], guess[1].level.effort)):
        if rung.level.effort < (frugal or found)[-1].level.effort:
            frugal.append(rung)
    room = MOST - len(found)
    if len(frugal) > room:
        frugal = [frugal[round(i * (len(frugal) - 1) / (room - 1))] for i in range(room)]
    return (*found, *frugal)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fan:
    """Makes rungs, and guesses what they draw and take: in what one replica without a limit does."""

    safe: ServingSetting
    most: int  # replicas
    lowest: float  # power limit, as part of the one found
    up_s: float

    def power(self, limit: float) -> float:
        """The power limit that a part of its range stands for, as part of the one found."""
        return self.lowest + (1.0 - self.lowest) * limit

    def speed(self, awake: int, limit: float) -> float:
        return awake * math.cbrt(self.power(limit))

    def rung(self, setting: ServingSetting, awake: int, thrift: float = 1.0) -> Rung:
        power = self.power(setting.limit_fraction)
        setting = replace(setting, replicas=awake if awake < self.most else self.safe.replicas)
        parts = [f"{awake} replica{'s' * (awake != 1)}"]
        if setting.max_batch > 1:
            parts.append(f"up to {setting.max_batch} together within {setting.window_s * 1e3:.3g} ms")
        if power < 1.0:
            parts.append(f"power limit at {setting.limit_fraction:.0%} of its range")
        level = Level(
            name=", ".join(parts),
            effort=thrift * awake * (_IDLE + (1.0 - _IDLE) * power),
            awake=awake,
            up_s=self.up_s,
        )
        return Rung(level=level, setting=setting)
