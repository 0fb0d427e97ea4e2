"""Searches for the best limit: what they ask, what they pick, and that bad curves do not break them."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.tuning.curves import CurvePrior
from negawatt.tuning.learning import Curve, fit
from negawatt.tuning.limits import Probed
from negawatt.tuning.objective import Goal, Objective
from negawatt.tuning.plain import Bisection, RatioSearch, Sweep, Ternary, plain_search
from negawatt.tuning.prior import Prior

BOUND = Objective(max_slowdown_fraction=0.05)
ENERGY = Objective()
LIMITS = tuple(range(300, 75, -25))
KINDS = [Sweep, Bisection, Ternary, CurvePrior]
RATIO = st.floats(0.3, 4.0)


def ended(search: RatioSearch, points: dict[float, tuple[float, float]]) -> list[float]:
    """Run a search to its end; what it asked."""
    asked = []
    while (limit := search.ask()) is not None:
        assert search.ask() == limit
        asked.append(limit)
        assert len(asked) <= len(points)
        search.tell(Probed(limit=limit, time_s=points[limit][0], energy_j=points[limit][1]))
    return asked


def physical(limits, draw_w=240.0, idle_w=60.0):
    """Time and energy of a step when power beyond idling goes with the cube of speed, up to the draw."""
    points = {}
    for limit in limits:
        power_w = min(draw_w, limit)
        speed = ((power_w - idle_w) / (draw_w - idle_w)) ** (1 / 3)
        time_s = 0.6 + 0.4 / speed
        points[float(limit)] = time_s, time_s * power_w
    return points


@st.composite
def cases(draw):
    """Any curve and any objective."""
    limits = draw(st.lists(st.integers(50, 800), min_size=1, max_size=12, unique=True))
    limits = sorted(map(float, limits), reverse=True)
    points = {limit: (draw(RATIO), 200.0 * draw(RATIO)) for limit in limits}
    goal = draw(st.sampled_from(Goal))
    bound = draw(st.sampled_from([None, 0.0, 0.03, 0.1, 0.5]))
    return points, Objective(goal=goal, max_slowdown_fraction=bound, time_weight=draw(st.sampled_from([0.0, 0.8])))


def kinds(objective):
    """The searches that take an objective."""
    return [kind for kind in KINDS if kind is not Bisection or objective.max_slowdown_fraction is not None]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_any_curve_ends_with_a_measured_limit(case):
    """No limit is asked for twice, the one as found first, and the pick was measured, whatever the curve."""
    points, objective = case
    for kind in kinds(objective):
        search = kind(list(points), objective)
        asked = ended(search, points)
        assert asked[0] == max(points)
        assert len(set(asked)) == len(asked)
        assert search.best in asked
        if kind is not CurvePrior:  # which weighs what it measured with what it knew
            found_s, found_j = points[max(points)]
            costs = {limit: objective.cost(points[limit][0] / found_s, points[limit][1] / found_j) for limit in asked}
            assert costs[search.best] == min(costs.values())


@settings(max_examples=30, deadline=None)
@given(cases(), st.sampled_from([0.25, 8.0, 1024.0]))
def test_the_size_of_a_step_changes_nothing(case, factor):
    """Steps with more work, in time and energy alike, are searched in the same way."""
    points, objective = case
    larger = {limit: (factor * time_s, factor * energy_j) for limit, (time_s, energy_j) in points.items()}
    for kind in kinds(objective):
        one, other = kind(list(points), objective), kind(list(points), objective)
        assert ended(one, points) == ended(other, larger)
        assert one.best == other.best


@pytest.mark.parametrize("kind", [Sweep, Bisection, Ternary])
def test_the_unit_of_energy_changes_nothing(kind):
    """Joules in another unit do not change what a plain search does."""
    points = physical(LIMITS)
    millis = {limit: (time_s, 1024 * energy_j) for limit, (time_s, energy_j) in points.items()}
    assert ended(kind(LIMITS, BOUND), points) == ended(kind(LIMITS, BOUND), millis)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objective", [BOUND, Objective(goal=Goal.EDP, max_slowdown_fraction=0.1)])
def test_nothing_better_is_as_found(kind, objective):
    """Where every lower limit is worse, or all are alike, the one as found is kept."""
    worse = {float(limit): (1 + i, 200.0 + 100 * i) for i, limit in enumerate(LIMITS)}
    alike = {float(limit): (1.0, 200.0) for limit in LIMITS}
    for points in (worse, alike):
        search = kind(LIMITS, objective)
        ended(search, points)
        assert search.best == LIMITS[0]


@pytest.mark.parametrize("kind", [Sweep, Ternary])
def test_of_equals_the_higher_limit_is_picked(kind):
    """A tie is no reason to go lower."""
    points = {300.0: (1.0, 200.0), 250.0: (1.0, 150.0), 200.0: (1.0, 150.0), 150.0: (1.0, 150.0)}
    search = kind(list(points), ENERGY)
    ended(search, points)
    assert search.best == 250.0


@given(st.integers(2, 200), st.integers(0, 199))
def test_bisection_finds_the_lowest_limit_that_keeps_the_bound(count, slow):
    """If lower is slower and cheaper, exactly, with no more probes than the logarithm asks for."""
    limits = [1000.0 - i for i in range(count)]
    points = {limit: (1.0 if i <= slow else 1.2, 200.0 - 0.1 * i) for i, limit in enumerate(limits)}
    search = Bisection(limits, BOUND)
    asked = ended(search, points)
    assert search.best == limits[min(slow, count - 1)]
    assert len(asked) <= 1 + math.ceil(math.log2(count))


@given(st.integers(1, 150), st.data())
def test_ternary_finds_the_bottom_of_a_valley(count, data):
    """Where the cost falls to one limit and rises after it, that limit is found."""
    bottom = data.draw(st.integers(0, count - 1))
    limits = [1000.0 - i for i in range(count)]
    points = {limit: (1.0, 200.0 + abs(i - bottom)) for i, limit in enumerate(limits)}
    search = Ternary(limits, ENERGY)
    asked = ended(search, points)
    assert search.best == limits[bottom]
    assert len(asked) <= 2 + 4 * math.log2(count + 1)


def test_plain_search_follows_the_bound():
    """Bisection needs a bound; ternary search takes what has none."""
    assert isinstance(plain_search(LIMITS, BOUND), Bisection)
    assert isinstance(plain_search(LIMITS, ENERGY), Ternary)
    with pytest.raises(UsageError, match="without a bound"):
        Bisection(LIMITS, ENERGY)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", [[], [100.0, 200.0], [200.0, 200.0], [200.0, 0.0], [math.inf, 100.0], [math.nan]])
def test_limits_that_do_not_fall_are_refused(kind, limits):
    """The first is the one as found, and nothing goes above it."""
    with pytest.raises(UsageError, match="limits"):
        kind(limits, BOUND)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("time_s", "energy_j"), [(math.nan, 1.0), (1.0, math.nan), (0.0, 1.0), (1.0, math.inf)])
def test_no_number_is_refused(kind, time_s, energy_j):
    """A figure that is none does not enter the search, which asks for the same limit again."""
    search = kind(LIMITS, BOUND)
    with pytest.raises(UsageError, match="at a limit of 300"):
        search.tell(Probed(limit=300.0, time_s=time_s, energy_j=energy_j))
    assert search.ask() == 300.0
    with pytest.raises(UsageError, match="none of"):
        search.tell(Probed(limit=310.0, time_s=1.0, energy_j=1.0))
    assert search.best == 300.0


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_repeats_do_not_matter(kind):
    """What is asked next depends on what was told, not on when; a limit told twice counts with its mean."""
    told = [Probed(limit=limit, time_s=t, energy_j=e) for limit, (t, e) in list(physical(LIMITS).items())[:4]]
    searches = [kind(LIMITS, BOUND) for _ in range(3)]
    for search, order in zip(searches, (told, told[::-1], told + told), strict=True):
        for probed in order:
            search.tell(probed)
    assert len({(search.ask(), search.best) for search in searches}) == 1


@pytest.mark.parametrize("objective", [BOUND, ENERGY, Objective(goal=Goal.WEIGHTED, time_weight=0.8)])
@pytest.mark.parametrize("draw_w", [160.0, 200.0, 250.0, 290.0])
def test_the_prior_saves_probes_and_little_is_lost(objective, draw_w):
    """On a textbook curve, of a device it has never seen: at most 5 of 9 limits, within 4 % of the best cost."""
    points = physical(LIMITS, draw_w)
    search = CurvePrior(LIMITS, objective)
    assert len(ended(search, points)) <= 5
    found_s, found_j = points[300.0]
    costs = {
        limit: objective.cost(time_s / found_s, energy_j / found_j) for limit, (time_s, energy_j) in points.items()
    }
    assert costs[search.best] <= min(costs.values()) + 0.04


@pytest.mark.parametrize("objective", [BOUND, ENERGY])
def test_limits_far_above_the_draw_are_not_all_tried(objective):
    """A job that no limit reaches ends before a sweep would, and nothing is lost."""
    points = {float(limit): (1.0, 60.0) for limit in LIMITS}
    search = CurvePrior(LIMITS, objective)
    assert len(ended(search, points)) < len(LIMITS)
    assert search.best == LIMITS[0]


def test_fine_grids_take_no_more_probes():
    """101 limits, 5 W apart, are searched with as few probes as a coarse grid."""
    limits = [700.0 - 5 * i for i in range(101)]
    search = CurvePrior(limits, BOUND)
    assert len(ended(search, physical(limits, 620.0, 150.0))) <= 5


def test_without_numpy_a_reason_is_given(monkeypatch):
    """The learnt prior says what is missing and what to use instead."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(UsageError, match="pip install numpy"):
        CurvePrior(LIMITS, BOUND)


