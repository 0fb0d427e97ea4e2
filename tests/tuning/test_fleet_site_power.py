"""Watts of a site are shared so that they are kept, at little slow-down; hulls and their steps."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.tuning.site_power import Option, share_power
from negawatt.tuning.tradeoff import hull, spend


def options(pairs: list[tuple[float, float]], weight: float = 1.0) -> list[Option]:
    """Options of a job from (slow-down, power)."""
    return [
        Option(limit=250.0 - n, power_w=power, slowdown_fraction=slow, weight=weight)
        for n, (slow, power) in enumerate(pairs)
    ]


JOBS = st.lists(
    st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(50.0, 300.0)), min_size=1, max_size=4).map(options),
    min_size=1,
    max_size=5,
).map(lambda jobs: {f"job {n}": job for n, job in enumerate(jobs)})


@settings(max_examples=50)
@given(jobs=JOBS, part=st.floats(0.0, 1.0))
def test_the_watts_are_kept_and_the_loss_is_near_the_least(jobs: dict[str, list[Option]], part: float) -> None:
    """Against all combinations: within the watts, and above the least loss by less than one step's."""
    least_w = sum(min(option.power_w for option in job) for job in jobs.values())
    most_w = sum(max(option.power_w for option in job) for job in jobs.values())
    budget_w = least_w + part * (most_w - least_w) + 1e-9
    shared = share_power(jobs, budget_w)
    assert sum(option.power_w for option in shared.values()) <= budget_w + 1e-9
    all_ways = itertools.product(*jobs.values())
    kept = [way for way in all_ways if sum(option.power_w for option in way) <= budget_w]
    best = min(sum(option.loss for option in way) for way in kept)
    steps = [step.lost for job in jobs.values() for step in hull([(o.loss, o.power_w) for o in job])[1]]
    assert sum(option.loss for option in shared.values()) <= best + max(steps, default=0.0) + 1e-9


@given(jobs=JOBS)
def test_plenty_of_watts_slow_nobody(jobs: dict[str, list[Option]]) -> None:
    """With watts for all, each job has the option that loses least."""
    shared = share_power(jobs, 1e6)
    assert all(shared[name].loss == min(option.loss for option in job) for name, job in jobs.items())


@settings(max_examples=50)
@given(jobs=JOBS, part=st.floats(0.0, 1.0))
def test_the_order_of_jobs_does_not_matter(jobs: dict[str, list[Option]], part: float) -> None:
    """The same jobs are given the same options, in whatever order they came."""
    powers = [[option.power_w for option in job] for job in jobs.values()]
    budget_w = sum(map(min, powers)) + part * (sum(map(max, powers)) - sum(map(min, powers))) + 1e-9
    assert share_power(jobs, budget_w) == share_power(dict(reversed(jobs.items())), budget_w)


def test_a_job_that_comes_takes_watts_from_those_that_lose_least_by_it() -> None:
    """Of two jobs that run, the one that loses less makes room for the third, and has its watts back after."""
    cheap, dear = options([(0.0, 200.0), (0.02, 120.0)]), options([(0.0, 200.0), (0.3, 120.0)])
    alone = share_power({"cheap": cheap, "dear": dear}, 450.0)
    assert [option.power_w for option in alone.values()] == [200.0, 200.0]
    crowded = share_power({"cheap": cheap, "dear": dear, "new": options([(0.0, 100.0)])}, 450.0)
    assert {name: option.power_w for name, option in crowded.items()} == {"cheap": 120.0, "dear": 200.0, "new": 100.0}


def test_weight_protects_a_job() -> None:
    """Of two alike jobs the one that counts less is slowed down."""
    pairs = [(0.0, 200.0), (0.1, 150.0)]
    shared = share_power({"a": options(pairs, weight=4.0), "b": options(pairs)}, 350.0)
    assert (shared["a"].power_w, shared["b"].power_w) == (200.0, 150.0)


@pytest.mark.parametrize("budget_w", [99.0, math.nan])
def test_a_budget_that_cannot_be_kept_says_how_many_watts_it_takes(budget_w: float) -> None:
    """Below the sum of the least draws there is no answer."""
    with pytest.raises(UsageError, match="at least 100 W"):
        share_power({"a": options([(0.0, 200.0), (0.5, 100.0)])}, budget_w)


def test_a_job_without_usable_options_is_refused() -> None:
    """No option, or one without a number, cannot be weighed."""
    with pytest.raises(UsageError, match="options"):
        share_power({"a": []}, 100.0)
    with pytest.raises(UsageError, match="options"):
        share_power({"a": options([(math.nan, 100.0)])}, 100.0)


POINTS = st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=8)


@given(points=POINTS, price=st.floats(0.01, 50.0))
def test_a_hull_has_the_best_point_at_every_price(points: list[tuple[float, float]], price: float) -> None:
    """Taking the steps that bring more than the price leads to the least of value plus price times loss."""
    picked, steps = hull(points)
    for step in steps:
        if step.price > price:
            picked = step.option
    assert points[picked][1] + price * points[picked][0] == pytest.approx(min(v + price * x for x, v in points))


@given(points=POINTS, budget=st.floats(0.0, 3.0))
def test_what_costs_more_than_the_price_is_within_the_budget(points: list[tuple[float, float]], budget: float) -> None:
    """Steps above the price that spends a budget lose no more than that."""
    steps = [(step, 2.0) for step in hull(points)[1]]
    price = spend(steps, budget)
    assert sum(weight * step.lost for step, weight in steps if step.price > price) <= budget + 1e-9
