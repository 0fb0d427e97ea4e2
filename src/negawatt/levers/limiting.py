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

from negawatt.core.errors import NegawattError, SensorError
from negawatt.core.reading import Reading
from negawatt.core.tuned import Tuned
from negawatt.hardware.control import Knob
from negawatt.hardware.hand import Hand, put_back
from negawatt.levers.devices import Devices
from negawatt.tuning.limits import LimitSearch
from negawatt.tuning.objective import Objective
from negawatt.tuning.online import OnlineTuner, Pace
from negawatt.tuning.plain import plain_search
from negawatt.tuning.windows import Mark

Numbers = tuple[float, ...]

RENEW_S = 10.0
"""A limit that is held is set again after this long [s]: the hand of a job that was stopped is taken away."""


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
        self._devices = Devices.of(hand)
        self._objective = objective
        self._readings = readings
        self._clock = clock
        self._ranks = ranks or Ranks()
        self._begun_s = clock()
        self._lock = threading.Lock()
        self._tuned: Tuned | None = None
        self._alone = True
        self._limits = self._devices.limits
        self._tuner = OnlineTuner(self._search, objective, self._limits[0], pace)
        self.steps = 0.0
        """That the job has done."""
        self._fraction = 1.0
        self._set_s = self._begun_s
        self._next_step = self._tuner.next_step

    def step(self, steps: float) -> None:
        """The job has done so many steps. Cheap but for a few marks; raises nothing of the tuning's own trouble."""
        self.steps = steps
        if steps < self._next_step:
            return
        with self._lock:
            if self._tuned is None and steps >= self._next_step:
                self._mark(steps)

    @property
    def now(self) -> Tuned:
        """What was tuned so far."""
        return self._result()

    def close(self) -> Tuned:
        """Put everything back as found; what was tuned. Idempotent."""
        with self._lock:
            if self._tuned is None:
                self._tuner.end()
                if self._ranks.rank:
                    self._tuner.notes.append("the first rank of the job decided: its record has the windows")
                elif not self._tuner.probes:
                    self._tuner.notes.append("it ended before a window was measured: nothing was tuned")
                self._tuner.notes += put_back(self._hand)
                self._tuned = self._result()
            return self._tuned

    def _search(self, objective: Objective) -> LimitSearch:
        if self._devices.knob is not Knob.POWER_LIMIT or not self._alone:
            return plain_search(self._limits, objective)  # there is no draw to hold a limit against
        if find_spec("numpy") is None:
            self._tuner.notes.append("searched without the learnt prior, which takes NumPy: `pip install numpy`")
            return plain_search(self._limits, objective)
        from negawatt.tuning.curves import CurvePrior

        return CurvePrior(self._limits, objective)

    def _mark(self, steps: float) -> None:
        """Look, decide, set. Every rank takes part in every exchange, whatever fails in it, so that none waits."""
        numbers, failure = _tried(self._numbers)
        every = self._ranks.share(numbers)
        if not all(every):
            self._give_up(f"the meter failed: {failure or 'on another rank'}")
            return
        decided: Numbers = (math.nan, math.inf, 0.0)
        if self._ranks.rank == 0:
            told, failure = _tried(lambda: self._decide(steps, every))
            decided = told or decided
        fraction, self._next_step, renew = self._ranks.share(decided)[0]
        if math.isnan(fraction):
            self._give_up(f"the search failed: {failure or 'on the first rank'}")
        elif fraction != self._fraction or renew:
            self._set(fraction)

    def _decide(self, steps: float, every: list[Numbers]) -> Numbers:
        """The part of the limit as found to hold from now on, when to look again, and whether to set it once more."""
        # Means over the ranks: what one rank's devices draw under one rank's limit.
        means = [math.fsum(column) / len(every) for column in zip(*every, strict=True)]
        time_s, own_j, rest_j, edge_j2, walk_j2 = means
        edge_sd_j, walk_sd_j = (math.sqrt(variance_j2 / len(every)) for variance_j2 in (edge_j2, walk_j2))
        mark = Mark(steps=steps, time_s=time_s, energy_j=own_j, rest_j=rest_j, edge_sd_j=edge_sd_j, walk_sd_j=walk_sd_j)
        self._tuner.mark(mark)
        if self._tuner.next_step == math.inf:
            raise SensorError(self._tuner.notes[-1], "no limit can be judged", "`negawatt doctor` shows the sensors")
        # What is held is set again now and then: that it is still ours is not to be taken for granted.
        renew = self._tuner.holding and self._clock() - self._set_s >= RENEW_S
        return self._tuner.limit / self._limits[0], self._tuner.next_step, float(renew)

    def _set(self, fraction: float) -> None:
        _, failure = _tried(lambda: self._set_each(fraction))
        self._fraction, self._set_s = fraction, self._clock()
        failed = sum(told[0] for told in self._ranks.share((float(bool(failure)),)))
        if failed:
            limit = f"{fraction * self._devices.found:.4g} {self._devices.unit}"
            self._give_up(f"{limit} could not be set: {failure or f'on {failed:g} other ranks'}")

    def _set_each(self, fraction: float) -> Numbers:
        for address, value in self._devices.values(fraction).items():
            self._hand.set(address, value)
        return (fraction,)

    def _numbers(self) -> Numbers:
        energy = self._devices.energy(self._readings())
        self._alone = energy.alone
        time_s, rest_j = self._clock() - self._begun_s, energy.rest_j / self._ranks.on_host
        return time_s, energy.own_j, rest_j, energy.edge_sd_j**2, energy.walk_sd_j**2

    def _give_up(self, reason: str) -> None:
        self._tuner.refused(reason)
        self._fraction, self._next_step = 1.0, math.inf
        self._tuner.notes.append("tuning has ended")
        self._tuner.notes += put_back(self._hand)

    def _result(self) -> Tuned:
        return Tuned(
            knob=str(self._devices.knob),
            unit=self._devices.unit,
            scopes=self._devices.scopes,
            objective=str(self._objective),
            found=self._devices.found,
            probes=tuple(self._tuner.probes),
            holds=tuple(self._tuner.holds),
            retuned=self._tuner.retuned,
            notes=tuple(self._tuner.notes),
        )


def _tried(call: Callable[[], Numbers]) -> tuple[Numbers, str]:
    """What a call gives, or nothing and why not. A job is not ended by its tuning, whatever goes wrong with that."""
    try:
        return call(), ""
    except Exception as error:  # noqa: BLE001 -- the reason goes into the record
        return (), _reason(error)


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, NegawattError) else f"{type(error).__name__}: {error}"
