"""Proof: what may be claimed, and when it stops."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import NegawattError, ScopeMismatchError, SensorError, UsageError
from negawatt.core.measurement import Latency, Measurement
from negawatt.core.pace import Pace
from negawatt.core.plan import Keep
from negawatt.core.reading import Reading, Source
from negawatt.core.saving import Baseline, Interval, Saving, Verdict
from negawatt.core.workload import Phase
from negawatt.verify.proof import INTERIM_ALPHA, PLAN, Proof

BASE = str(Baseline.COMPETENT)
NAIVE = str(Baseline.NAIVE)
KEEP = Keep(metric="accuracy", bound=None, margin=0.01)
WIGGLE = (0.010, -0.012, 0.004, -0.009, 0.007, 0.002, -0.006, 0.011, -0.003, -0.004)  # in ln(J), of a block


def run(
    energy_j: float,
    *,
    time_s: float = 10.0,
    quality: float | None = 0.97,
    source: Source = Source.COUNTER,
    offset_sd_w: float = 0.0,
    corners_j: tuple[float, ...] = (),
    p99_s: float = 0.1,
) -> Measurement:
    """A run of one unit of work on one sensor."""
    reading = Reading(
        scope="cpu:0/package",
        energy_j=energy_j,
        source=source,
        sensor="meter",
        random_sd_j=0.0,
        gain_sd_fraction=0.1,
        offset_sd_w=offset_sd_w,
        corners_j=corners_j,
    )
    latency = Latency(p50_s=p99_s / 3, p95_s=p99_s / 2, p99_s=p99_s)
    return Measurement(readings=(reading,), time_s=time_s, work_units=1.0, quality=quality, latency=latency)


Make = Callable[[int], Measurement]
"""From the number of the block to a run in it."""


def proof_of(arms: Mapping[str, Make], *, blocks: int = 99, keep: Keep = KEEP, **options: object) -> Proof:
    """A proof fed with made runs until it stops, or some number of blocks is told."""
    proof = Proof(phase=Phase.INFER, arms=tuple(arms), keep=keep, seed=1, **options)
    while proof.blocks < blocks and (order := proof.next_block()) is not None:
        n = proof.blocks
        proof.tell([(arm, arms[arm](n)) for arm in order])
    return proof


def noisy(level_j: float, **fixed: object) -> Make:
    """Runs whose energy differs a little from block to block."""
    return lambda n: run(level_j * math.exp(WIGGLE[n]), **fixed)


def steady(level_j: float, **fixed: object) -> Make:
    """Runs that are all alike."""
    return lambda n: run(level_j, **fixed)


def saving_of(plan: Make, base: Make, **options: object) -> Saving:
    """The saving after all blocks, without interim looks."""
    proof = proof_of({PLAN: plan, BASE: base}, looks=(), **options)
    return proof.saving(Baseline.COMPETENT)


def test_interval_by_hand() -> None:
    """The interval is exp of mean ± t s / sqrt(n) over blocks, computed here by numpy and scipy."""
    saving = saving_of(noisy(70.0), steady(100.0))
    r = [-math.log(0.7) - w for w in WIGGLE]
    low, high = stats.t.interval(0.95, len(r) - 1, loc=sum(r) / len(r), scale=stats.sem(r))
    assert saving.fraction == pytest.approx(1 - math.exp(-sum(r) / len(r)))
    assert (saving.ci_low, saving.ci_high) == pytest.approx((1 - math.exp(-low), 1 - math.exp(-high)), rel=1e-9)
    assert (saving.verdict, saving.n, saving.level_fraction) == (Verdict.VERIFIED, 10, 0.95)
    assert saving.reasons == ()
    assert from_json(Saving, to_json(saving)) == saving


def test_a_large_saving_stops_at_the_first_look() -> None:
    """30 % with 1 % noise is decided after four blocks, with the wide interval of an early look."""
    proof = proof_of({PLAN: noisy(70.0), BASE: steady(100.0)})
    saving = proof.saving(Baseline.COMPETENT)
    assert (proof.blocks, proof.next_block(), saving.verdict) == (4, None, Verdict.VERIFIED)
    r = [-math.log(0.7) - w for w in WIGGLE[:4]]
    half = stats.t.ppf(1 - INTERIM_ALPHA / 2, 3) * stats.sem(r)
    assert saving.ci_low == pytest.approx(1 - math.exp(-(sum(r) / 4 - half)))


def test_a_costly_setting_stops_early_as_worse() -> None:
    """A setting that needs 30 % more energy is called worse, with a reason in numbers."""
    proof = proof_of({PLAN: noisy(130.0), BASE: steady(100.0)})
    saving = proof.saving(Baseline.COMPETENT)
    assert (proof.blocks, saving.verdict) == (4, Verdict.WORSE)
    assert saving.reasons == ("It used 29.8% more energy per unit of work (19.1% to 41.3%, 4 blocks).",)


def test_no_saving_runs_to_the_end_and_is_not_shown() -> None:
    """Two alike arms use all blocks, and the reason names the interval."""
    proof = proof_of({PLAN: noisy(100.0), BASE: steady(100.0)})
    saving = proof.saving(Baseline.COMPETENT)
    assert (proof.blocks, saving.verdict) == (10, Verdict.NOT_SHOWN)
    assert "includes zero after 10 blocks" in saving.reasons[0]
    with pytest.raises(UsageError, match="the proof is over"):
        proof.tell([(PLAN, run(1.0)), (BASE, run(1.0)), (BASE, run(1.0)), (PLAN, run(1.0))])


def test_the_looks_share_out_five_percent() -> None:
    """The final look has what the interim looks left, wherever the budget ends."""
    arms = {PLAN: noisy(99.9), BASE: steady(100.0)}
    for blocks, looks_made in ((3, 0), (5, 1), (7, 2), (9, 3), (10, 3)):
        proof = proof_of(arms, blocks=blocks)
        proof.stop_now()
        saving = proof.saving(Baseline.COMPETENT)
        r = [-math.log(0.999) - w for w in WIGGLE[:blocks]]
        half = stats.t.ppf(1 - (0.05 - looks_made * INTERIM_ALPHA) / 2, blocks - 1) * stats.sem(r)
        assert saving.ci_low == pytest.approx(1 - math.exp(-(sum(r) / blocks - half)), abs=1e-12)
        assert proof.next_block() is None


def test_there_is_no_look_between_looks() -> None:
    """Asking for the saving where no look was agreed on is refused, until the final analysis."""
    proof = proof_of({PLAN: noisy(50.0), BASE: steady(100.0)}, blocks=3)
    with pytest.raises(UsageError, match="a look after 3 blocks, which is none of the looks agreed on"):
        proof.saving(Baseline.COMPETENT)
    proof.stop_now()
    assert proof.saving(Baseline.COMPETENT).shown


@pytest.mark.parametrize("level_j", [50.0, 200.0])
def test_two_blocks_show_nothing(level_j: float) -> None:
    """With two blocks there is an interval and no claim, better or worse; with fewer there is not even that."""
    arms = {PLAN: steady(level_j), BASE: steady(100.0)}
    proof = proof_of(arms, blocks=2)
    proof.stop_now()
    saving = proof.saving(Baseline.COMPETENT)
    assert saving.verdict is Verdict.NOT_SHOWN
    assert saving.reasons == ("Only 2 blocks were run; at least 3 are needed.",)
    for blocks in (0, 1):
        short = proof_of(arms, blocks=blocks)
        short.stop_now()
        with pytest.raises(NegawattError, match=rf"{blocks} complete block\(s\) of the infer phase"):
            short.saving(Baseline.COMPETENT)


def test_the_headline_is_the_competent_baseline() -> None:
    """With both baselines the competent one decides when to stop, and both are stated on the same blocks."""
    proof = proof_of({PLAN: noisy(99.0), BASE: steady(100.0), NAIVE: steady(400.0)})
    naive, competent = proof.saving(Baseline.NAIVE), proof.saving(Baseline.COMPETENT)
    assert (proof.blocks, naive.n, competent.n) == (10, 10, 10)
    assert naive.verdict is Verdict.VERIFIED
    assert naive.fraction > 0.7
    fallback = proof.saving(Baseline.NAIVE, of=BASE)
    assert (fallback.against, fallback.fraction) == (Baseline.NAIVE, pytest.approx(0.75))
    alone = proof_of({PLAN: noisy(70.0), NAIVE: steady(100.0)})
    assert (alone.blocks, alone.saving(Baseline.NAIVE).verdict) == (4, Verdict.VERIFIED)
    with pytest.raises(UsageError, match="the saving of 'plan' against 'competent', of the arms plan, naive"):
        alone.saving(Baseline.COMPETENT)


def test_meter_offset_widens_the_interval() -> None:
    """A sensor's unknown constant counts by the difference of T/E of the two sides, and not at all if that is nil."""
    same = saving_of(noisy(70.0, time_s=7.0, offset_sd_w=0.5), steady(100.0, time_s=10.0, offset_sd_w=0.5))
    none = saving_of(noisy(70.0), steady(100.0))
    assert same.ci_low == pytest.approx(none.ci_low, abs=1e-4)  # T/E differs by the noise of the blocks only
    slower = saving_of(steady(70.0, time_s=10.0, offset_sd_w=0.5), steady(100.0, time_s=10.0, offset_sd_w=0.5))
    half = 0.5 * (10 / 70 - 10 / 100) * stats.norm.ppf(0.975)
    assert slower.ci_low == pytest.approx(1 - math.exp(-(-math.log(0.7) - half)), rel=1e-9)
    assert slower.fraction == pytest.approx(0.3)


