"""Core values: what they refuse, and the small sums they make."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import (
    LedgerError,
    NeedsPrivilegeError,
    NegawattError,
    NoMeterError,
    ScopeMismatchError,
    SensorError,
    UsageError,
    WorkloadError,
)
from negawatt.core.lever import Choice, Setting
from negawatt.core.measurement import Measurement
from negawatt.core.plan import Lifetime, PhasePlan, Plan
from negawatt.core.reading import Reading, Source
from negawatt.core.saving import Baseline, Saving, Verdict
from negawatt.core.workload import Knob, Phase, Workload
from strategies import measurements, of, settings_of, trials


class Toy:
    """A workload that can only be trained."""

    name, unit, quality = "toy", "row", "accuracy"
    knobs = (Knob(name="threads", phase=Phase.TRAIN, default=1, choices=(1, 2)),)

    def start(self, params, seed): ...

    def steps(self, params, state): ...

    def evaluate(self, state, split): ...


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NegawattError, 1),
        (UsageError, 2),
        (NoMeterError, 3),
        (NeedsPrivilegeError, 4),
        (SensorError, 1),
        (WorkloadError, 1),
        (LedgerError, 1),
        (ScopeMismatchError, 1),
    ],
)
def test_errors_have_three_parts_and_an_exit_code(error: type[NegawattError], code: int) -> None:
    """The text says what was got, why it matters and what to type; the class says how the command ends."""
    raised = error("7 bananas", "they have no joules", "use a meter")
    assert str(raised) == "7 bananas\n  why it matters: they have no joules\n  what to do: use a meter"
    assert raised.exit_code == code


@given(settings_of(), st.integers(1, 9))
def test_a_setting_has_one_choice_per_lever(setting: Setting, value: int) -> None:
    """Changing a lever replaces its choice, keeps the others, and leaves the levers sorted."""
    choice = Choice(lever="threads", phase=Phase.INFER, value=value)
    changed = setting.changed(choice)
    levers = [c.lever for c in changed.choices]
    assert changed.get("threads") == choice
    assert levers == sorted(set(levers))
    assert [c for c in changed.choices if c != choice] == [c for c in setting.choices if c.lever != "threads"]
    with pytest.raises(ValueError, match="one infer choice per lever"):
        Setting.of(Phase.INFER, [choice, choice])
    with pytest.raises(ValueError, match="one train choice per lever"):
        Setting.of(Phase.TRAIN, [choice])


def test_a_setting_prints_what_differs_from_the_tutorial() -> None:
    """The naive choices go without saying."""
    naive = Choice(lever="runtime", phase=Phase.INFER, value="sklearn", naive=True)
    chosen = Choice(lever="batch-size", phase=Phase.INFER, value=64)
    assert str(Setting.of(Phase.INFER, [naive, chosen])) == "batch-size=64"
    assert str(Setting.of(Phase.INFER, [naive])) == "(as is)"


@given(measurements())
def test_a_measurement_is_of_some_work(m: Measurement) -> None:
    """There is no measurement without readings, time or work, or with a quality that is not a number."""
    assert m.energy_per_work_j * m.work_units == pytest.approx(m.energy_j)
    assert m.time_per_work_s * m.work_units == pytest.approx(m.time_s)
    with pytest.raises(ValueError, match="at least one reading"):
        replace(m, readings=())
    with pytest.raises(ValueError, match="no work was done"):
        replace(m, work_units=0.0)
    with pytest.raises(ValueError, match="time is positive"):
        replace(m, time_s=0.0)
    with pytest.raises(ValueError, match="quality is a finite number"):
        replace(m, quality=float("nan"))


@given(trials(failures=False))
def test_a_trial_has_a_measurement_or_an_error(trial) -> None:
    """Neither, or both, is not a trial."""
    assert trial.phase is trial.setting.phase
    with pytest.raises(ValueError, match="either a measurement or an error"):
        replace(trial, measurement=None)


def test_knobs_and_workloads_are_checked_when_they_are_made() -> None:
    """A mistake in the user's class is an error that says what to write."""
    with pytest.raises(UsageError, match="add 8 to the choices of 'threads'"):
        Knob(name="threads", phase=Phase.INFER, default=8, choices=(1, 2))
    with pytest.raises(UsageError, match="object has no name, unit, quality, knobs"):
        Workload.of(object())
    with pytest.raises(UsageError, match="is a class"):
        Workload.of(Toy)
    for value in (float("nan"), None, [1]):
        with pytest.raises(UsageError, match="use text, finite numbers"):
            Knob(name="threads", phase=Phase.INFER, default=1, choices=(1, value))
    with pytest.raises(UsageError, match="use train or infer"):
        Knob(name="threads", phase="serve", default=1, choices=(1,))
    odd = type("Odd", (Toy,), {"name": "a/b"})()
    with pytest.raises(UsageError, match="name 'a/b'"):
        Workload.of(odd)
    twice = type("Twice", (Toy,), {"knobs": Toy.knobs * 2})()
    with pytest.raises(UsageError, match="knob 'threads' of the train phase is declared twice"):
        Workload.of(twice)
    idle = type("Idle", (), {"name": "idle", "unit": "row", "quality": "accuracy", "knobs": ()})()
    with pytest.raises(UsageError, match="can neither be trained nor answer requests"):
        Workload.of(idle)


