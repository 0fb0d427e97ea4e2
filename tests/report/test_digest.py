"""The digest: which runs stand behind which number."""

from __future__ import annotations

import statistics
from dataclasses import replace

import plans
import pytest

from negawatt.core.errors import ScopeMismatchError
from negawatt.core.plan import Keep
from negawatt.core.reading import Source
from negawatt.core.trial import Role
from negawatt.report.digest import digest, keeps_promise, pooled


def test_proof_runs_are_preferred_and_warm_up_is_never_used():
    """A row with proof runs rests on them alone."""
    plan = plans.verified()
    row = digest(plan)[1].row(plans.BEST_INFER)
    proof = [t.measurement for t in plan.trials if t.setting == plans.BEST_INFER and t.role is Role.PROOF]
    assert (row.role, row.n) == (Role.PROOF, 8)
    assert row.energy_j == pytest.approx(sum(m.energy_j for m in proof) / sum(m.work_units for m in proof))
    assert row.energy_sd_j == pytest.approx(statistics.stdev(m.energy_per_work_j for m in proof))


def test_warm_up_alone_makes_no_row():
    """A setting that was only warmed up was not measured."""
    plan = plans.verified()
    warm = tuple(t for t in plan.trials if t.role is Role.WARMUP)
    assert all(phase.rows == () for phase in digest(replace(plan, trials=warm)))


def test_a_single_run_has_no_spread():
    """One run gives no standard deviation over runs, not a deviation of zero."""
    row = digest(plans.verified())[1].row(plans.infer(batch=32))
    assert (row.role, row.n, row.energy_sd_j) == (Role.SEARCH, 1, None)


def test_names_of_rows():
    """The plan, its baselines and a refused candidate are named; a plan that is the baseline has both names."""
    train, infer = digest(plans.nothing())
    assert train.row(plans.COMPETENT_TRAIN).names == ("plan", "competent default")
    assert infer.row(plans.BEST_INFER).names == ("candidate",)


def test_rows_are_sorted_and_the_front_is_marked():
    """Rows come least energy first; a setting beaten in everything is off the front."""
    phase = digest(plans.verified())[1]
    energies = [row.energy_j for row in phase.rows]
    assert energies == sorted(energies)
    assert phase.row(plans.BEST_INFER).on_front
    assert not phase.row(plans.infer(batch=32)).on_front


def test_scopes_that_differ_leave_no_front():
    """Settings measured over different scopes are shown without a front, with the reason."""
    plan = plans.verified()
    first = plan.trials[0]
    less = replace(first, measurement=replace(first.measurement, readings=first.measurement.readings[:1]))
    naive_runs = {t for t in plan.trials if t.setting == first.setting}
    phase = digest(replace(plan, trials=(less, *(t for t in plan.trials if t not in naive_runs))))[0]
    assert not any(row.on_front for row in phase.rows)
    assert "different scopes" in phase.front_fault


def test_pooling_refuses_a_scope_that_comes_and_goes():
    """Runs of one setting over different scopes are not averaged."""
    m = plans.verified().trials[0].measurement
    with pytest.raises(ScopeMismatchError, match="only some runs"):
        pooled([m, replace(m, readings=m.readings[:1])])


def test_pooling_adds_energy_time_and_work():
    """Two runs put together cost what they cost together."""
    a, b = (t.measurement for t in plans.verified().trials[:2])
    both = pooled([a, b])
    assert both.energy_j == pytest.approx(a.energy_j + b.energy_j)
    assert (both.time_s, both.work_units) == (a.time_s + b.time_s, a.work_units + b.work_units)
    assert both.source is Source.COUNTER


def test_failures_are_counted_by_reason():
    """Equal failures of one setting are one line with their number."""
    assert [f.n for f in digest(plans.only_infer())[0].failures] == [2, 1]


def test_waterfall_rests_on_search_runs():
    """Steps name what was turned, change against the step before, and use search runs only."""
    plan = plans.verified()
    steps = digest(plan)[1].steps
    assert [s.change for s in steps] == ["competent default", "threads: 16 → 4", "precision: fp32 → int8"]
    search = {t.setting: t.measurement for t in plan.trials if t.role is Role.SEARCH}
    first, last = search[plans.COMPETENT_INFER], search[plans.infer(batch=256, runtime="onnx", threads=4)]
    assert steps[1].change_fraction == pytest.approx(last.energy_per_work_j / first.energy_per_work_j - 1)


def test_a_step_that_was_not_run_has_no_change():
    """A gap in the waterfall stays a gap."""
    plan = plans.verified()
    gone = plans.infer(batch=256, runtime="onnx", threads=4)
    steps = digest(replace(plan, trials=tuple(t for t in plan.trials if t.setting != gone)))[1].steps
    assert [step.change_fraction for step in steps] == [None, None, None]
    assert steps[1].measurement is None


@pytest.mark.parametrize(
    ("keep", "quality", "baseline", "kept"),
    [
        (Keep(metric="accuracy", bound=0.96, margin=0.0), 0.96, None, True),
        (Keep(metric="accuracy", bound=0.96, margin=0.0), 0.959, 0.9, False),
        (Keep(metric="accuracy", bound=None, margin=0.005), 0.966, 0.971, True),
        (Keep(metric="accuracy", bound=None, margin=0.005), 0.965, 0.971, False),
        (Keep(metric="accuracy", bound=None, margin=0.005), 0.965, None, None),
        (Keep(metric="accuracy", bound=0.96, margin=0.0), None, 0.97, None),
    ],
)
def test_promise(keep, quality, baseline, kept):
    """A bound is absolute, a margin is against the baseline, and what is unknown stays unknown."""
    assert keeps_promise(keep, quality, baseline) is kept