def test_importing_needs_no_numpy():
    """The modules load, and the plain searches work, where NumPy is not installed."""
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "import negawatt.tuning.curves, negawatt.tuning.learning, negawatt.tuning.prior\n"
        "from negawatt.tuning.objective import Objective\n"
        "from negawatt.tuning.plain import plain_search\n"
        "print(plain_search([2, 1], Objective()).ask())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2.0"


def test_belief_passes_through_what_was_measured():
    """Without noise, a measured limit is known, in every part of the mixture."""
    belief = Prior.load().belief(LIMITS, 200.0)
    logs = np.log([1.02, 1.3, 0.9, 0.8])
    after = belief.given([2, 6], logs, 1e-6)
    n = len(LIMITS) - 1
    at = [2, 6, n + 2, n + 6]
    assert after.means[:, at] == pytest.approx(np.tile(logs, (len(after.weights), 1)), abs=1e-6)
    assert np.abs(after.covariances[:, at][:, :, at]).max() < 1e-8
    assert after.weights.sum() == pytest.approx(1.0)


def test_samples_have_the_moments_of_the_belief():
    """Mean and covariance of many draws are those of the mixture."""
    belief = Prior.load().belief(LIMITS[:4], 200.0)
    draws = belief.samples(200_000, np.random.default_rng(0))
    mean = belief.weights @ belief.means
    off = belief.means - mean
    covariance = np.tensordot(belief.weights, belief.covariances + off[:, :, None] * off[:, None], 1)
    assert draws.mean(0) == pytest.approx(mean, abs=2e-3)
    assert np.cov(draws.T) == pytest.approx(covariance, abs=1e-3)


