"""A climb finds the bottom of a valley from near the draw, in few probes."""

from __future__ import annotations

import pytest

from negawatt.tuning.climb import Climb
from negawatt.tuning.limits import Probed
from negawatt.tuning.objective import Goal, Objective

WATTS = tuple(float(w) for w in range(250, 75, -25))


def walked(search: Climb, costs: dict[float, float], draw_w: float = 200.0) -> list[float]:
    """The limits asked for, when energy is the draw times a cost and time stands still."""
    asked = []
    while (limit := search.ask()) is not None:
        asked.append(limit)
        search.tell(Probed(limit=limit, time_s=1.0, energy_j=draw_w * costs[limit] / costs[max(costs)]))
    return asked


@pytest.mark.parametrize("bottom", WATTS)
def test_it_ends_at_the_bottom_of_a_valley(bottom: float) -> None:
    """From wherever it starts it walks to the least cost, never asks twice, and ends."""
    search = Climb(WATTS, Objective())
    costs = {w: 1.0 + abs(w - bottom) / 100 for w in WATTS}
    asked = walked(search, costs)
    assert search.best == bottom
    assert len(asked) == len(set(asked))


def test_it_starts_just_below_the_draw() -> None:
    """A limit acts where it meets the draw: those far above are not tried."""
    costs = {w: 1.0 + abs(w - 150.0) / 100 for w in WATTS}
    assert walked(Climb(WATTS, Objective()), costs, draw_w=170.0) == [250.0, 150.0, 125.0, 175.0]


def test_a_device_that_limits_do_not_help_stays_as_found() -> None:
    """Where every limit costs more, the one as found is best, after a walk up towards it."""
    search = Climb(WATTS, Objective(goal=Goal.WEIGHTED, time_weight=1.0))
    walked(search, {w: 1.0 + (250 - w) / 100 for w in WATTS})
    assert search.best == 250.0


def test_a_constant_curve_ends_at_once() -> None:
    """Where nothing changes anything, neighbours on both sides are tried and that is all."""
    search = Climb(WATTS, Objective())
    assert len(walked(search, dict.fromkeys(WATTS, 1.0))) <= 4
    assert search.best == 250.0


def test_a_fine_grid_is_thinned() -> None:
    """Of a hundred limits it tries no neighbours that noise could not tell apart."""
    fine = tuple(400.0 - 2 * n for n in range(100))
    asked = walked(Climb(fine, Objective()), {w: 1.0 + abs(w - 300.0) / 100 for w in fine}, draw_w=390.0)
    assert len(asked) <= 7
    assert min(a - b for a, b in zip(sorted(asked)[1:], sorted(asked), strict=False)) >= 0.06 * 400


@pytest.mark.parametrize("limits", [(250.0,), (250.0, 240.0)])
def test_few_limits_are_no_trouble(limits: tuple[float, ...]) -> None:
    """With one limit there is nothing to ask but that; two, however near, are both tried."""
    assert walked(Climb(limits, Objective()), dict.fromkeys(limits, 1.0)) == list(limits)
