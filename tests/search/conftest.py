"""Workloads that behave and misbehave, and a bench to run them on."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.core.lever import Setting
from negawatt.core.trial import Role
from negawatt.core.workload import Phase, Split
from negawatt.ledger.store import Ledger
from negawatt.search.bench import Bench
from negawatt.search.worker import Setup

WORKLOAD = """
import time, os, sys
from negawatt import Knob, Phase, Progress, Split

class Toy:
    name, unit, quality = "toy", "sample", "accuracy"
    knobs = (Knob(name="batch_size", phase=Phase.TRAIN, default=4, choices=(2, 4)),
             Knob(name="batch_size", phase=Phase.INFER, default=1, choices=(1, 8)))
    def start(self, params, seed): return {"seed": seed, "params": dict(params)}
    def steps(self, params, state):
        for step in range(1, 4):
            {step}
            yield Progress(step=step, work=10.0, quality=step / 4)
    def evaluate(self, state, split):
        {evaluate}
    def save(self, state, path): (path / "s").write_text(str(state["seed"]))
    def load(self, path): return {"seed": int((path / "s").read_text())}
    def predictor(self, params, state): return lambda batch: [x + state["seed"] for x in batch]
    def requests(self, split): return list(range(20))
    def score(self, split, answers): return float(answers[0][0])

workload = Toy()
"""


@pytest.fixture
def write(tmp_path: Path):
    """Write a workload file whose training step and evaluation are given as code."""

    def write(step: str = "time.sleep(0.001)", evaluate: str = "return 0.75") -> Path:
        path = tmp_path / "toy.py"
        path.write_text(WORKLOAD.replace("{step}", step).replace("{evaluate}", evaluate))
        return path

    return write


@pytest.fixture
def ledger(tmp_path: Path):
    """A ledger of its own."""
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


@pytest.fixture
def bench(tmp_path: Path, ledger: Ledger):
    """Make a bench for a workload file; all are closed at the end."""
    made: list[Bench] = []

    def bench(path: Path, limit_s: float = 20.0, watch=lambda event: None) -> Bench:
        made.append(
            Bench(
                setup=Setup(path=path, quality_bound=0.5),
                ledger=ledger,
                campaign="test",
                log=tmp_path / "workload.log",
                watch=watch,
                trial_limit_s=limit_s,
                first_limit_s=limit_s,
            )
        )
        return made[-1]

    yield bench
    for one in made:
        one.__exit__(None, None, None)


@pytest.fixture
def as_is():
    """The naive setting of a phase."""

    def as_is(ready, phase: Phase = Phase.TRAIN, **changed) -> Setting:
        mine = {n: [c for c in cs if c.phase == phase] for n, cs in ready.choices.items()}
        naive = Setting.of(phase, [next(c for c in cs if c.naive) for cs in mine.values() if cs])
        for lever, value in changed.items():
            name = lever.replace("_", "-")
            naive = naive.changed(next(c for c in mine[name] if c.value == value))
        return naive

    return as_is


@pytest.fixture
def run(bench, as_is):
    """Run one search trial of the training phase."""

    def run(path: Path, limit_s: float = 20.0, **changed):
        on = bench(path, limit_s)
        return on.trial(as_is(on.ready(), **changed), split=Split.SELECTION, seed=3, role=Role.SEARCH)

    return run