def test_gain_cancels_for_one_sensor_only() -> None:
    """The unknown factors of two sensors matter as far as their shares of the energy differ between the sides."""

    def two(cpu_j: float, gpu_j: float) -> Make:
        cpu = replace(run(cpu_j).readings[0], gain_sd_fraction=0.05)
        gpu = replace(cpu, scope="gpu:0", sensor="gpu", energy_j=gpu_j, gain_sd_fraction=0.02)
        return lambda n: replace(run(1.0), readings=(cpu, gpu))

    alike = saving_of(two(35.0, 35.0), two(50.0, 50.0))
    assert (alike.ci_low, alike.ci_high) == pytest.approx((0.3, 0.3))
    moved = saving_of(two(20.0, 50.0), two(50.0, 50.0))
    shift = 50 / 100 - 20 / 70
    half = math.hypot(0.05 * shift, 0.02 * shift) * stats.norm.ppf(0.975)
    assert moved.ci_low == pytest.approx(1 - 0.7 * math.exp(half))


def estimated(level_j: float, corners_j: tuple[float, ...]) -> Make:
    """Runs priced by a power model."""
    return lambda n: run(
        level_j * math.exp(WIGGLE[n]),
        source=Source.ESTIMATED,
        corners_j=tuple(c * math.exp(WIGGLE[n]) for c in corners_j),
    )


