"""BatchTuner: what it asks, what it finds, what it makes of runs that miss, and what it refuses."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.tuning.batch_costs import Costs, CostShape
from negawatt.tuning.batch_growth import Growth, learn
from negawatt.tuning.batches import BatchJob, BatchProbe, BatchProbed, BatchRan, BatchRun, BatchTuner

JOB = BatchJob(
    batch_sizes=(16, 32, 64, 128, 256, 512),
    default=256,
    limits_w=(100.0, 150.0, 200.0, 250.0),
    max_epochs=100,
    window_s=1.0,
)


class Trainer:
    """A job on a GPU: epochs grow with the batch size, never enough below 32; an epoch is cheapest at 150 W."""

    def __init__(self, seed: int = 0, sd: float = 0.05) -> None:
        self._rng, self._sd = random.Random(seed), sd
        self.spent_j = 0.0

    def epoch(self, batch: int, limit_w: float) -> tuple[float, float]:
        """Seconds and joules."""
        time_s = 100.0 * (1 + 40 / batch) * (1 + 0.3 * (1 - limit_w / 250.0))
        return time_s, 2e4 * (1 + 40 / batch) * (1 + 0.5 * ((limit_w - 150.0) / 100.0) ** 2)

    def epochs(self, batch: int) -> float:
        """Mean epochs to the target."""
        return 10 * (1 + batch / 100) if batch >= 32 else math.inf

    def energy_j(self, batch: int, limit_w: float) -> float:
        """Mean energy to the target."""
        return self.epochs(batch) * self.epoch(batch, limit_w)[1]

    def does(self, asked: BatchProbe | BatchRun) -> BatchProbed | BatchRan:
        """A window or a run."""
        time_s, energy_j = self.epoch(asked.batch_size, asked.limit_w)
        if isinstance(asked, BatchProbe):
            noise = 1 + 0.005 * self._rng.gauss(0, 1)
            return BatchProbed(
                batch_size=asked.batch_size, limit_w=asked.limit_w, time_s=time_s, energy_j=energy_j * noise
            )
        needs = (
            math.ceil(self.epochs(asked.batch_size) * math.exp(self._rng.gauss(0, self._sd)))
            if (asked.batch_size >= 32)
            else math.inf
        )
        epochs = min(needs, asked.max_epochs)
        self.spent_j += epochs * energy_j
        return BatchRan(batch_size=asked.batch_size, epochs=epochs, reached=needs <= asked.max_epochs)


def recur(tuner: BatchTuner, trainer: Trainer, runs: int) -> list[BatchProbe | BatchRun]:
    """All that is asked until the target was reached so many times."""
    asked = []
    while runs:
        asked.append(tuner.ask())
        told = trainer.does(asked[-1])
        tuner.tell(told)
        runs -= isinstance(told, BatchRan) and told.reached
    return asked


def after(*runs: BatchRan, times: int = 40) -> BatchTuner:
    """A tuner that has probed all and was told of some runs."""
    tuner, trainer = BatchTuner(JOB, runs=times), Trainer()
    for batch_size in JOB.batch_sizes:
        for limit_w in JOB.limits_w:
            tuner.tell(trainer.does(BatchProbe(batch_size=batch_size, limit_w=limit_w)))
    for run in runs:
        tuner.tell(run)
    return tuner


def test_first_comes_the_untouched_job() -> None:
    """The baseline is what is measured first, and the default batch size what runs first."""
    tuner = BatchTuner(JOB, runs=40)
    asked = recur(tuner, Trainer(), 1)
    assert asked[0] == BatchProbe(batch_size=256, limit_w=250.0)
    assert asked[-1].batch_size == 256
    assert isinstance(asked[-1], BatchRun)
    assert asked[-1].max_epochs == JOB.max_epochs


def test_asks_the_same_until_it_is_told() -> None:
    """Asking changes nothing."""
    tuner = after(BatchRan(batch_size=256, epochs=36, reached=True))
    assert tuner.ask() == tuner.ask()


@pytest.mark.parametrize("seed", range(3))
def test_finds_the_best_batch_size_and_limit(seed: int) -> None:
    """After 40 runs the choice is within 5 % of the best, and all together cost far less than the default's."""
    tuner, trainer = BatchTuner(JOB, runs=40), Trainer(seed)
    asked = recur(tuner, trainer, 40)
    best_j = min(trainer.energy_j(b, w) for b in JOB.batch_sizes for w in JOB.limits_w)
    assert trainer.energy_j(*tuner.best) <= 1.05 * best_j
    assert trainer.spent_j <= 40 * 1.15 * best_j
    assert trainer.spent_j <= 0.8 * 40 * trainer.energy_j(256, 250.0)
    probes = sum(isinstance(x, BatchProbe) for x in asked)
    assert probes <= len(JOB.batch_sizes) * len(JOB.limits_w)


