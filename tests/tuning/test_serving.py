"""The controller of serving: laws for any windows, and closed loops on a queue whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_sim import Queue, Truth, poisson

from negawatt.core.errors import UsageError
from negawatt.tuning.serving import Level, Seen, ServingController

PROMISE_S = 0.4
TRUTHS = [
    Truth(replicas=replicas, speed=speed)
    for replicas, speed in [(4, 1.0), (4, 0.7), (3, 0.7), (2, 0.7), (2, 0.5), (1, 0.5)]
]


def levels(truths=TRUTHS, *, told=False):
    """Unknown ones but for their effort, or with capacities as an operator would state them."""
    return [
        Level(
            name=f"{t.replicas} at {t.speed:.0%}",
            effort=t.replicas * (50.0 + 150.0 * t.speed**2),
            capacity_per_s=0.6 * t.replicas * t.speed * 4 / 0.09 if told else None,
            awake=t.replicas,
            up_s=t.up_s,
        )
        for t in truths
    ]


def window(level=0, *, rate=10, late=0, energy_j=200.0, **changes):
    """A second in which all that came was answered."""
    seen = Seen(
        level=level,
        time_s=1.0,
        arrived=rate,
        finished=rate,
        in_flight=1,
        late=late,
        p99_s=0.2 if rate else None,
        energy_j=energy_j,
    )
    return replace(seen, **changes)


def looped(rate_at, most, *, until_s, truths=TRUTHS, told=False, level=None, seed=3):
    """The windows of a closed loop; of a level that is held if one is named."""
    queue, controller = (
        Queue(truths, promise_s=PROMISE_S, seed=seed),
        ServingController(levels(truths, told=told), p99_s=PROMISE_S),
    )
    if level is not None:
        queue.set(level)
    windows = []
    for seen in queue.play(poisson(rate_at, most, seed + 1), until_s):
        windows.append(seen)
        chosen = controller.tell(seen)
        queue.set(chosen if level is None else level)
    return windows


def late_fraction(windows):
    return sum(w.late for w in windows) / sum(w.finished for w in windows)


def power_w(windows):
    return sum(w.energy_j for w in windows) / sum(w.time_s for w in windows)


seens = st.builds(
    dict,
    time_s=st.sampled_from([0.5, 1.0, 2.0]),
    arrived=st.integers(0, 200),
    finished=st.integers(0, 200),
    in_flight=st.integers(0, 400),
    late=st.integers(0, 5),
    energy_j=st.sampled_from([None, 50.0, 100.0, 400.0]),
    failed=st.sampled_from([0, 0, 0, 0, 3]),
)


@given(st.lists(seens, max_size=60), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_levels_stay_in_range_and_late_windows_never_lead_to_a_more_frugal_one(windows, n, told):
    """Whatever is told, the level is in range, and not a later one after a window with more than 1 % late answers."""
    controller = ServingController(levels(TRUTHS[:n], told=told), p99_s=PROMISE_S)
    for given_ in windows:
        late = min(given_["late"], given_["finished"])
        before = controller.level
        after = controller.tell(
            Seen(level=before, p99_s=0.1 if given_["finished"] else None, **{**given_, "late": late})
        )
        assert 0 <= after < n
        assert after == controller.level
        if late > 0.01 * given_["finished"]:
            assert after <= before
        assert controller.note


@given(st.lists(seens, max_size=60), st.sampled_from([1e-3, 0.5, 1e3]))
@settings(max_examples=30, deadline=None)
def test_units_of_energy_and_effort_do_not_matter(windows, scale):
    """A meter that counts in another unit, and efforts in another one, lead to the same levels."""
    one = ServingController(levels(), p99_s=PROMISE_S)
    other = ServingController([replace(level, effort=64.0 * level.effort) for level in levels()], p99_s=PROMISE_S)
    for given_ in windows:
        seen = Seen(level=one.level, p99_s=0.1, **{**given_, "late": min(given_["late"], given_["finished"])})
        energy_j = None if seen.energy_j is None else seen.energy_j * 2.0 ** round(math.log2(scale))
        assert one.tell(seen) == other.tell(replace(seen, energy_j=energy_j))


def frugal(told=True):
    """A controller that has gone to its last level under a light load."""
    controller = ServingController(levels(told=told), p99_s=PROMISE_S)
    for _ in range(120):
        controller.tell(window(controller.level, rate=4, energy_j=300.0 - 40.0 * controller.level))
    assert controller.level == len(TRUTHS) - 1
    return controller


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"failed": 4}, "failed"),
        ({"energy_j": -1.0}, "meter"),
        ({"energy_j": math.nan}, "meter"),
        ({"time_s": 45.0}, "out of date"),
        ({"time_s": 0.0}, "cannot be"),
        ({"in_flight": 60}, "under way"),
    ],
)
def test_what_is_wrong_leads_to_the_safe_level(changes, says):
    """Failures, a meter that talks nonsense, old or impossible windows, and a queue lead to level 0, with a note."""
    controller = frugal()
    assert controller.tell(window(controller.level, rate=4, **changes)) == 0
    assert says in controller.note


def test_doubt_holds_the_safe_level_for_longer_each_time():
    """Ten seconds after the first doubt, twice as long after the next one."""
    controller = frugal()
    held = []
    for _ in range(3):
        assert controller.doubt("the upstream is gone") == 0
        seconds = 1
        while controller.tell(window(controller.level, rate=4)) == 0:
            seconds += 1
        held.append(seconds)
    assert 10 <= held[0] < held[1] < held[2]


def test_a_meter_that_says_nothing_leads_to_the_safe_level():
    """A late meter is waited for; after a minute without joules the safe level is held."""
    controller = frugal()
    chosen = [controller.tell(window(controller.level, rate=4, energy_j=None)) for _ in range(62)]
    assert chosen[29] > 0
    assert chosen[-1] == 0


def test_a_level_that_is_not_set_leads_to_the_safe_level():
    """If another level than the chosen one is in force window after window, something is wrong."""
    controller = frugal()
    for _ in range(4):
        controller.tell(window(2, rate=4))
    assert controller.level == 0
    assert "in force" in controller.note


def test_a_surge_between_windows_is_met_at_once():
    """A look at the rate that chance does not explain changes the level without waiting for the window's end."""
    controller = frugal()
    assert controller.arrived(8.0) == len(TRUTHS) - 1
    assert controller.arrived(150.0) == 0
    assert controller.arrived(math.nan) == 0