def test_estimated_savings_are_indicative() -> None:
    """A saving at every corner of the power model is indicative, and carries the saving at each."""
    saving = saving_of(estimated(70.0, (60.0, 80.0)), estimated(100.0, (100.0, 100.0)))
    assert saving.label() == "indicative (estimated)"
    assert [round(c.value, 3) for c in saving.corners] == [0.4, 0.2]


def test_a_sign_that_depends_on_the_model_is_not_shown() -> None:
    """If one corner of the power model shows no saving, or no cost, nothing is claimed and the corner is named."""
    saving = saving_of(estimated(70.0, (60.0, 104.0)), estimated(100.0, (100.0, 100.0)))
    assert saving.verdict is Verdict.NOT_SHOWN
    reason = "The saving depends on the power model: at corner 2 of 2 of its parameter range it is -4.0% ("
    assert saving.reasons == (reason + "interval -4.0% to -4.0%).",)
    worse = saving_of(estimated(130.0, (120.0, 90.0)), estimated(100.0, (100.0, 100.0)))
    assert worse.verdict is Verdict.NOT_SHOWN
    assert "but not at corner 2 of 2" in worse.reasons[0]
    everywhere = saving_of(estimated(130.0, (120.0, 110.0)), estimated(100.0, (100.0, 100.0)))
    assert everywhere.verdict is Verdict.WORSE


