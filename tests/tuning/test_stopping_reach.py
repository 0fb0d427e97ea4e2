"""The lowest loss that a single run may still come to."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.tuning.reach import FIRST, lowest_in_reach
from negawatt.tuning.stopping import Curve


@given(exponent=st.floats(0.05, 3), floor=st.floats(0, 1), age=st.integers(FIRST, 49))
def test_power_laws_stay_in_reach(exponent: float, floor: float, age: int) -> None:
    """A curve that falls as a power of the epoch never ends below what was in its reach."""
    losses = [floor + epoch**-exponent for epoch in range(1, 51)]
    assert lowest_in_reach(Curve(losses[:age]), 50, optimism=1.5) <= losses[-1] + 1e-12


def test_a_constant_curve_stays_where_it_is() -> None:
    """Without gain and noise nothing more is in reach."""
    assert lowest_in_reach(Curve([0.7] * 10), 50) == 0.7


def test_the_ends() -> None:
    """At first anything is in reach; at the end, and after a loss that is no number, only what there is."""
    assert lowest_in_reach(Curve([1.0] * (FIRST - 1)), 50) == -math.inf
    assert lowest_in_reach(Curve([1.0, 0.5, 0.4, 0.3]), 4) == 0.3
    assert lowest_in_reach(Curve([1.0, math.nan]), 50) == 1.0
    assert lowest_in_reach(Curve([math.nan]), 50) == math.inf


@pytest.mark.parametrize(("optimism", "epochs"), [(0.0, 5), (math.inf, 5), (1.0, 0)])
def test_numbers_without_meaning_are_refused(optimism: float, epochs: int) -> None:
    """Optimism and epochs are positive."""
    with pytest.raises(UsageError, match="optimism"):
        lowest_in_reach(Curve(), epochs, optimism=optimism)
