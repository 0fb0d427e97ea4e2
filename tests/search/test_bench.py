"""Trials in a real worker process: whatever the workload does, the bench goes on and everything is recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.trial import Role
from negawatt.core.workload import Phase, Split
from negawatt.search.bench import recorded_trials


def test_a_training_trial_is_one_trained_model(run, write):
    """Work is 1 (a model), samples add up, quality is that of the evaluation, energy has a source and a time."""
    trial = run(write())
    m = trial.measurement
    assert m is not None, trial.error
    assert (m.work_units, m.samples, m.quality) == (1.0, 30.0, 0.75)
    assert m.energy_j > 0
    assert m.time_s > 0.003


def test_early_stopping_ends_the_run(run, write):
    """With the target at 0.5 training ends after the second of three steps."""
    trial = run(write(), early_stopping="target+0")
    assert trial.measurement.samples == 20.0


def test_inference_uses_the_saved_model(bench, write, as_is, tmp_path):
    """The model trained with seed 3 answers, all requests in whole passes."""
    on = bench(write())
    ready = on.ready()
    on.trial(as_is(ready), split=Split.REPORT, seed=3, role=Role.SEARCH, save_to=tmp_path / "m")
    trial = on.trial(
        as_is(ready, Phase.INFER, batch_size=8), split=Split.REPORT, seed=0, role=Role.SEARCH, load_from=tmp_path / "m"
    )
    assert trial.measurement.quality == 3.0
    assert trial.measurement.work_units % 20 == 0
    assert trial.measurement.latency.p50_s <= trial.measurement.latency.p99_s


@pytest.mark.parametrize(
    ("step", "evaluate", "kind", "says"),
    [
        ("raise RuntimeError('boom')", "return 1.0", "raised", "boom"),
        ("sys.exit(3)", "return 1.0", "raised", "SystemExit"),
        ("os.kill(os.getpid(), 9)", "return 1.0", "died", "killed by signal 9"),
        ("pass", "return float('nan')", "bad-result", "nan"),
        ("pass", "return None", "bad-result", "None"),
        ("break", "return 1.0", "bad-result", "0 samples"),
        ("yield Progress(step=1, work=float('inf'))", "return 1.0", "bad-result", "a training step gave"),
        ("yield Progress(step=1, work=1.0, quality={})", "return 1.0", "bad-result", "a training step gave"),
        ("yield 3", "return 1.0", "bad-result", "a training step gave"),
    ],
)
def test_a_failing_workload_is_a_recorded_trial(run, write, ledger, step, evaluate, kind, says):
    """A workload that raises, exits, dies, or gives no usable quality makes a failed trial with the reason."""
    trial = run(write(step, evaluate))
    assert trial.error.kind == kind
    assert says in trial.error.message
    assert [r.body["error"]["kind"] for r in ledger.records(kind="trial")] == [kind]


def test_a_hang_is_stopped_and_the_next_trial_runs(bench, write, as_is):
    """A trial over its limit is stopped and recorded; a new worker takes the next one."""
    on = bench(write("time.sleep(60 if params['batch_size'] == 4 else 0)"), limit_s=1.0)
    ready = on.ready()
    hung = on.trial(as_is(ready), split=Split.SELECTION, seed=0, role=Role.SEARCH)
    good = on.trial(as_is(ready, batch_size=2), split=Split.SELECTION, seed=0, role=Role.SEARCH)
    assert hung.error.kind == "hung"
    assert "--trial-timeout" in hung.error.message
    assert good.measurement is not None


def test_nothing_is_left_running(bench, write, as_is):
    """Children that a hanging workload started are gone after the bench is closed."""
    on = bench(write("import subprocess; subprocess.Popen(['sleep', '61']); time.sleep(60)"), limit_s=1.0)
    on.trial(as_is(on.ready()), split=Split.SELECTION, seed=0, role=Role.SEARCH)
    assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "61"]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nowhere_to_be_found", "nowhere_to_be_found"),
        ("x = 1", "no name `workload`"),
        ("class W: pass\nworkload = W()", "has no name, unit, quality, knobs"),
        ("class W:\n name=unit=quality='x'; knobs=()\nworkload = W()", "neither be trained nor answer"),
        ("def (", "SyntaxError"),
    ],
)
def test_a_file_that_is_no_workload(bench, tmp_path, text, says):
    """A file that cannot be loaded is an error that says why, before anything runs."""
    path = tmp_path / "w.py"
    path.write_text(text)
    with pytest.raises(NegawattError, match=says):
        bench(path).ready()


def test_a_missing_file(bench, tmp_path):
    """A path to nothing is a usage error."""
    with pytest.raises(UsageError, match="no file"):
        bench(tmp_path / "none.py").ready()


def test_an_interrupted_campaign_goes_on(bench, write, as_is, ledger):
    """Recorded trials are used instead of running again; a closed campaign starts anew."""
    first = bench(write())
    setting = as_is(first.ready())
    ledger.append("campaign", {"state": "open"}, campaign="test")
    done = first.trial(setting, split=Split.SELECTION, seed=0, role=Role.SEARCH)
    second = bench(write("raise RuntimeError('must not run')"))
    second.resume(recorded_trials(ledger, "test"))
    assert second.trial(setting, split=Split.SELECTION, seed=0, role=Role.SEARCH) == done
    assert second.trial(setting, split=Split.SELECTION, seed=1, role=Role.SEARCH).error is not None
    ledger.append("campaign", {"state": "closed"}, campaign="test")
    assert recorded_trials(ledger, "test") == []


def test_the_worker_dies_with_its_parent(write, tmp_path):
    """When the parent is killed outright, the worker does not stay behind."""
    if sys.platform != "linux":
        pytest.skip("PR_SET_PDEATHSIG is Linux only")
    script = f"""
