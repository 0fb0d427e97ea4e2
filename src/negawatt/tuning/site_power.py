"""Site power: limits for all jobs that keep their draw within the site's watts, at little slow-down.

A multiple-choice knapsack. Steps on the jobs' convex hulls in the order of watts per slow-down solve its linear
relaxation (P. Sinha, A. Zoltners, Operations Research 27 (1979) 503), so the loss is above the least one by less than
the last step's; what that step leaves over is given back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from negawatt.core.errors import UsageError
from negawatt.tuning.tradeoff import Step, hull

_Table = Sequence[tuple[float, float]]
"""Loss and draw of each option of a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What a limit does to a job, as measured or expected.

    Attributes:
        limit: as set [W or MHz].
        power_w: mean draw of the job's devices [W].
        slowdown_fraction: by how much it is slower than untouched.
        weight: how much its slow-down counts, such as the number of its devices.
    """

    limit: float  # in the unit of the control
    power_w: float
    slowdown_fraction: float
    weight: float = 1.0  # relative to other jobs

    @property
    def loss(self) -> float:
        """What counts: weighted slow-down."""
        return self.weight * self.slowdown_fraction


def share_power(jobs: Mapping[str, Sequence[Option]], budget_w: float) -> dict[str, Option]:
    """An option for each job so that the sum of draws is within the budget, at a nearly least sum of slow-downs.

    Solve anew when a job comes or goes, or has measured more: the same jobs get the same options, whatever their order.

    Args:
        jobs: the options of each, the untouched limit among them.
        budget_w: of all jobs together [W].

    Raises:
        UsageError: if even the least draws are above the budget, or a number is unusable.
    """
    tables = {name: [(option.loss, option.power_w) for option in jobs[name]] for name in sorted(jobs)}
    picked: dict[str, int] = {}
    steps: list[tuple[float, str, Step]] = []
    for name, points in tables.items():
        picked[name], own = hull(points)  # at first what loses least
        steps += [(-step.price, name, step) for step in own]
    least_w = math.fsum(min(power for _, power in points) for points in tables.values())
    if not least_w <= budget_w:
        raise UsageError(
            f"a power budget of {budget_w:g} W for jobs that draw at least {least_w:g} W",
            "no choice of limits keeps it",
            "raise the budget, or suspend a job",
        )

    # Steps of one job come in the order of its hull: their prices fall.
    for _, name, step in sorted(steps, key=lambda item: item[:2]):
        if _draw_w(tables, picked) <= budget_w:
            break
        if tables[name][step.option][1] < tables[name][picked[name]][1]:  # equal prices may be rounded out of order
            picked[name] = step.option
    _give_back(tables, picked, budget_w)
    return {name: jobs[name][picked[name]] for name in tables}


def _draw_w(tables: Mapping[str, _Table], picked: Mapping[str, int]) -> float:
    return math.fsum(tables[name][option][1] for name, option in picked.items())


def _give_back(tables: Mapping[str, _Table], picked: dict[str, int], budget_w: float) -> None:
    """Give watts that the last step left over to the job that they help most, again and again."""
    while (spare_w := budget_w - _draw_w(tables, picked)) >= 0:
        now = {name: tables[name][option] for name, option in picked.items()}
        helped = [
            (loss - now[name][0], name, option)
            for name, points in tables.items()
            for option, (loss, power_w) in enumerate(points)
            if loss < now[name][0] and power_w - now[name][1] <= spare_w
        ]
        if not helped:
            return
        _, name, option = min(helped)
        picked[name] = option
