"""OnlineTuner: finds the best limit of a device while the job goes on, from marks at step boundaries. No I/O.

It begins with the limit as found, asks its search which limit to try next, gives each a window of steps, holds the
best, and watches: work that becomes another kind of work is tuned anew.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from negawatt.core.tuned import Hold, ProbeResult
from negawatt.tuning.drift import Drift
from negawatt.tuning.limits import LimitSearch, Probed
from negawatt.tuning.objective import Objective
from negawatt.tuning.windows import Mark, Mean, Part, mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long things take.

    Attributes:
        warmup_steps, warmup_s: of the job, before anything is measured (compilation, caches, autotuning).
        settle_steps, settle_s: after a limit was changed: counters lag by 0.1 s, control of power by less than 1 s.
        part_s: a window is measured in parts of about this length [s].
        parts, most_parts: a window has at least and at most so many.
        precision_fraction: it ends earlier than at `most_parts` if time and energy per step are known to this.
        ceiling_fraction: a window ends after two parts if its steps are longer than the bound allows by more than this.
        hold_part_s: length of the parts that are watched for drift [s].
        rest_s: after this long at the soonest it is tuned anew; twice as long after each time [s].
    """

    warmup_steps: float = 5.0  # counted
    warmup_s: float = 5.0
    settle_steps: float = 2.0  # counted
    settle_s: float = 1.0
    part_s: float = 1.0
    parts: int = 5
    most_parts: int = 20
    precision_fraction: float = 0.01
    ceiling_fraction: float = 0.25
    hold_part_s: float = 10.0
    rest_s: float = 120.0


_MOST_VOID = 10
"""So many parts in a row that say nothing are a dead meter."""


class _Phase(Enum):
    WARMUP = auto()
    SETTLE = auto()
    MEASURE = auto()
    HOLD = auto()
    OVER = auto()


