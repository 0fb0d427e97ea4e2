"""Serving: which setting of a service holds its latency promise at least energy, learnt from its own traffic.

Pure ask and tell: whoever runs the service sets the level that `ask` gives, watches it for a window, and tells what
came of it. Level 0 is the safe one: the setting that the operator would run without a controller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A setting that the controller may choose, with what is known of it beforehand.

    Attributes:
        name: for notes.
        capacity_per_s: requests that it can answer within the promise [1/s]; None: to be learnt.
        idle_w: power without load [W]; None: to be learnt.
        energy_per_request_j: joules of each request beyond that [J]; None: to be learnt.
        effort: how much it is expected to draw beside the other levels, in any unit: what is tried first.
    """

    name: str
    capacity_per_s: float | None = None
    idle_w: float | None = None
    energy_per_request_j: float | None = None
    effort: float = 1.0  # in any unit, the same for all levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a window under one level gave.

    Attributes:
        level: that was in force from its beginning to its end.
        time_s: length [s].
        arrived: requests that arrived.
        finished: requests that ended.
        in_flight: requests that were under way at its end.
        late: how many of the finished took longer than the promise.
        p99_s: 99th percentile of the time of those that finished [s]; None: none did.
        energy_j: of the window [J]; None: not known yet.
        failed: how many of the finished failed.
    """

    level: int
    time_s: float
    arrived: int
    finished: int
    in_flight: int
    late: int
    p99_s: float | None
    energy_j: float | None
    failed: int = 0


@final
class ServingController:
    """Chooses levels.

    Args:
        levels: the first is the safe one.
        p99_s: the promise: 99 of 100 requests end within it [s].
    """

    def __init__(self, levels: Sequence[Level], *, p99_s: float) -> None:
        raise NotImplementedError

    @property
    def level(self) -> int:
        """What is to be in force now."""
        raise NotImplementedError

    @property
    def note(self) -> str:
        """Why, in one sentence for people."""
        raise NotImplementedError

    def tell(self, seen: Seen) -> int:
        """Take in a window and return the level that is to be in force from now on."""
        raise NotImplementedError

    def arrived(self, rate_per_s: float) -> int:
        """A fresh look at the arrival rate between windows, so that a load step is met at once; the level from now on.

        Args:
            rate_per_s: over the last fraction of a second [1/s].
        """
        raise NotImplementedError

    def doubt(self, reason: str) -> int:
        """Something is wrong (meter, upstream, a level that could not be set): the safe level, for a while."""
        raise NotImplementedError