def test_told_the_same_it_asks_the_same() -> None:
    """There is no chance in it."""
    asked = [recur(BatchTuner(JOB, runs=10), Trainer(), 10) for _ in range(2)]
    assert asked[0] == asked[1]


def test_goes_on_from_its_state() -> None:
    """A tuner that takes in the state, by way of JSON, asks what the first would have asked."""
    first, trainer = BatchTuner(JOB, runs=20), Trainer()
    first.exclude(16)
    recur(first, trainer, 5)
    second = BatchTuner(JOB, runs=20)
    second.resume(json.loads(json.dumps(first.state)))
    assert second.state == first.state
    assert second.ask() == first.ask()
    assert second.best == first.best


def test_a_trial_is_stopped_when_it_can_no_longer_pay() -> None:
    """An untried batch size is given fewer epochs than a run at the best one is worth twice over."""
    tuner = after(*[BatchRan(batch_size=256, epochs=36, reached=True)] * 2)
    asked = tuner.ask()
    assert isinstance(asked, BatchRun)
    assert asked.batch_size != 256
    ratio = Trainer().epoch(256, 150.0)[1] / Trainer().epoch(asked.batch_size, 150.0)[1]
    assert asked.max_epochs <= 2 * 36 * ratio


def test_after_a_miss_the_best_known_follows() -> None:
    """No second adventure before the target is reached, and the miss is not forgotten."""
    tuner = after(BatchRan(batch_size=256, epochs=36, reached=True), BatchRan(batch_size=64, epochs=60, reached=False))
    asked = tuner.ask()
    assert isinstance(asked, BatchRun)
    assert asked.batch_size == 256
    assert tuner.best[0] == 256


def test_without_any_success_another_batch_size_is_tried() -> None:
    """Where the default batch size misses its target, the tuner does not repeat it for ever."""
    tuner = after(*[BatchRan(batch_size=256, epochs=100, reached=False)] * 3)
    asked = tuner.ask()
    assert isinstance(asked, BatchRun)
    assert asked.batch_size != 256


def test_the_last_run_explores_nothing() -> None:
    """With no run to come, what might be learnt is worth nothing: the run is the one expected to cost least."""
    runs = [BatchRan(batch_size=b, epochs=round(Trainer().epochs(b)), reached=True) for b in (32, 64, 128, 256, 512)]
    tuner = after(*runs * 2, times=11)
    asked = tuner.ask()
    assert (asked.batch_size, asked.limit_w) == tuner.best


def test_an_excluded_batch_size_is_never_asked() -> None:
    """What does not fit into memory is left alone, also where it looks the best."""
    tuner = BatchTuner(JOB, runs=10)
    for batch_size in (64, 128):
        tuner.exclude(batch_size)
    assert not {x.batch_size for x in recur(tuner, Trainer(), 10)} & {64, 128}


@pytest.mark.parametrize("seed", range(3))
def test_a_one_off_job_gets_its_limit_for_few_probes(seed: int) -> None:
    """Without other runs to learn from it stays near the default batch size and saves by the limit."""
    tuner, trainer = BatchTuner(JOB, runs=1), Trainer(seed)
    asked = recur(tuner, trainer, 1)
    batch_size, limit_w = asked[-1].batch_size, asked[-1].limit_w
    assert 64 <= batch_size <= 512
    assert trainer.energy_j(batch_size, limit_w) <= 0.95 * trainer.energy_j(256, 250.0)
    assert len(asked) <= 20


def test_a_one_off_job_that_misses_falls_back_to_the_default() -> None:
    """A batch size that did not get there is followed by the one that the user trusts."""
    tuner = after(BatchRan(batch_size=64, epochs=100, reached=False), times=1)
    assert tuner.ask().batch_size == 256


def test_one_limit_and_one_batch_size_leave_nothing_to_choose() -> None:
    """The degenerate job runs as it is, after one probe."""
    job = BatchJob(batch_sizes=(8,), default=8, limits_w=(250.0,), max_epochs=5)
    tuner = BatchTuner(job, runs=3)
    tuner.tell(BatchProbed(batch_size=8, limit_w=250.0, time_s=1.0, energy_j=1.0))
    assert tuner.ask() == BatchRun(batch_size=8, limit_w=250.0, max_epochs=5)
    tuner.tell(BatchRan(batch_size=8, epochs=3, reached=True))
    assert tuner.best == (8, 250.0)