def test_a_prior_survives_its_file(tmp_path):
    """What is written is read again, to five digits; anything else is refused."""
    prior = Prior.load()
    path = tmp_path / "prior.json"
    path.write_text(prior.text(), encoding="utf-8")
    again = Prior.load(path)
    for name in ("weights", "means", "covariances", "nuggets"):
        assert np.array_equal(getattr(again, name), getattr(prior, name))
    assert again.source == prior.source
    for bad in ("", "{}", '{"weights": [1], "means": [[1]], "covariances": [[1]], "nuggets": [[1]], "source": ""}'):
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(UsageError, match="is not a prior"):
            Prior.load(path)


def test_learning_needs_groups_and_repeats_itself():
    """Curves of one group teach nothing of how curves differ; the same curves teach the same."""
    curves = []
    for group, (draw_w, idle_w) in itertools.product("ab", [(150, 40), (220, 60), (290, 80)]):
        points = physical(LIMITS, draw_w, idle_w + 10 * (group == "b"))
        times_s, energies_j = (tuple(part) for part in zip(*points.values(), strict=True))
        powers_w = tuple(e / t for t, e in zip(times_s, energies_j, strict=True))
        curves.append(Curve(group=group, limits_w=tuple(points), times_s=times_s, powers_w=powers_w))
    assert fit(curves, "a test").text() == fit(curves, "a test").text()
    with pytest.raises(UsageError, match="one group or none"):
        fit(curves[:3], "a test")


def test_learning_learns():
    """A prior from curves of one kind expects that kind: nearer, and surer, than what is shipped."""
    curves = []
    for i, (draw_w, idle_w) in enumerate(itertools.product([150, 200, 250, 290], [30, 50, 70])):
        points = physical(LIMITS, draw_w, idle_w)
        times_s, energies_j = (tuple(part) for part in zip(*points.values(), strict=True))
        powers_w = tuple(e / t for t, e in zip(times_s, energies_j, strict=True))
        curves.append(Curve(group=str(i), limits_w=tuple(points), times_s=times_s, powers_w=powers_w))
    points = physical(LIMITS, 230.0, 60.0)
    true = np.log([time_s / points[300.0][0] for time_s, _ in points.values()])[1:]

    def missed(prior):
        draws = prior.belief(LIMITS, 230.0).samples(2000, np.random.default_rng(0))[:, : len(true)]
        return np.abs(draws - true).mean()

    assert missed(fit(curves, "a test")) < 0.7 * missed(Prior.load())