def test_unknown_levels_are_tried_one_step_at_a_time():
    """Nothing beyond the next level is tried before that one was seen to keep the promise."""
    controller = ServingController(levels(), p99_s=PROMISE_S)
    deepest = 0
    for _ in range(200):
        level = controller.tell(window(controller.level, rate=5, energy_j=300.0 - 40.0 * controller.level))
        assert level <= deepest + 1
        deepest = max(deepest, level)
    assert deepest == len(TRUTHS) - 1


def test_a_level_that_broke_the_promise_is_tried_again_ever_more_rarely():
    """The time until a bad level is tried again at least doubles, until it is an hour."""
    controller = ServingController(levels(TRUTHS[:2]), p99_s=PROMISE_S)
    tried, now = [], 0
    while len(tried) < 5:
        level, now = controller.level, now + 1
        assert now < 5000
        if controller.tell(window(level, late=10 if level else 0, energy_j=300.0 - 100.0 * level)) > level:
            tried.append(now)
    gaps = [b - a for a, b in pairwise(tried)]
    assert all(b > 1.5 * a for a, b in pairwise(gaps))


@pytest.mark.parametrize(("levels_", "p99_s"), [([], 1.0), (levels(), 0.0), (levels(), math.nan)])
def test_nothing_to_choose_from_is_refused(levels_, p99_s):
    """No levels, or no promise, is a usage error."""
    with pytest.raises(UsageError, match="at least one level"):
        ServingController(levels_, p99_s=p99_s)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(("rate", "best"), [(4.0, 5), (40.0, 3)])
def test_a_constant_load_settles_near_the_best_level(rate, best, told):
    """After learning: power within 15 % of the best level in hindsight, at most 1 % late, 97 % of windows in time."""
    windows = looped(lambda _: rate, rate, until_s=600.0, told=told)[300:]
    static = looped(lambda _: rate, rate, until_s=300.0, level=best)
    assert late_fraction(static) <= 0.01
    assert power_w(windows) <= 1.15 * power_w(static)
    assert late_fraction(windows) <= 0.01
    assert sum(w.late <= 0.01 * w.finished for w in windows) >= 0.97 * len(windows)
    changes = sum(a.level != b.level for a, b in pairwise(windows))
    assert changes <= 20


def test_a_tenfold_step_is_met_within_three_seconds():
    """Every step from 8 to 80 requests a second is met; 40 % of the safe level's power is saved before it."""
    windows = looped(lambda t: 8.0 if t % 200 < 100 else 80.0, 80.0, until_s=800.0)
    for begin in (300, 500, 700):
        assert all(w.late <= 0.01 * w.finished for w in windows[begin + 3 : begin + 60])
    assert power_w(windows[650:700]) < 0.6 * power_w(windows[:4])
    assert late_fraction(windows) <= 0.01


def test_slow_replicas_are_kept_awake_for_steps_that_were_seen():
    """If waking takes five seconds, steps that keep coming are met by what stayed awake."""
    truths = [replace(truth, up_s=5.0) for truth in TRUTHS]
    windows = looped(lambda t: 8.0 if t % 100 < 50 else 80.0, 80.0, until_s=1200.0, truths=truths)
    assert late_fraction(windows[600:]) <= 0.01
    safe = looped(lambda t: 8.0 if t % 100 < 50 else 80.0, 80.0, until_s=300.0, level=0)
    assert power_w(windows[600:]) < 0.9 * power_w(safe)