def test_a_changed_workload_is_a_copy() -> None:
    """Parameters are changed on a copy; the user's object and the original stay."""
    workload = Workload.of(Toy())
    changed = workload.with_param(Phase.TRAIN, "threads", 2)
    assert (workload.params(Phase.TRAIN), changed.params(Phase.TRAIN)) == ({"threads": 1}, {"threads": 2})
    assert workload.phases() == (Phase.TRAIN,)
    assert changed.target is workload.target


def plan_with(base: Lifetime, best: Lifetime, search_j: float) -> Plan:
    """A plan about two lifetimes."""
    return replace(PLAN, lifetimes={"naive": base, "plan": best}, search_j=search_j)


PLAN = Plan(
    schema=1,
    version="0",
    created_utc="",
    workload="toy",
    path="toy.py",
    unit="row",
    keep=None,
    max_slowdown=None,
    host=None,
    phases=(),
    lifetimes={},
    search_j=0.0,
    search_time_s=0.0,
    outcomes=(),
    not_measured=(),
    trials=(),
)


def test_payback_by_hand() -> None:
    """Lifetime saving and both paybacks of an example worked by hand."""
    base = Lifetime(train_j=100.0, transform_j=0.0, infer_per_work_j=2.0, requests=200.0)
    best = Lifetime(train_j=60.0, transform_j=10.0, infer_per_work_j=1.5, requests=200.0)
    plan = plan_with(base, best, search_j=1300.0)
    assert (base.total_j, best.total_j) == (500.0, 370.0)
    assert plan.lifetime_saving(Baseline.NAIVE) == pytest.approx(0.26)
    assert plan.payback_lifetimes(Baseline.NAIVE) == pytest.approx(10.0)
    # 1300 J, less the 30 J that training saves once, at 0.5 J a request.
    assert plan.payback_requests(Baseline.NAIVE) == 2540.0
    assert plan_with(base, best, search_j=20.0).payback_requests(Baseline.NAIVE) == 0.0
    assert plan_with(best, base, search_j=1.0).payback_requests(Baseline.NAIVE) is None
    assert plan_with(base, base, search_j=1.0).payback_lifetimes(Baseline.NAIVE) is None
    assert plan.lifetime_saving(Baseline.COMPETENT) is None


@given(of(Saving))
def test_only_two_verdicts_are_claims(saving: Saving) -> None:
    """A saving is shown if it is verified or indicative, and an indicative one always says on what it rests."""
    assert saving.shown == (saving.verdict in (Verdict.VERIFIED, Verdict.INDICATIVE))
    assert (str(saving.evidence) in saving.label()) == (saving.verdict is Verdict.INDICATIVE)


def test_sources_that_read_hardware() -> None:
    """Counters and samples are measured; estimates, models and declarations are not."""
    assert [s.value for s in Source if s.measured] == ["counter", "sampled"]


def test_the_source_of_a_measurement_is_its_weakest() -> None:
    """A counter beside an estimate makes an estimate."""
    parts = [("cpu:0", Source.COUNTER), ("host/fans", Source.ESTIMATED)]
    readings = [
        Reading(scope=scope, energy_j=1.0, source=s, sensor=s, random_sd_j=0.0, gain_sd_fraction=0.0, offset_sd_w=0.0)
        for scope, s in parts
    ]
    m = Measurement(readings=tuple(readings), time_s=1.0, work_units=1.0)
    assert m.source is Source.ESTIMATED
    assert m.scopes == ("cpu:0", "host/fans")


def phase_plan(phase: Phase, saving: Saving | None) -> PhasePlan:
    """A phase whose plan differs from both baselines, with a saving against the competent one."""
    naive, competent, best = (
        Setting.of(phase, [Choice(lever="runtime", phase=phase, value=value)]) for value in ("a", "b", "c")
    )
    savings = () if saving is None else (saving,)
    return PhasePlan(
        phase=phase, naive=naive, competent=competent, setting=best, savings=savings, candidate=best, steps=(best,)
    )


