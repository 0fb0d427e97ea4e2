"""Sampled power: the integral, and an error that covers what happened between samples and what shows late."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.metering.sampled import UNSEEN_FRACTION, PowerWatch, Sample, Shown, Stretch


def watched(power: Callable[[float], float], until_s: float, step_s: float = 0.02, **shown: float) -> Stretch:
    """From the first look to the last."""
    known = Shown(**shown)
    watch, looks = PowerWatch(known), round(until_s / step_s)
    samples = [watch.see(look * step_s, power(look * step_s)) for look in range(looks + 1)]
    return Stretch(shown=known, start=samples[0], end=samples[-1])


def test_a_constant_power_is_exact() -> None:
    """Power that does not change is integrated exactly; only a change that does not show yet may be missing."""
    steady = watched(lambda _: 50.0, 3.0)
    assert steady.energy_j == pytest.approx(150.0)
    assert (steady.inside_sd_j, steady.edges_j()[0]) == (0.0, 0.0)
    assert steady.edges_j() == (0.0, pytest.approx(UNSEEN_FRACTION * 50.0 * 0.1))


@given(powers=st.lists(st.floats(0.0, 500.0), min_size=3, max_size=20), at=st.integers(1, 18))
def test_the_integral_is_additive(powers: list[float], at: int) -> None:
    """Wherever a window is split, its sampled parts add up to the whole."""
    watch = PowerWatch(Shown())
    samples = [watch.see(float(second), power_w) for second, power_w in enumerate(powers)]
    middle = samples[min(at, len(samples) - 2)]
    parts_j = middle.sampled_j - samples[0].sampled_j + samples[-1].sampled_j - middle.sampled_j
    assert parts_j == pytest.approx(samples[-1].sampled_j - samples[0].sampled_j)


@pytest.mark.parametrize("mean_s", [0.0, 1.0])
def test_the_interval_covers_a_step_in_19_of_20_places(mean_s: float) -> None:
    """Over all places of a step, and all delays up to the stated one, at least 95 % of the truths are inside."""
    inside = total = 0
    for place in range(40):
        for late in range(20):
            step_s = 5 + (place + 0.5) / 40 * 4
            late_s = (late + 0.5) / 20 * mean_s + 0.05

            def shown_w(now_s: float, seen_s: float = step_s + late_s) -> float:
                return 300.0 if now_s // 0.1 * 0.1 >= seen_s else 50.0

            stretch = watched(shown_w, 11.0, 0.05, mean_s=mean_s)
            sd_j = (stretch.inside_sd_j**2 + stretch.edges_j()[0] ** 2) ** 0.5
            truth_j = 50.0 * step_s + 300.0 * (11 - step_s)
            inside += abs(stretch.energy_j - truth_j) <= 1.96 * sd_j
            total += 1
    assert inside / total >= 0.95


def test_the_pace_is_learnt() -> None:
    """A sensor that shows a new number every 50 ms is known to after a while; one that never changes is not."""
    assert watched(lambda now_s: now_s // 0.05, 2.0, 0.01).late_s == pytest.approx(0.06, abs=0.011)
    assert watched(lambda _: 7.0, 2.0, 0.01, pace_s=0.4).late_s == 0.4


@pytest.mark.parametrize(("last_w", "most_j"), [(60.1, 1.8), (72.0, 22.8), (48.0, 4.8)])
def test_a_jump_that_has_just_begun_may_hide_much(last_w: float, most_j: float) -> None:
    """A last number far above all before may begin a jump of any height, and one below them a fall to 0 W."""

    def power_w(now_s: float) -> float:
        tick = round(now_s * 100) // 10
        return last_w if tick >= 89 else 60.0 + tick % 2 / 10

    assert watched(power_w, 8.96).edges_j()[1] == pytest.approx(most_j, rel=0.01)


def test_what_was_not_read_is_said() -> None:
    """A gap of half a minute is a flag; the same seconds with a look in each are not."""
    watch = PowerWatch(Shown())
    start = watch.see(0.0, 50.0)
    assert "not read for 30 s" in Stretch(shown=Shown(), start=start, end=watch.see(30.0, 51.0)).flags()[0]
    assert watched(lambda now_s: now_s, 30.0, 1.0).flags() == ()


def test_a_number_that_never_changes_is_suspicious() -> None:
    """Longer than usual, and than hardware at rest shows one, is a flag; 0 W of something switched off is not."""

    def stuck_from(at_s: float, power_w: float = 50.0, **shown: float) -> tuple[str, ...]:
        return watched(lambda now_s: power_w * (min(at_s, now_s)), 20.0, 0.1, **shown).flags()

    assert "may be stuck" in stuck_from(10.0)[0]
    assert stuck_from(19.8) == ()
    assert stuck_from(10.0, rest_s=60.0) == ()
    assert "may be stuck" in watched(lambda _: 50.0, 20.0, 0.1, rest_s=15.0).flags()[0]
    assert watched(lambda _: 0.0, 20.0, 0.1, rest_s=15.0).flags() == ()


def test_looks_out_of_order_do_no_harm() -> None:
    """A thread that comes late with an older look gets the newer sample."""
    watch = PowerWatch(Shown())
    watch.see(0.0, 5.0)
    newer: Sample = watch.see(2.0, 9.0)
    assert watch.see(1.0, 7.0) == newer


def test_no_two_watches_have_one_name() -> None:
    """Names go into files that other processes read, so they differ whatever the process."""
    assert len({PowerWatch(Shown()).name for _ in range(1000)}) == 1000