def test_time_has_a_price() -> None:
    """With a price on seconds, the limit chosen is a higher one."""

    def limit(price_w: float) -> float:
        job = BatchJob(
            batch_sizes=(256,), default=256, limits_w=JOB.limits_w, max_epochs=100, window_s=0.1, time_price_w=price_w
        )
        tuner = BatchTuner(job, runs=5)
        recur(tuner, Trainer(), 5)
        return tuner.best[1]

    assert limit(0.0) == 150.0
    assert limit(2000.0) > 150.0


@given(runs=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 100), st.booleans()), max_size=12))
@settings(max_examples=30, deadline=None)
def test_whatever_it_is_told_it_asks_something_that_can_be(runs: list[tuple[int, int, bool]]) -> None:
    """Contradictory runs do not break it."""
    tuner = after(*(BatchRan(batch_size=JOB.batch_sizes[b], epochs=e, reached=r) for b, e, r in runs))
    asked = tuner.ask()
    assert isinstance(asked, BatchRun)
    assert asked.batch_size in JOB.batch_sizes
    assert asked.limit_w in JOB.limits_w
    assert 1 <= asked.max_epochs <= JOB.max_epochs


class TestGrowth:
    """The prior of epochs and what runs teach."""

    OCTAVES = (-3.0, -2.0, -1.0, 0.0, 1.0)

    def test_a_run_tells_of_its_own_batch_size_most(self) -> None:
        """Its epochs are believed within the scatter of runs, those far away hardly."""
        known = learn(Growth(), self.OCTAVES, [(3, 36.0, True)], 25.0)
        assert math.exp(known.mean[3]) == pytest.approx(36, rel=0.1)
        sd = np.sqrt(np.diag(known.cov))
        assert sd[3] < 0.15
        assert sd[0] > 0.3
        assert all(np.diff(sd[:4]) < 0)

    def test_a_censored_run_moves_the_belief_beyond_where_it_stopped(self) -> None:
        """More than 50 epochs: the mean rises above them, and neighbours follow."""
        before = learn(Growth(), self.OCTAVES, [(3, 36.0, True)], 25.0)
        stopped = learn(Growth(), self.OCTAVES, [(3, 36.0, True), (1, 50.0, False)], 25.0)
        assert stopped.mean[1] > math.log(50)
        assert stopped.mean[0] > before.mean[0]

    def test_stopping_where_nothing_was_expected_teaches_nothing(self) -> None:
        """That a run takes more than one epoch was known."""
        before = learn(Growth(), self.OCTAVES, [(3, 36.0, True)], 25.0)
        stopped = learn(Growth(), self.OCTAVES, [(3, 36.0, True), (3, 1.0, False)], 25.0)
        np.testing.assert_allclose(stopped.mean, before.mean, atol=0.02)

    def test_many_runs_outweigh_the_prior(self) -> None:
        """A batch size that was run often is known by its own mean."""
        runs = [(1, epochs, True) for epochs in (9.0, 10.0, 11.0) * 10]
        known = learn(Growth(), self.OCTAVES, runs, 25.0)
        assert math.exp(known.mean[1]) == pytest.approx(10, rel=0.02)

    def test_the_fit_finds_where_the_law_bends(self) -> None:
        """Jobs made by the law with a critical batch size two octaves up give that back."""
        octaves = [float(o) for o in range(-4, 7)]
        job = {o: [10 * (1 + 2 ** (o - 2)) * n for n in (0.97, 1.0, 1.03)] for o in octaves}
        missing = job | {-4.0: [None, None, None]}
        growth = Growth.fit([job, missing])
        assert growth.critical_octaves == pytest.approx(2, abs=0.6)
        assert growth.never_per_octave_fraction > 0

    def test_what_is_seen_before_a_stop_never_adds_to_what_is_expected(self) -> None:
        """Means over outcomes are the same however many of them are told apart, up to the grid of outcomes."""
        known = learn(Growth(), self.OCTAVES, [(3, 36.0, True)], 25.0)
        sd = math.sqrt(known.cov[2, 2] + known.run_sd_fraction**2)
        logs = known.mean[2] + sd * np.linspace(-1.6, 1.6, 9)
        means = [epochs.mean(axis=0)[2] for epochs in known.after(2, logs)]
        np.testing.assert_allclose(means, means[-1], rtol=0.1)


