"""The model-size lever: a knob of training, whose choice goes to inference inside the trained model."""

from __future__ import annotations

import pytest

from negawatt.core.lever import Setting
from negawatt.core.workload import Knob, Phase, Progress, Split, Workload
from negawatt.hardware.host import this_host
from negawatt.levers import model_size
from negawatt.metering.session import Meter
from negawatt.search.runner import Task, run
from negawatt.testing.contracts import LeverContract


class Sized:
    """A workload whose model is its size, and whose answers are right if it is large."""

    name, unit, quality = "sized", "sample", "accuracy"
    knobs = (Knob(name="size", phase=Phase.TRAIN, default="large", choices=("large", "small"), competent=("large",)),)

    def start(self, params, seed):
        return {"size": params["size"]}

    def steps(self, params, state):
        yield Progress(step=1, work=1.0, quality=0.5)

    def evaluate(self, state, split):
        return 0.9

    def save(self, state, path):
        (path / "size").write_text(state["size"])

    def load(self, path):
        return {"size": (path / "size").read_text()}

    def predictor(self, params, state):
        return lambda batch: [state["size"]] * len(batch)

    def requests(self, split: Split):
        return [1, 2, 3]

    def score(self, split: Split, answers):
        return float(answers[0] == ["large"])


class TestModelSize(LeverContract):
    def make(self):
        return model_size.lever

    def workload(self):
        return Sized()


def test_a_smaller_model_is_no_competent_default():
    """Training a smaller network changes what is learned, which nobody does for speed alone."""
    choices = model_size.lever.choices(Workload.of(Sized()))
    assert {c.value: (c.naive, c.competent) for c in choices} == {"large": (True, True), "small": (False, False)}


@pytest.mark.slow
def test_what_is_trained_smaller_is_served_smaller(tmp_path):
    """Inference is given the model that was trained, at its size; it has no choice of size of its own."""
    workload, host = Workload.of(Sized()), this_host()
    large, small = model_size.lever.choices(workload)
    assert {large.phase, small.phase} == {Phase.TRAIN}
    levers = {"model-size": model_size.lever}
    quality = {}
    with Meter.open(host, ("cpu-model",)) as meter:
        for choice in (large, small):
            folder = tmp_path / str(choice.value)
            train = Task(setting=Setting.of(Phase.TRAIN, [choice]), split=Split.REPORT, seed=0, save_to=folder)
            infer = Task(setting=Setting.of(Phase.INFER, []), split=Split.REPORT, seed=0, load_from=folder)
            for task in (train, infer):
                quality[choice.value] = run(workload, levers, task, meter, lambda progress: None, host).quality
    assert quality == {"large": 1.0, "small": 0.0}
