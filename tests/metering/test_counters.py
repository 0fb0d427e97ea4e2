"""Laws of energy counters."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import SensorError
from negawatt.metering.counters import Count, Counter

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
