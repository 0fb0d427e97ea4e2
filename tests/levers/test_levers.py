"""The built-in levers keep the contract, and do what they say."""

from __future__ import annotations

import pytest

from negawatt.core.host import Host
from negawatt.core.lever import Choice
from negawatt.core.workload import Knob, Phase, Progress, Split, Workload
from negawatt.levers import batch_size, early_stopping, precision, runtime, threads
from negawatt.testing.contracts import LeverContract


class Toy:
    """A workload with every knob."""

    name, unit, quality = "toy", "sample", "accuracy"
    knobs = (
        Knob(name="batch_size", phase=Phase.TRAIN, default=4, choices=(2, 4)),
        Knob(name="batch_size", phase=Phase.INFER, default=1, choices=(1, 8)),
        Knob(name="precision", phase=Phase.TRAIN, default="float64", choices=("float64", "float32")),
        Knob(name="runtime", phase=Phase.INFER, default="a", choices=("a", "b", "c"), competent=("a", "b")),
        Knob(name="threads", phase=Phase.INFER, default=2, choices=(1, 2)),
    )

    def start(self, params, seed):
        return {}

    def steps(self, params, state):
        yield Progress(step=1, work=1.0, quality=0.5)

    def evaluate(self, state, split):
        return 0.5

    def predictor(self, params, state):
        return lambda batch: batch

    def requests(self, split):
        return [1, 2, 3]

    def score(self, split: Split, answers):
        return 1.0


class _Contract(LeverContract):
    def workload(self):
        return Toy()


class TestBatchSize(_Contract):
    def make(self):
        return batch_size.lever


class TestPrecision(_Contract):
    def make(self):
        return precision.lever


class TestRuntime(_Contract):
    def make(self):
        return runtime.lever


class TestThreads(_Contract):
    def make(self):
        return threads.Threads(cpus=2)


class TestEarlyStopping(_Contract):
    def make(self):
        return early_stopping.lever


def rule_of(value: str, bound: float | None = 0.8):
    """The stop rule that a choice of the early-stopping lever sets."""
    from dataclasses import replace

    workload = replace(Workload.of(Toy()), quality_bound=bound)
    choice = Choice(lever="early-stopping", phase=Phase.TRAIN, value=value)
    with early_stopping.lever.applied(workload, choice, None) as changed:
        return changed.stop() if changed.stop else None


def stops_after(rule, qualities):
    """The number of the first step at which the rule stops."""
    for step, quality in enumerate(qualities, 1):
        if rule(Progress(step=step, work=1.0, quality=quality)):
            return step
    return None


def test_target_stops_at_the_bound_plus_slack():
    """Training ends at the first evaluation that reaches the promised quality plus the slack."""
    assert stops_after(rule_of("target+0"), [0.5, None, 0.8, 0.9]) == 3
    assert stops_after(rule_of("target+0.05"), [0.5, 0.8, 0.84, 0.86]) == 4


def test_patience_counts_evaluations_without_a_new_best():
    """Training ends after that many evaluations without a new best; steps without one do not count."""
    assert stops_after(rule_of("patience=2"), [0.5, 0.6, 0.6, None, 0.7, 0.6, 0.65, 0.9]) == 7
    assert stops_after(rule_of("patience=1"), [0.5, 0.5]) == 2


def test_a_rule_is_fresh_for_every_run():
    """A second run does not remember the best quality of the first."""
    from dataclasses import replace

    workload = replace(Workload.of(Toy()), quality_bound=0.8)
    choice = Choice(lever="early-stopping", phase=Phase.TRAIN, value="patience=1")
    with early_stopping.lever.applied(workload, choice, None) as changed:
        assert stops_after(changed.stop(), [0.9, 0.5]) == 2
        assert stops_after(changed.stop(), [0.5, 0.6, 0.5]) == 3


def test_targets_are_offered_only_with_an_absolute_promise():
    """Without a promised bound there is no target to stop at."""
    from dataclasses import replace

    workload = Workload.of(Toy())
    assert not any("target" in str(c.value) for c in early_stopping.lever.choices(workload))
    bound = replace(workload, quality_bound=0.8)
    assert any("target" in str(c.value) for c in early_stopping.lever.choices(bound))


def test_int8_is_not_what_a_competent_engineer_does_for_speed_alone():
    """A knob's competent values mark the choices of the competent baseline."""
    marks = {c.value: c.competent for c in runtime.lever.choices(Workload.of(Toy()))}
    assert marks == {"a": True, "b": True, "c": False}


def test_threads_without_a_knob_limits_the_pools_and_restores_them():
    """BLAS pools have the chosen size inside and their former size after."""
    pytest.importorskip("numpy")
    from threadpoolctl import threadpool_info

    def sizes():
        return [pool["num_threads"] for pool in threadpool_info()]

    before = sizes()
    choice = Choice(lever="threads", phase=Phase.TRAIN, value=1)
    with threads.lever.applied(Workload.of(Toy()), choice, None) as workload:
        assert set(sizes()) == {1}
        assert workload.params(Phase.TRAIN) == {"batch_size": 4, "precision": "float64"}
    assert sizes() == before


def test_threads_is_unavailable_on_one_cpu():
    """With one CPU there is nothing to choose, and the reason says so."""
    one = Host(name="h", machine_id="", boot_id="", system="", cpu="", logical_cpus=1, memory_bytes=0)
    assert "one CPU" in (threads.lever.available(one) or "")