@pytest.mark.parametrize(
    ("source", "reason"),
    [(Source.ESTIMATED, "The energy is estimated without a range"), (Source.DECLARED, "The energy was declared")],
)
def test_numbers_without_a_range_show_nothing(source: Source, reason: str) -> None:
    """A model that gives no range, or somebody's word, carries no claim however large the saving is."""
    saving = saving_of(steady(50.0, source=source), steady(100.0, source=source))
    assert saving.verdict is Verdict.NOT_SHOWN
    assert saving.reasons[0].startswith(reason)


def test_the_evidence_is_the_weaker_side() -> None:
    """A counter against a sampled sensor is sampled; the ratio inherits the weaker grade."""
    saving = saving_of(steady(50.0), steady(100.0, source=Source.SAMPLED))
    assert (saving.evidence, saving.verdict) == (Source.SAMPLED, Verdict.VERIFIED)


@pytest.mark.parametrize(
    ("keep", "plan", "base", "kept"),
    [
        (Keep(metric="accuracy", bound=None, margin=0.01), 0.97, 0.98, True),  # exactly the margin, but for rounding
        (Keep(metric="accuracy", bound=None, margin=0.01), 0.9699, 0.98, False),
        (Keep(metric="accuracy", bound=None, margin=0.0), 0.98, 0.98, True),
        (Keep(metric="accuracy", bound=0.97, margin=0.0), 0.97, 0.99, True),
        (Keep(metric="accuracy", bound=0.97, margin=0.0), 0.9699, 0.9, False),
    ],
)
def test_quality_without_scatter_is_compared_exactly(keep: Keep, plan: float, base: float, *, kept: bool) -> None:
    """With the same quality in every run the promise is a plain comparison."""
    saving = saving_of(steady(70.0, quality=plan), steady(100.0, quality=base), keep=keep)
    assert (saving.verdict is Verdict.VERIFIED) == kept
    assert kept or "accuracy could be" in saving.reasons[0]
    assert saving.quality_change is not None
    assert saving.quality_change.value == pytest.approx(plan - base)


def test_quality_with_scatter_needs_a_limit_on_the_right_side() -> None:
    """The mean keeps the margin, its one-sided limit does not: then the quality is not shown to be kept."""
    margin = Keep(metric="accuracy", bound=None, margin=0.004)
    saving = saving_of(lambda n: run(70.0, quality=0.97 + WIGGLE[n]), steady(100.0), keep=margin)
    lower = stats.t.ppf(0.05, 9) * stats.sem(WIGGLE) + sum(WIGGLE) / 10
    assert saving.verdict is Verdict.NOT_SHOWN
    assert saving.reasons == (
        f"The accuracy could be {-lower:.4g} lower than with the competent baseline; 0.004 was allowed (10 blocks).",
    )
    assert saving_of(
        lambda n: run(70.0, quality=0.97 + WIGGLE[n]), steady(100.0), keep=replace(margin, margin=0.006)
    ).shown


def test_quality_that_is_uncertain_at_a_look_delays_the_stop() -> None:
    """A large saving does not stop the proof while its quality is not shown to be kept."""
    proof = proof_of({PLAN: lambda n: run(50.0, quality=0.97 + WIGGLE[n]), BASE: steady(100.0)})
    assert proof.blocks > 4
    assert proof.saving(Baseline.COMPETENT).verdict is Verdict.VERIFIED