def phase_saving(phase: Phase, low: float, value: float, high: float, verdict: Verdict) -> Saving:
    """A saving against the competent default, on counters."""
    return Saving(
        phase=phase, against=Baseline.COMPETENT, fraction=value, ci_low=low, ci_high=high, level_fraction=0.95, n=4,
        evidence=Source.COUNTER, verdict=verdict,
    )  # fmt: skip


def test_lifetime_interval_by_hand() -> None:
    """Half of the life is training, saved 20 % (10 to 30), half inference, saved 40 % (37.5 to 42.5)."""
    base = Lifetime(train_j=100.0, transform_j=0.0, infer_per_work_j=1.0, requests=100.0)
    best = Lifetime(train_j=80.0, transform_j=0.0, infer_per_work_j=0.6, requests=100.0)
    phases = (
        phase_plan(Phase.TRAIN, phase_saving(Phase.TRAIN, 0.1, 0.2, 0.3, Verdict.VERIFIED)),
        phase_plan(Phase.INFER, phase_saving(Phase.INFER, 0.375, 0.4, 0.425, Verdict.VERIFIED)),
    )
    plan = replace(PLAN, lifetimes={"competent": base, "plan": best}, phases=phases)
    saving = plan.proven_lifetime_saving(Baseline.COMPETENT)
    assert saving is not None
    half = 0.05 + 0.0125
    assert (saving.fraction, saving.ci_low, saving.ci_high) == pytest.approx((0.3, 0.3 - half, 0.3 + half))
    assert saving.verdict is Verdict.VERIFIED
    train = plan.proven_lifetime_saving(Baseline.COMPETENT, (Phase.TRAIN,))
    infer = plan.proven_lifetime_saving(Baseline.COMPETENT, (Phase.INFER,))
    assert (train.fraction, train.ci_low, train.ci_high) == pytest.approx((0.1, 0.05, 0.15))
    assert (infer.fraction, infer.ci_low, infer.ci_high) == pytest.approx((0.2, 0.1875, 0.2125))


def test_a_life_with_one_phase_limited() -> None:
    """The transformation belongs to inference; what both phases save apart is what they save together."""
    base = Lifetime(train_j=100.0, transform_j=5.0, infer_per_work_j=1.0, requests=100.0)
    best = Lifetime(train_j=80.0, transform_j=7.0, infer_per_work_j=0.6, requests=100.0)
    plan = replace(PLAN, lifetimes={"competent": base, "plan": best})
    train, infer = (plan.limited(Baseline.COMPETENT, (phase,)) for phase in (Phase.TRAIN, Phase.INFER))
    assert (train.total_j, infer.total_j) == (185.0, 167.0)
    assert plan.limited(Baseline.COMPETENT, tuple(Phase)) == best
    assert plan.limited(Baseline.COMPETENT, ()) == base
    assert base.total_j - best.total_j == (base.total_j - train.total_j) + (base.total_j - infer.total_j)
    assert plan.limited(Baseline.NAIVE, (Phase.TRAIN,)) is None


def test_one_unproven_phase_leaves_the_other_its_claim() -> None:
    """Where only training was proven, training limited is a claim, and inference limited and both are none."""
    base = Lifetime(train_j=100.0, transform_j=0.0, infer_per_work_j=1.0, requests=100.0)
    best = Lifetime(train_j=80.0, transform_j=0.0, infer_per_work_j=0.6, requests=100.0)
    proven = phase_saving(Phase.TRAIN, 0.1, 0.2, 0.3, Verdict.VERIFIED)
    phases = (phase_plan(Phase.TRAIN, proven), phase_plan(Phase.INFER, None))
    plan = replace(PLAN, lifetimes={"competent": base, "plan": best}, phases=phases)
    assert plan.proven_lifetime_saving(Baseline.COMPETENT, (Phase.TRAIN,)).fraction == pytest.approx(0.1)
    assert plan.proven_lifetime_saving(Baseline.COMPETENT, (Phase.INFER,)) is None
    assert plan.proven_lifetime_saving(Baseline.COMPETENT) is None


def test_no_lifetime_claim_without_a_proof_of_every_phase() -> None:
    """A phase that was not compared, or whose saving was refused, leaves the life unproven."""
    base = Lifetime(train_j=100.0, transform_j=0.0, infer_per_work_j=1.0, requests=100.0)
    for unproven in (None, phase_saving(Phase.TRAIN, -0.1, 0.2, 0.5, Verdict.NOT_SHOWN)):
        plan = replace(PLAN, lifetimes={"competent": base, "plan": base}, phases=(phase_plan(Phase.TRAIN, unproven),))
        assert plan.proven_lifetime_saving(Baseline.COMPETENT) is None
