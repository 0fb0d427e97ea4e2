"""Laws of energy counters."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import SensorError
from negawatt.metering.counters import Count, Counter, Watch

RANGE = 262_143_328_850
COUNTER = Counter(name="c", unit_j=1e-6, refresh_s=1e-3, limit_w=2000.0, modulus=RANGE)


@given(
    start=st.integers(0, RANGE - 1),
    counts=st.lists(st.integers(1, 30_000_000), min_size=1, max_size=20),
)
def test_a_wrap_changes_nothing(start: int, counts: list[int]) -> None:
    """Wherever the counter starts, the energy of a window is the same, in one piece or folded from many."""
    values = [start]
    for count in counts:
        values.append(values[-1] + count)
    reads = [Count(time_s=float(i), count=value % RANGE) for i, value in enumerate(values)]
    pieces_j = math.fsum(COUNTER.energy_j(a, b) for a, b in pairwise(reads))
    assert math.isclose(pieces_j, sum(counts) * 1e-6, rel_tol=1e-9)
    assert math.isclose(COUNTER.energy_j(reads[0], reads[-1]), pieces_j, rel_tol=1e-9)


@given(power_w=st.floats(1.0, 2000.0))
def test_the_period_sees_every_wrap(power_w: float) -> None:
    """Read every period, no load below the limit wraps the counter twice in between."""
    assert COUNTER.period_s is not None
    assert power_w * COUNTER.period_s < RANGE * 1e-6


def test_a_counter_without_modulus_needs_no_polling() -> None:
    """A counter that never wraps has no period, and going back is an error."""
    counter = Counter(name="gpu", unit_j=1e-3, refresh_s=0.1, limit_w=5000.0)
    assert counter.period_s is None
    with pytest.raises(SensorError, match="gpu went from 10 to 9"):
        counter.energy_j(Count(time_s=0.0, count=10), Count(time_s=1.0, count=9))


def test_a_reset_is_not_taken_for_a_wrap() -> None:
    """A counter that falls to 0 far from its end is an error and not 262 kJ."""
    with pytest.raises(SensorError, match="reset"):
        COUNTER.energy_j(Count(time_s=0.0, count=5_000_000), Count(time_s=1.0, count=0))


def test_a_frozen_counter_is_an_error() -> None:
    """A counter that stands still for seconds is an error and not 0 J."""
    with pytest.raises(SensorError, match="stood still"):
        COUNTER.energy_j(Count(time_s=0.0, count=7), Count(time_s=3.0, count=7))


def test_the_edge_error_is_that_of_uniform_ages() -> None:
    """At 100 W and a refresh of 1 ms, two edges are off by 100 W * 1 ms / sqrt(6)."""
    assert COUNTER.edge_sd_j(100.0, 100.0) == pytest.approx(0.1 / math.sqrt(6))


def test_the_edge_error_holds_a_mean_that_does_not_cancel() -> None:
    """With no power at one edge, the missing joules are uniform in [0, 0.1], root mean square 0.1 / sqrt(3)."""
    assert COUNTER.edge_sd_j(100.0, 0.0) == pytest.approx(0.1 / math.sqrt(3))


@given(counts=st.lists(st.integers(0, 30_000_000), min_size=2, max_size=30), start=st.integers(0, RANGE - 1))
def test_a_watch_adds_up_over_any_number_of_wraps(counts: list[int], start: int) -> None:
    """Any two states of a watch differ by the joules between them, however often the counter wrapped."""
    small = Counter(name="c", unit_j=1e-6, refresh_s=1e-3, limit_w=100.0, modulus=40_000_000)
    watch, value, states = Watch(small), start, []
    for second, count in enumerate(counts):
        value += count
        states.append(watch.see(float(second), value % 40_000_000))
    for place, state in enumerate(states):
        later_j = sum(counts[place + 1 :]) * 1e-6
        if state.count != states[-1].count or later_j > 0:
            assert math.isclose(small.energy_j(state, states[-1]), later_j, rel_tol=1e-9, abs_tol=1e-9)


def test_a_reset_between_two_looks_is_remembered() -> None:
    """A counter that was set back and has grown past its old value since is still an error."""
    counter = Counter(name="c", unit_j=1.0, refresh_s=0.1, limit_w=100.0)
    watch = Watch(counter)
    start = watch.see(0.0, 10)
    for second, count in ((1.0, 50), (2.0, 0), (3.0, 40)):
        watch.see(second, count)
    with pytest.raises(SensorError, match="reset"):
        counter.energy_j(start, watch.see(4.0, 80))


def test_a_standstill_in_the_middle_is_flagged() -> None:
    """A watch says for how long a counter stood still, and says nothing of one that only waits for its refresh."""
    counter = Counter(name="c", unit_j=1.0, refresh_s=0.1, limit_w=100.0, late_s=0.5)
    watch = Watch(counter)
    start = watch.see(0.0, 0)
    fine = watch.see(0.4, 0)
    assert counter.flags(start, fine) == ()
    watch.see(1.0, 30)
    watch.see(2.0, 30)
    (flag,) = counter.flags(start, watch.see(3.0, 60))
    assert "stood still for 0.50 s" in flag


def test_states_of_two_watches_are_subtracted_as_plain_reads() -> None:
    """A state that another process wrote down is good for one wrap, and has no flags."""
    counter = Counter(name="c", unit_j=1.0, refresh_s=0.1, limit_w=100.0, modulus=1000)
    start, end = Watch(counter).see(0.0, 990), Watch(counter).see(1.0, 20)
    assert start.watch != end.watch
    assert counter.energy_j(start, end) == 30.0
    assert counter.flags(start, end) == ()


def test_reads_out_of_order_do_no_harm() -> None:
    """A thread that comes late with an older read gets the newer state."""
    watch = Watch(COUNTER)
    watch.see(0.0, 5)
    newer = watch.see(2.0, 9)
    assert watch.see(1.0, 7) == newer
