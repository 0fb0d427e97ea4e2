"""Old power curves get coarser; the energy under them stays, and records are not touched."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import LedgerError
from negawatt.ledger.store import Ledger

LATER = datetime.now(UTC) + timedelta(days=15)


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def energy_j(samples):
    return math.fsum(sample.power_w * sample.span_s for sample in samples)


def test_a_curve_is_read_back(ledger):
    """Points come back by scope and time, each with the span that its mean is over; later points go on behind."""
    ledger.add_samples("r", [(0.5, 10.0), (2.0, 20.0)])
    assert ledger.add_samples("r", [(3.0, 30.0)]) == 1
    ledger.add_samples("r", [(1.0, 7.0)], scope="cpu")
    points = [(s.scope, s.time_s, s.power_w, s.span_s) for s in ledger.samples("r")]
    assert points == [("", 0.5, 10.0, 0.5), ("", 2.0, 20.0, 1.5), ("", 3.0, 30.0, 1.0), ("cpu", 1.0, 7.0, 1.0)]
    assert ledger.samples("other") == []


@pytest.mark.parametrize("points", [[(0.0, 1.0)], [(1.0, 1.0), (1.0, 2.0)], [(1.0, math.nan)], [(math.inf, 1.0)]])
def test_what_is_no_curve_is_refused(ledger, points):
    """Times that do not increase and numbers that are not finite raise, and leave nothing."""
    with pytest.raises(LedgerError, match=r"a power curve with the point"):
        ledger.add_samples("r", points)
    assert ledger.samples("r") == []


def test_recent_points_are_kept(ledger):
    """Points younger than the limit stay as they are."""
    ledger.add_samples("r", [(0.1 * (i + 1), 5.0) for i in range(100)])
    assert ledger.rollup().points == 0
    assert ledger.rollup(datetime.now(UTC) + timedelta(days=13)).points == 0
    assert len(ledger.samples("r")) == 100


def test_old_points_become_means_of_a_minute(ledger):
    """Ten minutes at 10 Hz become ten points with the mean power of their minute; a dry run only counts."""
    curve = [(0.1 * (i + 1), 100.0 + i // 600) for i in range(6000)]
    ledger.add_samples("r", curve)
    ledger.append("run", {}, energy_j=1.0)
    before = energy_j(ledger.samples("r"))
    counted = ledger.rollup(LATER, dry_run=True)
    assert (counted.points, counted.means) == (6000, 10)
    assert len(ledger.samples("r")) == 6000
    assert ledger.rollup(LATER) == counted
    samples = ledger.samples("r")
    assert [round(s.power_w, 9) for s in samples] == [100.0 + i for i in range(10)]
    assert [round(s.time_s, 6) for s in samples] == [60.0 * (i + 1) for i in range(10)]
    assert energy_j(samples) == pytest.approx(before, rel=1e-13)
    assert ledger.rollup(LATER).points == 0
    assert ledger.verify().fault is None


spans = st.lists(st.tuples(st.floats(0.01, 200.0), st.floats(0.0, 1000.0)), min_size=1, max_size=40)


@given(spans=spans, cut=st.integers(0, 40))
def test_rolling_up_keeps_the_energy(tmp_path_factory, spans, cut):
    """For any curve, added in one or two pieces: the energy and the end of it stay, and doing it again does nothing."""
    time_s, curve = 0.0, []
    for span_s, power_w in spans:
        time_s += span_s
        curve.append((time_s, power_w))
    with Ledger.open(tmp_path_factory.mktemp("ledger") / "ledger.sqlite") as ledger:
        ledger._db.execute("PRAGMA synchronous = OFF")
        ledger.add_samples("r", curve[:cut])
        ledger.add_samples("r", curve[cut:])
        before = ledger.samples("r")
        ledger.rollup(LATER)
        after = ledger.samples("r")
        assert energy_j(after) == pytest.approx(energy_j(before), rel=1e-12, abs=1e-9)
        assert math.fsum(s.span_s for s in after) == pytest.approx(time_s, rel=1e-12)
        assert after[-1].time_s == curve[-1][0]
        assert ledger.rollup(LATER).points == 0
        assert ledger.samples("r") == after