@pytest.mark.parametrize(("plan", "base", "side"), [(None, 0.9, "the setting"), (0.9, None, "the competent baseline")])
def test_no_quality_no_claim(plan: float | None, base: float | None, side: str) -> None:
    """A side that reports no quality cannot have kept it."""
    saving = saving_of(steady(70.0, quality=plan), steady(100.0, quality=base))
    assert saving.reasons == (f"No accuracy was reported by every run of {side}, so nothing says that it was kept.",)
    assert (saving.verdict, saving.quality_change) == (Verdict.NOT_SHOWN, None)


def test_slowdown_is_stated_and_limited() -> None:
    """Time per work is compared like energy; beyond the limit there is no claim. The limit is on the competent one."""
    slow, base = steady(70.0, time_s=12.0), steady(100.0)
    free = saving_of(slow, base)
    assert free.slowdown is not None
    assert (free.verdict, free.slowdown.value) == (Verdict.VERIFIED, pytest.approx(0.2))
    limited = saving_of(slow, base, pace=Pace(max_slowdown=0.1))
    assert limited.reasons == ("It took 20.0% more time per unit of work; 10.0% was allowed.",)
    arms = {PLAN: slow, BASE: base, NAIVE: steady(200.0, time_s=20.0)}
    against_naive = proof_of(arms, pace=Pace(max_slowdown=0.1)).saving(Baseline.NAIVE)
    assert (against_naive.slowdown.value, against_naive.shown) == (pytest.approx(-0.4), False)
    assert proof_of(arms, pace=Pace(max_slowdown=0.1)).saving(Baseline.NAIVE, of=BASE).shown


def test_a_servers_time_is_its_p99() -> None:
    """Of requests that come when they come, the p99 is compared, and a longer window says nothing."""
    base = steady(100.0, p99_s=0.1)
    late = saving_of(steady(70.0, p99_s=0.12), base, pace=Pace(served=True, max_slowdown=0.05))
    assert late.slowdown is not None
    assert late.slowdown.value == pytest.approx(0.2)
    assert late.reasons == ("Its p99 was 20.0% longer; 5.0% was allowed.",)
    long = saving_of(steady(70.0, time_s=20.0), base, pace=Pace(served=True, max_slowdown=0.05))
    assert (long.verdict, long.slowdown) == (Verdict.VERIFIED, Interval(value=0.0, low=0.0, high=0.0))


def test_a_promised_p99_is_kept_beyond_its_scatter() -> None:
    """The upper limit of the p99 must keep the promise, whatever that of the baseline is; t from scipy."""
    plan = Pace(served=True, p99_s=0.1)
    wiggly = [0.0999 * math.exp(w) for w in WIGGLE]
    saving = saving_of(lambda n: run(70.0, p99_s=wiggly[n]), steady(100.0, p99_s=0.05), pace=plan)
    limit_s = math.exp(
        sum(map(math.log, wiggly)) / 10 + stats.t.ppf(0.95, 9) * stats.sem([math.log(x) for x in wiggly])
    )
    assert saving.reasons == (
        f"The p99 could be as long as {1e3 * limit_s:.4g} ms, beyond the promised 100 ms (10 blocks).",
    )
    assert saving_of(steady(70.0, p99_s=0.099), steady(100.0, p99_s=0.05), pace=plan).shown


