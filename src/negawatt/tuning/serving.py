"""Serving: which setting of a service holds its latency promise at least energy, learnt from its own traffic.

Pure ask and tell: whoever runs the service sets the level that is to be in force, watches it for a window of about
a second, and tells what came of it. Level 0 is the safe one: what the operator would run without a controller.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from negawatt.core.errors import UsageError
from negawatt.tuning.arrivals import Arrivals, Foresight, surely
from negawatt.tuning.serving_levels import Known, Level

__all__ = ["Level", "Seen", "ServingController"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a window under one level gave.

    Attributes:
        level: that was in force from its beginning to its end, or was coming up.
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

    @property
    def late_fraction(self) -> float:
        """Of the finished."""
        return self.late / self.finished if self.finished else 0.0


_LATE = 0.01
"""What a 99th percentile allows."""
_SAVING = 0.02
"""A level is gone to if it is expected to draw so much less; smaller gains are not worth a change."""
_PATIENCE = 3
"""A level must have been right for so many windows before it is gone to."""
_DOUBT_S, _MOST_DOUBT_S = 10.0, 600.0
"""The safe level is held for so long after a doubt, twice as long after each further one."""
_UNMETERED_S = 60.0
"""So long without joules is a dead meter."""
_STALE_S = 30.0
"""What a longer window says of the load is out of date."""
_WAIT = 0.25
"""Part of the time to wake replicas for which fewer of them must have been right."""
_AHEAD_S = 3.0
"""Something that takes no time to come up must be enough for so long: until windows show that it is not."""
_DRAIN_S = 5.0
"""A safer level has at most so long to work off what a more frugal one left waiting; less under a short promise."""
_SLOW_CAUTION = 0.1
"""So much less often may a rise exceed what is kept awake if waking is slow: everything is late until it is awake."""
_CUT, _RAISE = 0.05, 0.001
"""After a late window within what a level takes, and after a good one near it, told capacities are believed so
much less or more: the operator may have thought of larger or smaller requests."""
_BUDGET_S = 300.0
"""The late answers that the promise allows in this time may come at once."""


@final
class ServingController:
    """Chooses levels: of those that are expected to keep the promise at the present load, the one of least power.

    Levels are in order of safety: a later one is meant to draw less and may take less. The ones with a capacity that
    was told may be gone to at once; any other one only from the one before it, when that has kept the promise under the
    present load, by one step at a time. Going to a safer level is immediate; going to a more frugal one waits until it
    has been right for a few windows, and never happens after a window in which more than 1 % was late.

    What it holds to: it never answers with a level out of range; after a window with more than 1 % late answers the
    level is the same or a safer one; late answers in excess of what the promise allows (1 % of all, of which those of
    five minutes may come at once) are answered with a safer level, and the level that gave them with a lower capacity
    and a pause that doubles each time; a doubt is answered with level 0. What it cannot promise: that no answer is late
    in the windows in which it learns that a level takes less than it was told, nor in a step of the load that is
    steeper than any it has seen, until the level that it chooses for it is in force.

    Replicas that take more than 3 s to wake are put to sleep only if the rest is enough for what came in that time
    after the like of now, and, until ten such cases were seen, for more than the most that was ever seen.

    Args:
        levels: the first is the safe one.
        p99_s: the promise: 99 of 100 requests end within it [s].

    Raises:
        UsageError: without levels, or without a positive promise.
    """

    def __init__(self, levels: Sequence[Level], *, p99_s: float) -> None:
        if not levels or not (0 < p99_s < math.inf):
            raise UsageError(
                f"{len(levels)} levels and a promise of {p99_s:g} s",
                "there is nothing to choose from, or nothing to hold it to",
                "give at least one level and a positive p99 in seconds",
            )
        self._known = [Known(level) for level in levels]
        self._p99_s = p99_s
        self._level = 0
        self._note = "the safe level, until there is traffic to learn from"
        self._arrivals = Arrivals(keep_s=p99_s)
        self._soon = Foresight(_AHEAD_S, slow=False)
        ups_s = sorted({level.up_s for level in levels if level.up_s > _AHEAD_S})
        self._later = Foresight(ups_s[-1], slow=True) if ups_s else None
        self._rights: deque[tuple[float, int]] = deque()  # times, and the level that would have been right
        self._since_s = 0.0  # when the level was chosen
        self._came_safer = True  # from a more frugal one
        self._settled_s = 0.0  # from then on windows speak of the level alone
        self._credit = 1.0  # late answers that the promise still allows
        self._caution_fraction = 0.05  # of cases like now in which the rate may rise beyond what is planned for
        self._trust = 1.0  # what the capacities that were told are to be multiplied by
        self._doubt_until_s = 0.0
        self._doubt_s = _DOUBT_S
        self._unmetered_s = 0.0
        self._strangers = 0  # windows in a row under another level than the one that was to be in force

    @property
    def level(self) -> int:
        """What is to be in force now."""
        return self._level

    @property
    def note(self) -> str:
        """Why, in one sentence for people."""
        return self._note

    def tell(self, seen: Seen) -> int:
        """Take in a window and return the level that is to be in force from now on."""
        if not (0 < seen.time_s < math.inf) or min(seen.arrived, seen.finished, seen.in_flight, seen.late) < 0:
            return self.doubt("a window that cannot be")
        if seen.time_s > _STALE_S:
            self._arrivals.forget()
        rate = self._arrivals.add(seen.arrived, seen.time_s)
        for foresight in (self._soon, self._later):
            if foresight is not None:
                foresight.add(self._now_s, rate)
        self._learn(seen, rate)
        if (reason := self._reason(seen)) is not None:
            return self.doubt(reason)
        if self._now_s < self._doubt_until_s:
            return self._level
        if seen.level == self._level and (worse := self._broken(seen, rate)) is not None:
            return worse
        return self._choose(rate, frugal=seen.late_fraction <= _LATE)

    def arrived(self, rate_per_s: float, *, over_s: float = 0.5) -> int:
        """A fresh look at the arrival rate between windows, so that a load step is met at once; the level from now on.

        Args:
            rate_per_s: over the last fraction of a second [1/s].
            over_s: that fraction [s].
        """
        sure = surely(rate_per_s, over_s) if 0 <= rate_per_s < math.inf and over_s > 0 else 0.0
        takes = self._takes(self._level)
        if self._level and sure > self._arrivals.rate_per_s and sure > takes and self._now_s >= self._doubt_until_s:
            level = max((i for i in range(self._level) if self._takes(i) >= sure), default=0)
            self._go(level, f"{sure:.3g} requests a second at least have come of a sudden")
        return self._level

    def doubt(self, reason: str) -> int:
        """Something is wrong (meter, upstream, a level that could not be set): the safe level, for a while."""
        if self._now_s > self._doubt_until_s + 4.0 * self._doubt_s:
            self._doubt_s = _DOUBT_S
        elif self._now_s >= self._doubt_until_s and self._doubt_until_s > 0:
            self._doubt_s = min(_MOST_DOUBT_S, 2.0 * self._doubt_s)
        self._doubt_until_s = self._now_s + self._doubt_s
        self._go(0, f"{reason}: the safe level for {self._doubt_s:.3g} s")
        return self._level

    @property
    def _now_s(self) -> float:
        return self._arrivals.time_s

    def _takes(self, level: int) -> float:
        """The highest rate that a level may be given: for level 0 any, for others at most what safer ones take."""
        most = math.inf
        for known in self._known[1 : level + 1]:
            takes = known.takes(self._now_s, self._trust)
            most = min(most, takes if takes is not None else 0.0)
        return most

    def _learn(self, seen: Seen, rate: float) -> None:
        """What a window says of its level."""
        self._strangers = 0 if seen.level == self._level else self._strangers + 1
        self._unmetered_s = self._unmetered_s + seen.time_s if seen.energy_j is None else 0.0
        allowed = max(2.0, _LATE * _BUDGET_S * rate)
        self._credit = min(allowed, self._credit + _LATE * seen.finished - seen.late)
        self._credit = max(self._credit, 0.0 if self._level == 0 else -allowed)  # the safe level can do no better
        if seen.late_fraction > _LATE:
            self._caution_fraction = max(0.002, 0.7 * self._caution_fraction)
        elif seen.finished:
            self._caution_fraction = min(0.1, self._caution_fraction * (1.0 + 0.02 * max(0.0, self._credit / allowed)))
        if seen.level != self._level or self._now_s - seen.time_s < self._settled_s - 1e-9:
            return
        known = self._known[seen.level]
        takes = known.takes(self._now_s, self._trust)
        if seen.late_fraction > _LATE:
            if takes and rate <= takes:
                self._trust = max(0.1, self._trust * (1.0 - _CUT))
        elif takes and rate > 0.6 * takes and self._credit > 0 and seen.finished:
            self._trust = min(10.0, self._trust * (1.0 + _RAISE))
        if seen.energy_j is not None and 0 < seen.energy_j < math.inf:
            known.drew(seen.arrived / seen.time_s, seen.energy_j / seen.time_s)
        if seen.finished and seen.late_fraction <= _LATE:
            for safer in self._known[: seen.level + 1]:  # what a level keeps, safer ones would have kept
                safer.kept(rate, seen.time_s if safer is known else 0.0)

    def _reason(self, seen: Seen) -> str | None:
        """What is wrong with the service, if anything is."""
        if seen.failed > _LATE * seen.finished:
            return f"{seen.failed} of {seen.finished} requests failed"
        if seen.energy_j is not None and not (0 < seen.energy_j < math.inf):
            return f"the meter says {seen.energy_j:g} J"
        if self._unmetered_s > _UNMETERED_S:
            return f"the meter has said nothing for {self._unmetered_s:.0f} s"
        if seen.time_s > _STALE_S:
            return f"a window of {seen.time_s:.0f} s is out of date"
        if self._strangers > 3:
            return f"level {seen.level} is in force instead of {self._level}"
        return None

    def _strike(self, rate: float) -> None:
        """The level in force broke the promise; unless more came than it was chosen for, it is to blame."""
        takes = self._known[self._level].takes(self._now_s, self._trust)
        if self._level and (takes is None or rate <= takes):
            self._known[self._level].broke(rate, self._now_s)

    def _broken(self, seen: Seen, rate: float) -> int | None:
        """A safer level if this one broke the promise."""
        due = self._arrivals.within(self._p99_s)  # what came before that and is still under way is late already
        if self._level and seen.in_flight > due + _LATE * due + 3.0:
            self._strike(rate)
            self._go(0, f"{seen.in_flight} requests are under way, {due:.3g} of which can still keep the promise")
            return 0
        over = seen.late - _LATE * seen.finished
        fresh = self._now_s - seen.time_s < self._settled_s - 1e-9
        if self._level == 0 or over <= 0 or (fresh and self._came_safer):
            return None
        clear = seen.late >= 3 and seen.late > 5.0 * _LATE * seen.finished
        if not clear and self._credit >= 0:
            return None
        self._strike(rate)
        self._credit = max(self._credit, 0.0)
        reason = f"{seen.late} of {seen.finished} answers were late at {rate:.3g} a second"
        if seen.late > 0.5 * seen.finished and not fresh:
            self._go(0, reason)
            return 0
        soon = max(1.25 * rate, self._soon.upper(rate, 1.0 - self._caution_fraction))
        self._go(max((i for i in range(self._level) if self._takes(i) >= soon), default=0), reason)
        return self._level

    def _choose(self, rate: float, *, frugal: bool) -> int:
        """The level of least expected power among those that are enough; a more frugal one after some patience."""
        soon = self._soon.upper(rate, 1.0 - self._caution_fraction)
        later = self._later.upper(rate, 1.0 - _SLOW_CAUTION * self._caution_fraction) if self._later else soon
        enough = self._enough(soon, later)
        powers = {i: self._power_w(i, rate) for i in {*enough, self._level}}
        least = 1.0 if self._level not in enough else 1.0 - _SAVING
        here_w = powers[self._level] * least
        best = min(enough, key=lambda i: (powers[i] if i != self._level else here_w, i))
        if self._level not in enough and best > self._level:
            best = max((i for i in enough if i < self._level), key=lambda i: (-powers[i], i), default=0)
        self._rights.append((self._now_s, best))
        if best < self._level:
            self._go(best, f"{self._known[best].level.name} for {rate:.3g} requests a second, up to {soon:.3g} soon")
        elif frugal and best > self._level and (patient := self._patient(enough, powers)) > self._level:
            saved = 1.0 - powers[patient] / powers[self._level] if powers[self._level] else 0.0
            self._go(patient, f"{self._known[patient].level.name} is expected to draw {saved:.0%} less")
        elif not frugal:
            self._rights.clear()
        return self._level

    def _enough(self, soon: float, later: float) -> list[int]:
        """Levels that are enough now, and without waking more for as long as that takes; always the safe one."""
        enough, most = [0], math.inf
        reach = {self._known[0].level.awake: math.inf}  # the most that is to be had without waking more
        for i, known in enumerate(self._known[1:], start=1):
            takes = known.takes(self._now_s, self._trust)
            if takes is None or (known.learning and takes < soon):
                if self._may_try(i, soon, most):
                    enough.append(i)
                break
            most = min(most, takes)
            awake = known.level.awake
            reach.setdefault(awake, most)
            if most >= soon and max(r for a, r in reach.items() if a <= awake) >= later:
                enough.append(i)
        return enough

    def _may_try(self, level: int, soon: float, most: float) -> bool:
        """Whether a level that nothing is known of may be tried: from the one before it, with a load that this kept."""
        before = self._known[level - 1]
        steady = self._now_s >= self._settled_s + _PATIENCE and before.metered_fraction > 0
        return (
            self._level == level - 1
            and steady
            and most >= soon
            and before.kept_per_s >= 0.8 * self._arrivals.rate_per_s > 0
        )

    def _patient(self, enough: list[int], powers: dict[int, float]) -> int:
        """The safest of the levels that were right lately; fewer replicas must have been right for longer."""
        if len(self._rights) < _PATIENCE:
            return self._level
        rights = list(self._rights)
        here = self._known[self._level].level
        target = min(level for _, level in rights[-_PATIENCE:])
        same = [i for i in enough if self._known[i].level.awake >= here.awake]
        if (wait_s := _WAIT * here.up_s) > 0:
            lately = min(level for time_s, level in rights if self._now_s - time_s <= wait_s)
            if self._now_s - self._since_s >= wait_s:
                target = min(target, lately)
            else:
                enough = same
        return min((i for i in enough if self._level < i <= target), key=lambda i: (powers[i], i), default=self._level)

    def _power_w(self, level: int, rate: float) -> float:
        """Expected power; of a level that was metered for few windows, by its effort beside a safer one as well."""
        known = self._known[level]
        share = known.metered_fraction
        base = next((i for i in range(level - 1, -1, -1) if self._known[i].metered_fraction > 0), None)
        if share == 1.0 or (base is None and share > 0):
            return known.power_w(rate)
        if base is None:
            return known.level.effort
        guess_w = known.level.effort / self._known[base].level.effort * self._power_w(base, rate)
        return share * known.power_w(rate) + (1.0 - share) * guess_w

    def _go(self, level: int, note: str) -> None:
        """Change to a level, if it is another one."""
        self._note = note
        if level == self._level:
            return
        old, new = (self._known[i].level for i in (self._level, level))
        up_s = new.up_s if new.awake > old.awake else 0.0
        self._came_safer = level < self._level
        self._level, self._since_s = level, self._now_s
        self._settled_s = self._now_s + up_s + (min(self._p99_s + 2.0, _DRAIN_S) if self._came_safer else 0.0)
        self._rights.clear()
