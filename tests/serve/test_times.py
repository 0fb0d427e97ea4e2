"""A distribution of durations in little memory is never more than a hundredth off, and never below the truth."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from negawatt.serve.times import Times


@given(st.lists(st.floats(1e-5, 1e4), min_size=1), st.floats(0.01, 1.0))
def test_quantiles_are_within_a_hundredth(times_s, fraction):
    """The quantile lies between that of the list and 1 % more."""
    times = Times()
    for time_s in times_s:
        times.add(time_s)
    exact_s = sorted(times_s)[max(1, math.ceil(fraction * len(times_s))) - 1]
    got_s = times.quantile(fraction)
    assert got_s is not None
    assert exact_s * (1 - 1e-9) <= got_s <= exact_s * 1.01 * (1 + 1e-9)


@given(st.lists(st.floats(0.0, 1e5)), st.lists(st.floats(0.0, 1e5)))
def test_what_was_removed_leaves_nothing(kept_s, gone_s):
    """The distribution is that of the others alone."""
    times, others = Times(), Times()
    for time_s in gone_s + kept_s:
        times.add(time_s)
    for time_s in gone_s:
        times.remove(time_s)
    for time_s in kept_s:
        others.add(time_s)
    assert (times.count, times._bins) == (others.count, others._bins)


def test_extremes_are_kept():
    """Nothing gives None; times below 10 µs and above hours are counted at the ends."""
    times = Times()
    assert times.quantile(0.99) is None
    times.add(0.0)
    times.add(1e9)
    assert times.count == 2
    assert (times.quantile(0.5) or 0) <= 1.01e-5
    assert (times.quantile(1.0) or 0) > 1e4