from pathlib import Path
from negawatt.search.bench import _Worker
from negawatt.search.worker import Setup
w = _Worker(Setup(path=Path({str(write())!r})), Path({str(tmp_path / "log")!r}))
print(w._process.pid, flush=True)
import time; time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while time.monotonic() < until and worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_a_death_is_noticed_though_a_forked_child_lives_on(bench, write, as_is):
    """A worker that forks and then dies is reported dead at once, and what it forked is ended."""
    step = "os.fork() and os.kill(os.getpid(), 11); time.sleep(62)"
    on = bench(write(step), limit_s=30.0)
    ready = on.ready()
    began = time.monotonic()
    trial = on.trial(as_is(ready), split=Split.SELECTION, seed=0, role=Role.SEARCH)
    assert (trial.error.kind, "signal 11" in trial.error.message) == ("died", True)
    assert time.monotonic() - began < 15
    left = [p for p in psutil.process_iter(["cmdline"]) if "negawatt.search" in (p.info["cmdline"] or [])]
    assert not [p for p in left if p.ppid() == 1 and p.status() != psutil.STATUS_ZOMBIE]


def test_numpy_numbers_are_plain_numbers(run, tmp_path, write):
    """Choices, work and quality may be NumPy scalars."""
    pytest.importorskip("numpy")
    path = write("import numpy as np; yield Progress(step=np.int64(1), work=np.float32(1), quality=np.float64(0.5))")
    path.write_text(path.read_text().replace("choices=(2, 4)", "choices=tuple(__import__('numpy').array([2, 4]))"))
    trial = run(path)
    assert trial.measurement is not None, trial.error


def test_a_proof_is_never_resumed(bench, write, as_is, ledger):
    """Blocks cancel drift only between neighbouring runs, so those of an earlier session are not used."""
    on = bench(write())
    setting = as_is(on.ready())
    for role in (Role.SEARCH, Role.WARMUP, Role.PROOF):
        on.trial(setting, split=Split.REPORT, seed=0, role=role)
    assert [t.role for t in recorded_trials(ledger, "test")] == [Role.SEARCH]
