"""Limiting: tune a limit of a job's devices while it goes on, from its step boundaries.

Whatever fails, the job goes on, and the devices are put back as found.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import final

from negawatt.core.errors import NegawattError
from negawatt.core.reading import Reading
from negawatt.core.tuned import Tuned
from negawatt.hardware.control import Knob
from negawatt.hardware.hand import Hand
from negawatt.levers.devices import Devices
from negawatt.tuning.limits import LimitSearch
from negawatt.tuning.objective import Objective
from negawatt.tuning.online import OnlineTuner, Pace
from negawatt.tuning.plain import plain_search
from negawatt.tuning.windows import Mark

Numbers = tuple[float, ...]


def alone(numbers: Numbers) -> list[Numbers]:
    """The numbers of all ranks of a job that has one."""
    return [numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """The processes of a data-parallel job, as one of them sees them. By default there is only this one.

    Attributes:
        rank: this one's.
        on_host: how many there are on this host: together they stand for what of it is no GPU.
        share: from this rank's numbers to those of all, in the order of the ranks; all ranks call it at the same steps.
    """

    rank: int = 0
    on_host: int = 1
    share: Callable[[Numbers], list[Numbers]] = alone


@final
class Limiting:
    """Call `step` at every step boundary, with the steps done since the beginning.

    Ranks of a data-parallel job follow one decision: at marks, which all reach at the same step, they share their
    numbers; the first rank decides for all, and each sets its own devices.

    Args:
        hand: holds the controls; released by `close`.
        objective: what is wanted.
        readings: the meter's, since the beginning; raises NegawattError when a sensor fails.
        clock: monotonic seconds.
        ranks: of the job.
        pace: how long things take.
    """

    def __init__(
        self,
        hand: Hand,
        objective: Objective,
        *,
        readings: Callable[[], Sequence[Reading]],
        clock: Callable[[], float],
        ranks: Ranks | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._hand = hand
        self._devices = Devices.held(hand)
        self._objective = objective
        self._readings = readings
        self._clock = clock
        self._ranks = ranks or Ranks()
        self._begun_s = clock()
        self._lock = threading.Lock()
        self._tuned: Tuned | None = None
        self._limits = self._devices.limits
        self._tuner = OnlineTuner(self._search, objective, self._limits[0], pace)
        self._limit = self._limits[0]
        self._next_step = self._tuner.next_step

    def step(self, steps: float) -> None:
        """The job has done so many steps. Cheap but for a few marks; raises nothing of the tuning's own trouble."""
        if steps < self._next_step:
            return
        with self._lock:
            if self._tuned is None and steps >= self._next_step:
                self._mark(steps)

    def close(self) -> Tuned:
        """Put everything back as found; what was tuned. Idempotent."""
        with self._lock:
            if self._tuned is None:
                self._tuner.end()
                if not self._tuner.probes and self._ranks.rank == 0:
                    self._tuner.notes.append("it ended before a window was measured: nothing was tuned")
                self._release()
                self._tuned = self._result()
            return self._tuned

    def _search(self, objective: Objective) -> LimitSearch:
        if self._devices.knob is not Knob.POWER_LIMIT:
            return plain_search(self._limits, objective)
        if find_spec("numpy") is None:
            self._tuner.notes.append("searched without the learnt prior, which takes NumPy: `pip install numpy`")
            return plain_search(self._limits, objective)
        from negawatt.tuning.curves import CurvePrior

        return CurvePrior(self._limits, objective)

    def _mark(self, steps: float) -> None:
        try:
            numbers = self._numbers()
        except NegawattError as error:
            numbers, failure = (), error.got
        else:
            failure = ""
        every = self._ranks.share(numbers)
        if not all(every):
            self._give_up(f"the meter failed ({failure or 'on another rank'}): put back as found")
            return
        mine = self._decide(steps, every) if self._ranks.rank == 0 else (0.0, 0.0)
        limit, self._next_step = self._ranks.share(mine)[0]
        if limit != self._limit:
            self._set(limit, len(every))

    def _decide(self, steps: float, every: list[Numbers]) -> Numbers:
        """The limit to hold from now on, and when to look again."""
        # Means over the ranks: what one rank's devices draw under one rank's limit.
        time_s, own_j, rest_j, variance_j2 = (math.fsum(column) / len(every) for column in zip(*every, strict=True))
        sd_j = math.sqrt(variance_j2 / len(every))
        self._tuner.mark(Mark(steps=steps, time_s=time_s, energy_j=own_j, rest_j=rest_j, energy_sd_j=sd_j))
        return self._tuner.limit, self._tuner.next_step

    def _set(self, limit: float, ranks: int) -> None:
        self._limit, failure = limit, ""
        try:
            for address, value in self._devices.values(limit).items():
                self._hand.set(address, value)
        except NegawattError as error:
            failure = f"{limit:g} {self._devices.unit} could not be set ({error.got}): put back as found"
        failed = (
            sum(told[0] for told in self._ranks.share((float(bool(failure)),))) if ranks > 1 else float(bool(failure))
        )
        if failed:
            self._give_up(failure or f"{limit:g} {self._devices.unit} could not be set on {failed:g} other ranks")

    def _numbers(self) -> Numbers:
        own_j, rest_j, sd_j = self._devices.energy_j(self._readings())
        return self._clock() - self._begun_s, own_j, rest_j / self._ranks.on_host, sd_j**2

    def _give_up(self, reason: str) -> None:
        self._limit, self._next_step = self._tuner.refused(reason), math.inf
        self._release()

    def _release(self) -> None:
        try:
            self._hand.release()
        except NegawattError as error:
            self._tuner.notes.append(f"not put back: {error.got}; {error.fix}")

    def _result(self) -> Tuned:
        return Tuned(
            knob=str(self._devices.knob),
            unit=self._devices.unit,
            scopes=self._devices.scopes,
            objective=str(self._objective),
            found=self._devices.found,
            held=self._limit,
            probes=tuple(self._tuner.probes),
            held_steps=self._tuner.held_steps,
            retuned=self._tuner.retuned,
            notes=tuple(self._tuner.notes),
        )