def test_drift_cancels() -> None:
    """A meter that climbs 3 % per run leaves two alike arms alike, to the last digit."""
    proof = Proof(phase=Phase.TRAIN, arms=(PLAN, BASE, NAIVE), keep=KEEP, seed=3)
    step = 0
    while (order := proof.next_block()) is not None:
        block = []
        for arm in order:
            block.append((arm, run(100.0 * math.exp(0.03 * step))))
            step += 1
        proof.tell(block)
    saving = proof.saving(Baseline.COMPETENT)
    assert (saving.ci_low, saving.fraction, saving.ci_high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_only_the_block_that_was_asked_for_is_accepted() -> None:
    """Another order, a half block or another arm would not be a randomised mirrored block."""
    proof = Proof(phase=Phase.INFER, arms=(PLAN, BASE), keep=KEEP, seed=1)
    order = proof.next_block()
    assert order == proof.next_block()
    for wrong in (order[:2], order[1:] + order[:1], (PLAN,) * 4, ()):
        with pytest.raises(UsageError, match=f"tell the runs of {' '.join(order)}, in that order"):
            proof.tell([(arm, run(1.0)) for arm in wrong])
    assert proof.blocks == 0


def test_runs_must_be_comparable() -> None:
    """Other scopes, other corners, or no energy are refused, and leave the proof as it was."""
    proof = Proof(phase=Phase.INFER, arms=(PLAN, BASE), keep=KEEP, seed=1)
    proof.tell([(arm, run(1.0)) for arm in proof.next_block()])
    elsewhere = replace(run(1.0), readings=(replace(run(1.0).readings[0], scope="gpu:0"),))
    with pytest.raises(ScopeMismatchError, match="different scopes"):
        proof.tell([(arm, elsewhere) for arm in proof.next_block()])
    with pytest.raises(ScopeMismatchError, match="0 and 2 corners"):
        proof.tell([(arm, run(1.0, source=Source.ESTIMATED, corners_j=(1.0, 2.0))) for arm in proof.next_block()])
    with pytest.raises(SensorError, match=r"a run of the (plan|competent) arm with 0 J in 10 s"):
        proof.tell([(arm, run(0.0)) for arm in proof.next_block()])
    assert proof.blocks == 1


@pytest.mark.parametrize("arms", [(), (PLAN,), (BASE, NAIVE), (PLAN, PLAN, BASE), (PLAN, "other"), (PLAN, BASE, "x")])
def test_arms_are_plan_and_baselines(arms: tuple[str, ...]) -> None:
    """A proof compares the plan with one or two baselines, each once."""
    with pytest.raises(UsageError, match="give 'plan' and one or both of 'naive', 'competent'"):
        Proof(phase=Phase.INFER, arms=arms, keep=KEEP, seed=1)


@pytest.mark.parametrize(
    ("blocks", "looks"), [(0, ()), (10, (2,)), (10, (6, 4)), (10, (4, 4)), (99, tuple(range(3, 25)))]
)
def test_looks_are_a_plan(blocks: int, looks: tuple[int, ...]) -> None:
    """Looks are a few increasing numbers of blocks, of which none is too few."""
    with pytest.raises(UsageError, match="give at most 20 increasing numbers of blocks, from 3 on"):
        Proof(phase=Phase.INFER, arms=(PLAN, BASE), keep=KEEP, seed=1, max_blocks=blocks, looks=looks)


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e6), st.floats(1e-3, 1e6), st.floats(0, 1)), min_size=3, max_size=6),
    st.sampled_from((Source.COUNTER, Source.ESTIMATED)),
)
@settings(max_examples=60)
def test_verdict_and_interval_never_disagree(runs: list[tuple[float, float, float]], source: Source) -> None:
    """Shown means above zero, worse means below, and whatever is not shown says why."""
    corners = () if source.measured else (1.0,)
    arms = {
        PLAN: lambda n: run(runs[n][0], source=source, corners_j=tuple(c * runs[n][0] for c in corners)),
        BASE: lambda n: run(runs[n][1], source=source, corners_j=tuple(c * runs[n][1] for c in corners)),
    }
    proof = proof_of(arms, blocks=len(runs))
    proof.stop_now()
    saving = proof.saving(Baseline.COMPETENT)
    assert saving.ci_low <= saving.fraction <= saving.ci_high < math.inf
    assert not saving.shown or saving.ci_low > 0
    assert saving.verdict is not Verdict.WORSE or saving.ci_high < 0
    assert saving.shown == (not saving.reasons)
    assert from_json(Saving, to_json(saving)) == saving
