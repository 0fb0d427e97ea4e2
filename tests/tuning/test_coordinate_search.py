"""CoordinateSearch: what it finds, what it asks, and that it can be resumed."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.tuning.search import CoordinateSearch, Point, Score

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], Point]:
    """A grid and a point of it."""
    sizes = draw(SIZES)
    return sizes, tuple(draw(st.integers(0, n - 1)) for n in sizes)


def rough(seed: int, failing: float = 0.2) -> Callable[[Point], Score]:
    """A score without structure, the same for the same point; some points fail."""

    def score(point: Point) -> Score:
        rng = random.Random(f"{seed}/{point}")
        return None if rng.random() < failing else rng.random()

    return score


def ended(search: CoordinateSearch, score: Callable[[Point], Score]) -> list[Point]:
    """Run a search to its end; what it asked."""
    asked = []
    while (point := search.ask()) is not None:
        assert search.ask() == point
        asked.append(point)
        search.tell(point, score(point))
        assert len(asked) < 1000
    return asked


@given(grids(), st.data())
def test_separable_functions_are_minimised(grid: tuple[tuple[int, ...], Point], data: st.DataObject) -> None:
    """Where the dimensions do not interact, the optimum is found from anywhere."""
    sizes, start = grid
    costs = [data.draw(st.lists(st.floats(0, 100), min_size=n, max_size=n)) for n in sizes]

    def score(point: Point) -> float:
        return math.fsum(cost[i] for cost, i in zip(costs, point, strict=True))

    search = CoordinateSearch(sizes=sizes, start=start)
    ended(search, score)
    assert score(search.best) == pytest.approx(math.fsum(map(min, costs)))


@given(grids(), st.integers(0, 1000))
def test_it_asks_inside_and_repeats_only_in_the_race(grid: tuple[tuple[int, ...], Point], seed: int) -> None:
    """Every point is in the grid; the walk never asks one twice, the race asks at most three once more."""
    sizes, start = grid
    asked = ended(CoordinateSearch(sizes=sizes, start=start), rough(seed))
    assert set(asked) <= set(itertools.product(*map(range, sizes)))
    counts = Counter(asked)
    assert max(counts.values()) <= 2
    again = [p for p, n in counts.items() if n > 1]
    assert len(again) <= 3
    assert set(asked[len(asked) - len(again) :]) == set(again)


@given(grids(), st.integers(0, 1000))
def test_no_single_change_of_the_best_had_a_lower_first_score(grid: tuple[tuple[int, ...], Point], seed: int) -> None:
    """With scores that repeat exactly, the end is a minimum along every dimension."""
    sizes, start = grid
    score = rough(seed)
    search = CoordinateSearch(sizes=sizes, start=start)
    ended(search, score)
    best = score(search.best)
    for dimension, size in enumerate(sizes):
        for i in range(size):
            other = score((*search.best[:dimension], i, *search.best[dimension + 1 :]))
            assert other is None or (best is not None and best <= other)


@given(grids(), st.integers(0, 1000), st.integers(0, 30))
@settings(max_examples=60)
def test_resuming_ends_like_going_on(grid: tuple[tuple[int, ...], Point], seed: int, cut: int) -> None:
    """A search that starts with what an interrupted one knew asks only the rest, and ends the same."""
    sizes, start = grid
    score = rough(seed)
    whole = CoordinateSearch(sizes=sizes, start=start)
    asked = ended(whole, score)
    first = list(dict.fromkeys(asked[:cut]))
    resumed = CoordinateSearch(sizes=sizes, start=start, known={p: score(p) for p in first})
    rest = ended(resumed, score)
    assert (resumed.best, resumed.path) == (whole.best, whole.path)
    assert Counter(first + rest) == Counter(asked)


@given(grids())
def test_a_search_in_which_all_fails_ends_at_the_start(grid: tuple[tuple[int, ...], Point]) -> None:
    """Without any success the start stays, each neighbour is tried once, and there is no race."""
    sizes, start = grid
    search = CoordinateSearch(sizes=sizes, start=start)
    asked = ended(search, lambda _: None)
    assert (search.best, search.path) == (start, (start,))
    assert len(asked) == 1 + sum(n - 1 for n in sizes)


@given(grids(), st.integers(0, 1000))
def test_remaining_is_zero_at_the_end_only(grid: tuple[tuple[int, ...], Point], seed: int) -> None:
    """While there is something to ask, something remains; and never more than the grid and the race."""
    sizes, start = grid
    search = CoordinateSearch(sizes=sizes, start=start)
    score = rough(seed)
    while (point := search.ask()) is not None:
        assert 1 <= search.remaining() <= math.prod(sizes) + 3
        search.tell(point, score(point))
    assert search.remaining() == 0


def test_remaining_bounds_a_search_that_changes_nothing() -> None:
    """From the optimum of a grid, no more is asked than was said at the start."""
    search = CoordinateSearch(sizes=(4, 3, 3), start=(0, 0, 0))
    promised = search.remaining()
    assert len(ended(search, lambda p: float(sum(p)))) <= promised


def test_the_race_is_decided_by_the_mean() -> None:
    """The lucky first run of one point is corrected by its second."""
    scores = {(0,): [5.0, 5.0], (1,): [1.0, 9.0], (2,): [2.0, 3.0], (3,): [8.0]}
    search = CoordinateSearch(sizes=(4,), start=(0,))
    asked = ended(search, lambda p: scores[p].pop(0))
    assert asked == [(0,), (1,), (2,), (3,), (1,), (2,), (0,)]
    assert search.best == (2,)
    assert search.path == ((0,), (1,), (2,))


def test_a_point_that_fails_in_the_race_is_out() -> None:
    """A setting that fails every other time is no plan."""
    scores: dict[Point, list[Score]] = {(0,): [5.0, 5.0], (1,): [1.0, None]}
    search = CoordinateSearch(sizes=(2,), start=(0,))
    ended(search, lambda p: scores[p].pop(0))
    assert search.best == (0,)


def test_the_path_is_the_waterfall() -> None:
    """The path starts at the start and changes one dimension at a time, each step downwards."""
    search = CoordinateSearch(sizes=(3, 3), start=(2, 2))
    ended(search, lambda p: float(10 * p[0] + p[1]))
    assert search.path == ((2, 2), (0, 2), (0, 0))


def test_nan_is_a_failure() -> None:
    """A score that is not a number never wins."""
    search = CoordinateSearch(sizes=(2,), start=(0,))
    ended(search, lambda p: math.nan if p == (1,) else 1.0)
    assert search.best == (0,)


def test_a_grid_without_dimensions_has_one_point() -> None:
    """With nothing to choose, the start is scored and that is all."""
    search = CoordinateSearch(sizes=(), start=())
    assert ended(search, lambda _: 1.0) == [()]
    assert search.best == ()


@pytest.mark.parametrize("point", [(2, 0), (-1, 0), (0,), (0, 0, 0)])
def test_points_outside_are_refused(point: Point) -> None:
    """A point outside the grid is an error at the start, in what is known, and when told."""
    with pytest.raises(UsageError, match="in a grid of 2 x 2 options"):
        CoordinateSearch(sizes=(2, 2), start=point)
    with pytest.raises(UsageError, match="in a grid of 2 x 2 options"):
        CoordinateSearch(sizes=(2, 2), start=(0, 0), known={point: 1.0})
    with pytest.raises(UsageError, match="in a grid of 2 x 2 options"):
        CoordinateSearch(sizes=(2, 2), start=(0, 0)).tell(point, 1.0)
