"""How many requests come, and how many may come."""

from __future__ import annotations

import math
import random

import pytest

from negawatt.tuning.arrivals import Arrivals, Foresight, surely


def test_a_step_is_seen_within_two_seconds_and_chance_is_averaged():
    """A steady rate is averaged over ten seconds; a tenfold step is taken over at once."""
    rng, arrivals = random.Random(1), Arrivals()
    for _ in range(30):
        arrivals.add(sum(rng.random() < 0.1 for _ in range(100)), 1.0)
    assert arrivals.rate_per_s == pytest.approx(10.0, rel=0.3)
    for _ in range(2):
        arrivals.add(100, 1.0)
    assert arrivals.rate_per_s == pytest.approx(100.0)
    assert arrivals.time_s == 32.0


def test_windows_may_be_of_any_length():
    """The estimate is per second, whatever the windows; what came lately is counted by time."""
    arrivals = Arrivals(keep_s=5.0)
    for time_s in (0.25, 0.5, 2.0, 1.0, 4.0):
        assert arrivals.add(8.0 * time_s, time_s) == pytest.approx(8.0)
    assert arrivals.within(3.0) == pytest.approx(32.0)
    arrivals.forget()
    assert arrivals.add(3.0, 1.0) == pytest.approx(3.0)


def test_what_followed_the_like_of_now_is_foreseen():
    """After ten cycles the end of each lull is expected in a lull, and no rise at the top."""
    foresight = Foresight(10.0, slow=True)
    for second in range(1000):
        foresight.add(float(second), 0.0 if second % 80 < 40 else 64.0)
    assert foresight.upper(0.0, 0.95) == pytest.approx(64.0)
    assert foresight.upper(64.0, 0.95) == pytest.approx(64.0)


def test_what_is_slow_to_mend_expects_the_worst_at_first():
    """Without history anything may come; with a little, more than was ever seen."""
    foresight = Foresight(10.0, slow=True)
    foresight.add(0.0, 5.0)
    assert foresight.upper(5.0, 0.9) == math.inf
    for second in range(1, 100):
        foresight.add(float(second), 5.0)
    assert foresight.upper(5.0, 0.9) > 5.0
    assert Foresight(3.0, slow=False).upper(100.0, 0.9) == pytest.approx(131.0, rel=0.01)


def test_chance_is_not_a_surge():
    """What three standard deviations explain is taken off."""
    assert surely(0.0, 0.5) == 0.0
    assert surely(16.0, 0.5) == 0.0
    assert surely(400.0, 0.5) == pytest.approx(315.1, abs=0.1)
