"""The shipped contract tests pass what keeps its promise and fail what breaks it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.host import Host
from negawatt.core.lever import Choice, Context, LeverInfo, Order
from negawatt.core.placement import Job, Outcome, PlacementChoice, PlacementInfo
from negawatt.core.reading import Reading
from negawatt.core.workload import Knob, Phase, Progress, Split, Workload
from negawatt.testing import (
    LeverContract,
    ManualClock,
    PlacementContract,
    ScriptedSensor,
    SensorContract,
    WorkloadContract,
)

KNOB = Knob(name="batch_size", phase=Phase.INFER, default=1, choices=(1, 8))


class Adder:
    """A workload with every in-process capability: its state is a number of steps."""

    name = "adder"
    unit = "number"
    quality = "accuracy"
    knobs = (KNOB,)

    def start(self, params: Any, seed: int) -> list[int]:
        return [seed]

    def steps(self, params: Any, state: list[int]) -> Iterator[Progress]:
        for step in range(1, 6):
            state[0] += 1
            yield Progress(step=step, work=10.0)

    def evaluate(self, state: list[int], split: Split) -> float:
        return state[0] / 10

    def save(self, state: list[int], path: Path) -> None:
        (path / "state").write_text(str(state[0]))

    def load(self, path: Path) -> list[int]:
        return [int((path / "state").read_text())]

    def predictor(self, params: Any, state: list[int] | None) -> Callable[[Any], Any]:
        return lambda batch: [x + 1 for x in batch]

    def requests(self, split: Split) -> Sequence[int]:
        return range(10)

    def score(self, split: Split, answers: Sequence[Any]) -> float:
        return sum(len(batch) for batch in answers) / 10

    def replay(self, params: Any, state: Any, split: Split) -> Iterator[Progress]:
        yield Progress(step=1, work=5.0)
        yield Progress(step=2, work=5.0, quality=0.9)


class Batch:
    """A lever that keeps the contract, and sets an environment variable for as long as it is applied."""

    info = LeverInfo(
        name="batch", summary="s", phases=(Phase.INFER,), order=Order.BATCH, requires="a knob", evidence="e"
    )

    def available(self, host: Host) -> str | None:
        return None

    def choices(self, workload: Workload) -> Sequence[Choice]:
        return [Choice(lever="batch", phase=Phase.INFER, value=v, naive=v == 1) for v in KNOB.choices]

    @contextmanager
    def applied(self, workload: Workload, choice: Choice, context: Context) -> Iterator[Workload]:
        os.environ["BATCH_LEVER"] = str(choice.value)
        try:
            yield workload.with_param(choice.phase, "batch_size", choice.value)
        finally:
            del os.environ["BATCH_LEVER"]


class Stay:
    """A placement that keeps the contract."""

    info = PlacementInfo(name="stay", summary="s", evidence="e")

    def choices(self, job: Job) -> Sequence[PlacementChoice]:
        return [PlacementChoice(placement="stay", site=job.sites[0].name, start_s=0.0)]

    def outcome(self, job: Job, choice: PlacementChoice) -> Outcome:
        if choice not in self.choices(job):
            raise UsageError("a strange choice", "it was not offered", "choose another")
        pue = job.sites[0].pue
        return Outcome(
            choice=choice,
            site_energy_j=job.energy_j * pue.value if pue else None,
            carbon_g=None,
            cost=None,
            currency="",
            delay_s=0.0,
            basis=("the job",),
        )


class TestGoodWorkload(WorkloadContract):
    """A full workload keeps the contract."""

    def make(self) -> object:
        return Adder()


class TestGoodLever(LeverContract):
    """A lever that restores keeps the contract."""

    def make(self) -> Batch:
        return Batch()

    def workload(self) -> object:
        return Adder()


class TestGoodPlacement(PlacementContract):
    """A placement that stays keeps the contract."""

    def make(self) -> Stay:
        return Stay()


def broken(contract: type, test: str, **overrides: Callable[..., Any]) -> None:
    """Run one contract test on a plug-in that breaks it."""
    case = type("Broken", (contract,), {name: staticmethod(made) for name, made in overrides.items()})()
    getattr(case, test)()


def lever_with(**members: Any) -> Callable[[], Any]:
    return type("Changed", (Batch,), members)


def leaky(self: Any, workload: Workload, choice: Choice, context: Context) -> Any:
    @contextmanager
    def block() -> Iterator[Workload]:
        os.environ["BATCH_LEVER_LEAK"] = "1"
        yield workload
        del os.environ["BATCH_LEVER_LEAK"]

    return block()


def swallowing(self: Any, workload: Workload, choice: Choice, context: Context) -> Any:
    @contextmanager
    def block() -> Iterator[Workload]:
        try:
            yield workload
        except KeyboardInterrupt:
            return

    return block()


def touching(self: Any, workload: Workload, choice: Choice, context: Context) -> Any:
    @contextmanager
    def block() -> Iterator[Workload]:
        workload.target.batch = choice.value  # type: ignore[attr-defined]
        yield workload

    return block()


def one(**changes: Any) -> Callable[..., Any]:
    """Choices of a lever, the first of them changed."""

    def choices(self: Any, workload: Workload) -> list[Choice]:
        first, second = Batch().choices(workload)
        return [replace(first, **changes), second]

    return choices


numbers = count()


def restless(self: Any, workload: Workload) -> list[Choice]:
    """Choices that change with every call."""
    return one(value=next(numbers))(self, workload)


@pytest.mark.parametrize(
    ("test", "members", "complaint"),
    [
        ("test_applying_restores_on_an_exception", {"applied": leaky}, "left something changed after an exception"),
        ("test_applying_restores_on_an_exception", {"applied": swallowing}, "swallowed the exception"),
        ("test_applying_restores_on_normal_exit", {"applied": touching}, "left something changed"),
        ("test_one_choice_per_phase_is_naive", {"choices": one(naive=False)}, "0 naive choices"),
        ("test_choices_belong_to_the_lever", {"choices": one(lever="other")}, "does not name the lever"),
        ("test_choices_belong_to_the_lever", {"choices": one(phase=Phase.TRAIN)}, "a phase that info does not list"),
        ("test_choices_belong_to_the_lever", {"choices": one(value=8)}, "are the same"),
        ("test_choices_are_deterministic", {"choices": restless}, "other choices"),
        ("test_naive_choice_changes_no_parameter", {"choices": one(value=8)}, "is not the default"),
        ("test_available_gives_a_reason", {"available": lambda self, host: "no"}, "the reason is a sentence"),
        ("test_info_says_what_it_is", {"info": replace(Batch.info, evidence="")}, "are not empty"),
    ],
)
def test_a_lever_that_breaks_its_promise_is_caught(test: str, members: dict[str, Any], complaint: str) -> None:
    """Each way of breaking the lever contract fails the test that states it."""
    try:
        with pytest.raises(AssertionError, match=complaint):
            broken(LeverContract, test, make=lever_with(**members), workload=Adder)
    finally:
        os.environ.pop("BATCH_LEVER_LEAK", None)


def invented(self: Any, job: Job, choice: PlacementChoice) -> Outcome:
    return replace(Stay().outcome(job, choice), carbon_g=100.0)


def free(self: Any, job: Job, choice: PlacementChoice) -> Outcome:
    return replace(Stay().outcome(job, choice), site_energy_j=1.0)


def baseless(self: Any, job: Job, choice: PlacementChoice) -> Outcome:
    return replace(Stay().outcome(job, choice), basis=())


def obliging(self: Any, job: Job, choice: PlacementChoice) -> Outcome:
    return replace(Stay().outcome(job, Stay().choices(job)[0]), choice=choice)


@pytest.mark.parametrize(
    ("test", "members", "complaint"),
    [
        ("test_unknown_stays_unknown", {"outcome": invented}, "figures from nowhere"),
        ("test_site_energy_contains_it_energy", {"outcome": free}, "less than its IT equipment"),
        ("test_site_energy_contains_it_energy", {"outcome": baseless}, "without a basis"),
        ("test_unknown_choice_is_refused", {"outcome": obliging}, "raises UsageError"),
        ("test_here_and_now_is_among_the_choices", {"choices": lambda self, job: []}, "nothing to compare with"),
    ],
)
def test_a_placement_that_breaks_its_promise_is_caught(test: str, members: dict[str, Any], complaint: str) -> None:
    """Each way of breaking the placement contract fails the test that states it."""
    with pytest.raises(AssertionError, match=complaint):
        broken(PlacementContract, test, make=type("Changed", (Stay,), members))


class Errorless(ScriptedSensor):
    """A sensor without an error."""

    def reading(self, start: float, end: float) -> Reading:
        return replace(super().reading(start, end), gain_sd_fraction=0.0)


class Lossy(ScriptedSensor):
    """A sensor that loses a joule in every window."""

    def reading(self, start: float, end: float) -> Reading:
        reading = super().reading(start, end)
        return replace(reading, energy_j=max(0.0, reading.energy_j - 1.0))


class Boastful(ScriptedSensor):
    """A sensor that says it is available and does not open."""

    def available(self, host: Host) -> str | None:
        return None


@pytest.mark.parametrize(
    ("test", "kind", "more", "complaint"),
    [
        ("test_readings_carry_source_and_error", Errorless, {}, "without an error does not exist"),
        ("test_readings_carry_source_and_error", ScriptedSensor, {"script": [(0.0, 0.0)]}, "draws power, got 0 J"),
        ("test_energy_is_additive_over_split_windows", Lossy, {}, "is not"),
        ("test_available_and_open_agree", Boastful, {"missing": "no device; plug it in"}, r"open\(\) raised"),
        ("test_info_says_what_it_is", ScriptedSensor, {"name": "My Sensor"}, "lower-case words"),
    ],
)
def test_a_sensor_that_breaks_its_promise_is_caught(
    test: str, kind: type[ScriptedSensor], more: dict[str, Any], complaint: str
) -> None:
    """Each way of breaking the sensor contract fails the test that states it."""
    clock = ManualClock()
    case = type(
        "Broken",
        (SensorContract,),
        {
            "make": lambda self: kind(**{"script": [(0.0, 50.0)], "clock": clock, **more}),
            "advance": lambda self, seconds: clock.advance(seconds),
        },
    )()
    with pytest.raises(AssertionError, match=complaint):
        getattr(case, test)()


def stuck(self: Any, params: Any, state: Any) -> Iterator[Progress]:
    yield Progress(step=0, work=1.0)


def forgetful(self: Any, path: Path) -> list[int]:
    return [0]


def silent(self: Any, params: Any, state: Any, split: Split) -> Iterator[Progress]:
    yield Progress(step=1, work=1.0)


@pytest.mark.parametrize(
    ("test", "members", "complaint"),
    [
        ("test_training_reports_progress_and_quality", {"steps": stuck}, "numbered from 1"),
        ("test_saved_state_keeps_its_quality", {"load": forgetful}, "loaded at"),
        ("test_replay_reports_work_and_quality", {"replay": silent}, "quality comes with the last step"),
        ("test_inference_answers_and_scores", {"score": lambda s, split, a: float("nan")}, "not a finite number"),
    ],
)
def test_a_workload_that_breaks_its_promise_is_caught(test: str, members: dict[str, Any], complaint: str) -> None:
    """Each way of breaking the workload contract fails the test that states it."""
    with pytest.raises(AssertionError, match=complaint):
        broken(WorkloadContract, test, make=type("Changed", (Adder,), members))
