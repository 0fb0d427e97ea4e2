"""Climb: starts just below what the device draws and walks downhill. Needs no prior knowledge and no NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from negawatt.tuning.objective import Objective
from negawatt.tuning.plain import RatioSearch

START = 0.9
"""Where it starts, as a part of the mean draw as found: about where a limit begins to act. From 0.8 to 0.95 the figures
of `benchmarks/fleet_power.py` differ by about 1 %."""
APART = 0.06
"""Limits nearer than this part of the first are skipped: between them, noise decides which way is down."""


@final
class Climb(RatioSearch):
    """Walks from limit to limit while the cost falls; for power limits, whose draw says where to start.

    First the limit nearest to 0.9 of the draw; then down, if that is better than as found, else up; then the other way
    if the first step was none. About four probes on grids of 25 W, that as found included.

    Args:
        limits: highest first; the first is the one as found [W].
        objective: what is wanted.
    """

    def __init__(self, limits: Sequence[float], objective: Objective) -> None:
        super().__init__(limits, objective)
        self._ladder = [0]
        for index, limit in enumerate(self.limits):
            if self.limits[self._ladder[-1]] - limit >= APART * self.limits[0] or index == 1 == len(self.limits) - 1:
                self._ladder.append(index)

    def _next(self) -> int | None:
        ladder = self._ladder
        if len(ladder) == 1:
            return None
        time_s, energy_j = self._means(0)
        start_w = START * energy_j / time_s
        rung = min(range(1, len(ladder)), key=lambda r: abs(self.limits[ladder[r]] - start_w))
        if ladder[rung] not in self._told:
            return ladder[rung]
        first = 1 if self.cost(ladder[rung]) < self.cost(0) else -1
        for way in (first, -first):
            moved = False
            while 0 <= rung + way < len(ladder):
                ahead = ladder[rung + way]
                if ahead not in self._told:
                    return ahead
                if not self.cost(ahead) < self.cost(ladder[rung]):
                    break
                rung, moved = rung + way, True
            if moved:
                return None
        return None
