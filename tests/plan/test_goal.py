"""Goals: what the competent default and the plan are chosen by."""

from __future__ import annotations

import pytest

from negawatt.core.measurement import Latency, Measurement
from negawatt.core.pace import Pace
from negawatt.core.reading import Reading, Source
from negawatt.plan.goal import Goal


def run(energy_j: float, p99_s: float = 0.1, time_s: float = 1.0, quality: float = 0.9) -> Measurement:
    """A run of one unit of work."""
    reading = Reading(
        scope="cpu", energy_j=energy_j, source=Source.COUNTER, sensor="meter",
        random_sd_j=0.0, gain_sd_fraction=0.0, offset_sd_w=0.0,
    )  # fmt: skip
    latency = Latency(p50_s=p99_s, p95_s=p99_s, p99_s=p99_s)
    return Measurement(readings=(reading,), time_s=time_s, work_units=1.0, quality=quality, latency=latency)


QUICK, FRUGAL, LATE = run(10.0, p99_s=0.02, time_s=2.0), run(7.0, p99_s=0.09, time_s=2.0), run(5.0, p99_s=0.2)


def test_work_that_waits_is_competent_when_fast():
    """The competent default is the fastest; a plan slower than accepted is none."""
    goal = Goal(pace=Pace(max_slowdown=0.1), least_quality=0.8)
    assert min((QUICK, FRUGAL, LATE), key=goal.competence) is LATE
    assert goal.against(1.0).energy(QUICK) is None
    assert goal.against(1.9).energy(QUICK) == 10.0


def test_a_server_without_a_promise_is_competent_when_it_answers_soonest():
    """The lowest p99 is the default, and the plan may lie above it by the slowdown that is accepted."""
    goal = Goal(pace=Pace(served=True, max_slowdown=0.05))
    assert min((QUICK, FRUGAL, LATE), key=goal.competence) is QUICK
    assert min((run(9.0, p99_s=0.0209), QUICK, FRUGAL), key=goal.against(0.02).energy).energy_j == 9.0


def test_a_server_that_keeps_its_promise_is_competent_when_frugal():
    """At equal promise the least energy is the default; what is late comes after all in time, the least late first."""
    goal = Goal(pace=Pace(served=True, p99_s=0.1))
    runs = (LATE, run(1.0, p99_s=0.3), QUICK, FRUGAL)
    assert [m.energy_j for m in sorted(runs, key=goal.competence)] == [7.0, 10.0, 5.0, 1.0]
    assert [m.energy_j for m in sorted(runs, key=goal.energy)] == [7.0, 10.0, 5.0, 1.0]


@pytest.mark.parametrize("pace", [Pace(), Pace(served=True), Pace(served=True, p99_s=1.0)])
def test_a_missed_quality_is_no_choice(pace):
    """Neither baseline nor plan may lose the quality."""
    goal = Goal(pace=pace, least_quality=0.95)
    assert (goal.competence(QUICK), goal.energy(QUICK)) == (None, None)


def test_a_promise_and_a_slowdown_hold_both():
    """The tighter of the two is what is accepted; without a latency there is no p99."""
    pace = Pace(served=True, p99_s=0.1, max_slowdown=0.5)
    assert (pace.allowed_s(None), pace.allowed_s(0.04), pace.allowed_s(1.0)) == (0.1, pytest.approx(0.06), 0.1)
    assert Pace(served=True).allowed_s(0.04) is None
    bare = Measurement(readings=QUICK.readings, time_s=1.0, work_units=1.0)
    with pytest.raises(ValueError, match="without a latency"):
        pace.time_s(bare)