class OnlineTuner:
    """Call `mark` whenever the job's steps have reached `next_step`, and set the limit that it returns.

    Args:
        search: makes a search for an objective in the devices' energy; its first question is the limit as found.
        objective: what is wanted.
        found: the limit as found.
        pace: how long things take.
    """

    def __init__(
        self,
        search: Callable[[Objective], LimitSearch],
        objective: Objective,
        found: float,
        pace: Pace | None = None,
    ) -> None:
        self._make_search = search
        self._search: LimitSearch | None = None  # made when the devices' own part of the power is known
        self._objective = objective
        self._pace = pace or Pace()
        self._phase = _Phase.WARMUP
        self._limit = self._found = found
        self._base: Mean | None = None
        self._begun: Mark | None = None  # of the phase
        self._last: Mark | None = None
        self._parts: list[Part] = []
        self._drifts: tuple[Drift, Drift] | None = None
        self._now: dict[float, Mean] = {}  # the latest window of every limit since the last drift
        self._results: dict[float, ProbeResult] = {}  # the same, with the rest of the host
        self._struck: set[float] = set()
        self._held_since: Mark | None = None
        self._judged = False  # whether what is held was looked at again
        self._step_s = 0.0  # as seen last
        self._void = 0  # parts in a row that said nothing
        self._next_step = self._pace.warmup_steps
        self.probes: list[ProbeResult] = []
        self.notes: list[str] = []
        self.holds: list[Hold] = []
        self.retuned = 0

    @property
    def next_step(self) -> float:
        """How many steps the job has done when the next mark is wanted; infinite if none is."""
        return math.inf if self._phase is _Phase.OVER else self._next_step

    @property
    def limit(self) -> float:
        """What is to be set now."""
        return self._limit

    @property
    def holding(self) -> bool:
        """Whether a choice was made and is held."""
        return self._phase is _Phase.HOLD

    def mark(self, mark: Mark) -> float | None:
        """Take how the job stands; the limit to set now, or None: leave it.

        A mark that is not later than the one before, in time, steps and joules, makes its part void.
        """
        if self._phase is _Phase.WARMUP:
            self._last = mark
            return self._ask(mark) if self._waited(mark, self._pace.warmup_steps, self._pace.warmup_s) else None
        if self._phase is _Phase.SETTLE:
            self._last = mark
            if self._waited(mark, self._pace.settle_steps, self._pace.settle_s):
                self._enter(_Phase.MEASURE if self._held_since is None else _Phase.HOLD, mark)
            return None
        if self._phase is _Phase.OVER:
            return None
        part = Part.between(self._last, mark) if self._last else None
        if part is None:
            return self._nothing(mark)
        self._last, self._void, self._step_s = mark, 0, part.time_s / part.steps
        self._plan_part(mark)
        return self._measured(mark, part) if self._phase is _Phase.MEASURE else self._watched(mark, part)

    def refused(self, reason: str) -> float:
        """The limit could not be set, or the meter or the device failed: end the tuning; the limit to go back to."""
        self.end()
        self._note(reason)
        self._phase, self._limit = _Phase.OVER, self._found
        return self._found

    def end(self) -> None:
        """The job is over, or the tuning is: count the steps under the limit that is held. Idempotent."""
        own, base = self._results.get(self._limit), self._results.get(self._found)
        if self._held_since is not None and self._last is not None and own and base:
            steps = max(0.0, self._last.steps - self._held_since.steps)
            self.holds.append(Hold(steps=steps, base=base, own=own))
        self._held_since = None

    def _nothing(self, mark: Mark) -> float | None:
        """A part that says nothing: a counter that was not brought up to date yet, or something that went backwards."""
        last, self._void = self._last, self._void + 1
        if self._void > _MOST_VOID:
            return self.refused(f"the meter gave nothing for {_MOST_VOID} parts of a window in a row")
        if last is not None and (mark.time_s < last.time_s or mark.energy_j < last.energy_j or mark.steps < last.steps):
            self._note("a clock or counter went backwards; that part does not count")
        if last is None or mark.time_s <= last.time_s or mark.energy_j != last.energy_j:
            self._last = mark if math.isfinite(mark.time_s + mark.energy_j + mark.steps) else last
        self._plan_part(mark)
        return None

    def _waited(self, mark: Mark, steps: float, time_s: float) -> bool:
        """Whether this phase has lasted so long; else the next mark is wanted when it may have."""
        if self._begun is None:
            self._begun = mark
        done, passed_s = mark.steps - self._begun.steps, mark.time_s - self._begun.time_s
        if done > 0 and passed_s > 0:
            self._step_s = passed_s / done
        missing = max(steps - done, math.ceil((time_s - passed_s) / self._step_s) if self._step_s else 1.0)
        self._next_step = mark.steps + max(1.0, missing)
        return done >= steps and passed_s >= time_s

    def _note(self, text: str) -> None:
        if not self.notes or self.notes[-1] != text:
            self.notes.append(text)

    def _plan_part(self, mark: Mark) -> None:
        part_s = self._pace.hold_part_s if self._judged else self._pace.part_s
        self._next_step = mark.steps + (max(1.0, math.ceil(part_s / self._step_s)) if self._step_s else 1.0)

    def _enter(self, phase: _Phase, mark: Mark) -> None:
        self._phase, self._begun, self._parts, self._last = phase, mark, [], mark
        if phase is _Phase.SETTLE:
            self._next_step = mark.steps + max(1.0, self._pace.settle_steps)
        else:
            self._plan_part(mark)

    def _ask(self, mark: Mark) -> float | None:
        """Go to the limit that the search wants next, or hold the best."""
        if self._search is None:
            return self._switch(self._found, mark)
        wanted = self._search.ask()
        if wanted is None:
            return self._hold(self._best(self._search), mark)
        return self._switch(wanted, mark)

    def _switch(self, limit: float, mark: Mark) -> float | None:
        changed, self._limit = limit != self._limit, limit
        self._enter(_Phase.SETTLE, mark)
        return limit if changed else None

    def _hold(self, limit: float, mark: Mark) -> float | None:
        self._held_since, self._drifts, self._judged = mark, None, False
        return self._switch(limit, mark)

    def _best(self, search: LimitSearch) -> float:
        """The best limit measured that was not struck out since."""
        if not self._struck:
            return search.best
        base = self._now[self._found]
        objective = self._in_devices(base)
        costs = {
            limit: objective.cost(window.time_s / base.time_s, window.energy_j / base.energy_j)
            for limit, window in self._now.items()
            if limit not in self._struck
        }
        return min(costs, key=lambda limit: (costs[limit], -limit))

    def _in_devices(self, base: Mean) -> Objective:
        return self._objective.with_rest(base.rest_w * base.time_s / base.energy_j)

    def _measured(self, mark: Mark, part: Part) -> float | None:
        """One more part of a probe."""
        self._parts.append(part)
        window = mean(self._parts)
        if not self._complete(window):
            return None
        self._base = self._base or window
        self._keep(window)
        self._search = self._search or self._make_search(self._in_devices(self._base))
        self._search.tell(Probed(limit=self._limit, time_s=window.time_s, energy_j=window.energy_j))
        return self._ask(mark)

    def _complete(self, window: Mean) -> bool:
        if self._base is not None and self._objective.max_slowdown_fraction is not None and window.parts >= 2:
            ceiling = 1.0 + self._objective.max_slowdown_fraction + self._pace.ceiling_fraction
            if window.time_s > ceiling * self._base.time_s:
                return True
        if len(self._parts) >= self._pace.most_parts:
            return True
        return window.parts >= self._pace.parts and window.precise(self._pace.precision_fraction)

    def _keep(self, window: Mean) -> None:
        assert self._base is not None  # noqa: S101 -- narrows the type; set before the first probe is kept
        rest_j, rest_sd_j = (self._base.rest_w * t for t in (window.time_s, window.time_sd_s))
        self._now[self._limit] = window
        result = ProbeResult(
            limit=self._limit,
            steps=window.steps,
            time_s=window.time_s,
            time_sd_s=window.time_sd_s,
            energy_j=window.energy_j + rest_j,
            energy_sd_j=math.hypot(window.energy_sd_j, rest_sd_j),
        )
        self._results[self._limit] = result
        self.probes.append(result)

    def _watched(self, mark: Mark, part: Part) -> float | None:
        """One more part of a choice that is held: judge the choice once more, then look for drift."""
        if self._drifts is not None:
            return self._drifted(mark, part)
        self._parts.append(part)
        if not self._judged:
            window = mean(self._parts)
            if not self._complete(window):
                return None
            self._keep(window)
            if (better := self._overruled()) is not None:
                self.end()
                return self._hold(better, mark)
            self._judged = True
            self._enter(_Phase.HOLD, mark)
        elif len(self._parts) == self._pace.parts:
            self._drifts = _drift([p.time_s / p.steps for p in self._parts]), _drift([p.power_w for p in self._parts])
        return None

    def _drifted(self, mark: Mark, part: Part) -> float | None:
        """Look for drift in one more part; if there is, and it is time, begin anew with the limit as found."""
        assert self._drifts is not None  # noqa: S101 -- narrows the type
        assert self._begun is not None  # noqa: S101 -- the same
        slower, hungrier = (
            d.add(v) for d, v in zip(self._drifts, (part.time_s / part.steps, part.power_w), strict=True)
        )
        rested = mark.time_s - self._begun.time_s >= self._pace.rest_s * 2**self.retuned
        if not (rested and (slower or hungrier)):
            return None
        self._note(f"{'step time' if slower else 'power'} has changed for good by step {mark.steps:g}: tuned anew")
        self.end()
        self.retuned += 1
        self._base, self._now, self._results, self._struck, self._judged = None, {}, {}, set(), False
        self._search = None
        return self._ask(mark)

    def _overruled(self) -> float | None:
        """A better choice than the one held, if a fresh window shows that this one clearly breaks the bound."""
        held, base = self._now[self._limit], self._now.get(self._found)
        if base is None or self._limit == self._found:
            return None
        ratio = held.time_s / base.time_s
        sd = ratio * math.hypot(held.time_sd_s / held.time_s, base.time_sd_s / base.time_s)
        if self._objective.allows(ratio - 2.0 * sd):
            return None
        self._note(f"{self._limit:g} was {ratio - 1:.1%} slower when looked at again, beyond the bound: given up")
        self._struck.add(self._limit)
        return self._best(self._search) if self._search else self._found


def _drift(values: list[float]) -> Drift:
    """What follows is held against these."""
    return Drift(statistics.median(values), statistics.stdev(values) / statistics.fmean(values))
