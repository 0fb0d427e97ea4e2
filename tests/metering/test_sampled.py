"""Sampled power: the integral, and an error that covers a step wherever it falls and however late it shows."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from negawatt.core.reading import Source
from negawatt.metering.sampled import UNSEEN_FRACTION, Sample, SampledProbe, Sampling, Steady
from negawatt.testing import ManualClock

KNOWN = Sampling(period_s=1.0, delay_s=1.0, gain_sd_fraction=0.0, steady_limit_s=60.0)


def test_a_constant_power_is_exact() -> None:
    """Power that does not change is integrated exactly, and the error left is for what nobody saw."""
    start, end = Sample(time_s=1.0, power_w=50.0), Sample(time_s=3.0, power_w=50.0)
    assert KNOWN.energy_j(start, end) == 100.0
    assert KNOWN.random_sd_j(start, end) == pytest.approx(UNSEEN_FRACTION * 100.0)


def test_the_interval_covers_a_step_in_19_of_20_places() -> None:
    """Over all places of a step, and all delays up to the stated one, at least 95 % of the truths are inside."""
    inside = total = 0
    for place in range(100):
        for late in range(20):
            step_s, late_s = 5 + (place + 0.5) / 100, (late + 0.5) / 20 * KNOWN.delay_s
            seen = [Sample(time_s=t, power_w=300.0 if t >= step_s + late_s else 50.0) for t in range(12)]
            pairs = list(pairwise(seen))
            energy_j = sum(KNOWN.energy_j(a, b) for a, b in pairs)
            sd_j = math.hypot(*(KNOWN.random_sd_j(a, b) for a, b in pairs))
            truth_j = 50.0 * step_s + 300.0 * (11 - step_s)
            inside += abs(energy_j - truth_j) <= 1.96 * sd_j
            total += 1
    assert inside / total >= 0.95


def test_a_gap_and_a_stuck_number_are_flagged() -> None:
    """Samples far apart and a number that never changes are said, and 0 W of something switched off is not."""
    far = KNOWN.flags(Sample(time_s=0.0, power_w=50.0), Sample(time_s=30.0, power_w=51.0))
    assert ["not read for 30 s" in flag for flag in far] == [True]
    stuck = Sample(time_s=1.0, power_w=50.0, steady_s=61.0)
    assert "exactly 50 W for 61 s" in KNOWN.flags(Sample(time_s=0.0, power_w=50.0), stuck)[0]
    off = Sample(time_s=1.0, power_w=0.0, steady_s=61.0)
    assert KNOWN.flags(Sample(time_s=0.0, power_w=0.0), off) == ()


def test_steady_counts_from_the_first_of_equal_numbers() -> None:
    """A change starts anew."""
    steady = Steady()
    assert [steady.seconds(t, v) for t, v in ((0.0, 1.0), (2.0, 1.0), (3.0, 2.0), (7.0, 2.0))] == [0.0, 2.0, 0.0, 4.0]


def test_a_probe_reads_samples_and_says_what_it_knows() -> None:
    """Source, scope, errors and flags of the readings are those that were given."""
    clock = ManualClock()
    probe = SampledProbe(sensor="s", scope="host", read=lambda: 10.0, known=KNOWN, clock=clock, flags=("doubtful",))
    start = probe.snapshot()
    clock.advance(2.0)
    reading = probe.reading(start, probe.snapshot())
    assert (reading.energy_j, reading.source, reading.flags) == (20.0, Source.SAMPLED, ("doubtful",))
    assert (reading.scope, reading.sensor, probe.period_s) == ("host", "s", 1.0)