class TestCosts:
    """What windows teach of costs."""

    def test_measured_cells_are_believed_and_the_rest_follows(self) -> None:
        """A measured cost is known within the noise of a window; the batch size beside it is near, and less sure."""
        costs = Costs((-1.0, 0.0, 1.0), (0.5, 0.75, 1.0), CostShape())
        costs.add((1, 2), 100.0)
        costs.add((1, 1), 80.0)
        mean, sd = costs.predicted()
        assert math.exp(mean[1, 2]) == pytest.approx(100, rel=0.02)
        assert mean[0, 1] < mean[0, 2]
        assert sd[1, 2] < 0.015 < sd[0, 2]
        assert costs.best(1) == 1

    def test_a_curve_that_is_measured_in_full_promises_no_gain(self) -> None:
        """There is nothing left to measure."""
        costs = Costs((0.0,), (0.5, 1.0), CostShape())
        costs.add((0, 0), 90.0)
        costs.add((0, 1), 100.0)
        assert costs.gain(0) == (0, 0.0)

    def test_the_fit_finds_the_best_limit_of_parabolas(self) -> None:
        """Curves of the shape give it back."""
        shape = CostShape(depth_fraction=0.2, best_limit_fraction=0.6)
        curve = {u: math.exp(shape.of(u)) for u in (0.4, 0.6, 0.8, 1.0)}
        fitted = CostShape.fit([curve, curve], [-0.2, -0.1])
        assert fitted.best_limit_fraction == pytest.approx(0.6)
        assert fitted.depth_fraction == pytest.approx(0.2)
        assert fitted.slope == pytest.approx(-0.15)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"default": 7}, "default batch size 7"),
        ({"batch_sizes": ()}, "batch_sizes is"),
        ({"batch_sizes": (256, 128)}, "smallest to the largest"),
        ({"limits_w": (100.0, math.nan)}, "limits_w is"),
        ({"limits_w": (100.0, 100.0)}, "give each once"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"window_s": -1.0}, "window_s is -1"),
        ({"time_price_w": math.inf}, "time_price_w is inf"),
    ],
)
def test_a_job_that_cannot_be_is_refused(change: dict, match: str) -> None:
    """Each part of a job is checked, with what to type."""
    parts = {name: getattr(JOB, name) for name in ("batch_sizes", "default", "limits_w", "max_epochs")}
    with pytest.raises(UsageError, match=match):
        BatchJob(**parts | change)


@pytest.mark.parametrize(
    ("told", "match"),
    [
        (BatchProbed(batch_size=7, limit_w=250.0, time_s=1.0, energy_j=1.0), "batch size 7"),
        (BatchProbed(batch_size=256, limit_w=99.0, time_s=1.0, energy_j=1.0), "limit 99"),
        (BatchProbed(batch_size=256, limit_w=250.0, time_s=1.0, energy_j=math.nan), "nan J"),
        (BatchProbed(batch_size=256, limit_w=250.0, time_s=0.0, energy_j=1.0), "0.0 s"),
        (BatchRan(batch_size=256, epochs=-1, reached=True), "-1 epochs"),
        (BatchRan(batch_size=256, epochs=math.nan, reached=False), "nan epochs"),
        (BatchRan(batch_size=7, epochs=1, reached=True), "batch size 7"),
    ],
)
def test_what_cannot_be_is_not_learnt(told: BatchProbed | BatchRan, match: str) -> None:
    """It is refused, and the state is as before."""
    tuner = BatchTuner(JOB, runs=2)
    before = tuner.state
    with pytest.raises(UsageError, match=match):
        tuner.tell(told)
    assert tuner.state == before


def test_other_misuse_is_refused() -> None:
    """No runs, a negative margin, a default that is taken out, a state that is none."""
    with pytest.raises(UsageError, match="runs 0 times"):
        BatchTuner(JOB, runs=0)
    with pytest.raises(UsageError, match="margin_fraction is -1"):
        BatchTuner(JOB, runs=1, margin_fraction=-1.0)
    with pytest.raises(UsageError, match="never reached its target"):
        Growth.fit([{0.0: [None, None]}, {0.0: [3.0, 4.0]}])
    tuner = BatchTuner(JOB, runs=1)
    with pytest.raises(UsageError, match="256 cannot run"):
        tuner.exclude(256)
    with pytest.raises(UsageError, match="cannot be read"):
        tuner.resume({"probed": [{"batch": 1}], "ran": []})


def test_the_import_needs_no_numpy() -> None:
    """A plain installation can import the module; NumPy comes with an extra."""
    code = "import sys; import negawatt.tuning.batches; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
