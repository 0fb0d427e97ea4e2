"""`negawatt plan` and `apply` as a user types them: real processes, the real worker, the CPU model as the meter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TOY = """
import time
from negawatt import Knob, Phase, Progress, Split

COST_S = {"slow": SLOW, "quick": 0.02, "wrong": 0.01}

class Toy:
    name, unit, quality = "toy", "sample", "accuracy"
    knobs = (Knob(name="runtime", phase=Phase.TRAIN, default="slow", choices=("slow", "quick", "wrong"),
                  competent=("slow",)),)
    def start(self, params, seed): return dict(params)
    def steps(self, params, state):
        for step in range(5):
            until = time.perf_counter() + COST_S[params["runtime"]]
            while time.perf_counter() < until:
                pass
            yield Progress(step=step + 1, work=1.0, quality=0.9)
    def evaluate(self, state, split): return 0.5 if state["runtime"] == "wrong" else 0.9

workload = Toy()
"""


@pytest.fixture
def toy(tmp_path: Path):
    """A workload whose naive default takes `slow` seconds a step, a good choice 0.02 s, and a bad one loses quality."""

    def toy(slow: float = 0.1) -> Path:
        path = tmp_path / "toy.py"
        path.write_text(TOY.replace("SLOW", str(slow)))
        return path

    return toy


@pytest.fixture
def negawatt(tmp_path: Path):
    """Run the command line with a ledger of its own."""
    env = {**os.environ, "NEGAWATT_LEDGER": str(tmp_path / "ledger.sqlite"), "NO_COLOR": "1"}

    def negawatt(*args: object, wait: bool = True):
        command = [sys.executable, "-m", "negawatt", *map(str, args)]
        if not wait:
            return subprocess.Popen(command, cwd=tmp_path, env=env, stdout=-1, stderr=-1, text=True)
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)

    return negawatt


@pytest.mark.slow
def test_a_saving_is_found_proven_and_holds(negawatt, toy, tmp_path):
    """The quick choice is found and shown, the one that loses quality is not taken, and the plan can be applied."""
    done = negawatt("plan", toy(), "--lever", "runtime", "--budget", "60s", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert json.loads((tmp_path / "negawatt-plan/plan.json").read_text()) == plan
    (phase,) = plan["phases"]
    assert [c["value"] for c in phase["setting"]["choices"] if c["lever"] == "runtime"] == ["quick"]
    saving, same = phase["savings"]
    assert (saving["against"], same["against"]) == ("competent", "naive")
    assert saving["verdict"] == "indicative"
    assert 0.6 < saving["fraction"] < 0.95
    assert saving["ci_low"] > 0
    assert plan["search_j"] > sum(t["measurement"]["readings"][0]["energy_j"] for t in plan["trials"])
    page = (tmp_path / "negawatt-plan/report.html").read_text()
    assert "indicative (estimated)" in page
    applied = negawatt("apply", "negawatt-plan/plan.json")
    assert applied.returncode == 0, applied.stdout + applied.stderr
    assert "held" in applied.stdout
    kinds = {json.loads(line)["kind"] for line in negawatt("ledger", "export").stdout.splitlines()}
    assert kinds == {"trial", "campaign", "plan", "apply"}


@pytest.mark.slow
def test_no_saving_is_an_honest_answer(negawatt, toy, tmp_path):
    """Where every choice costs the same or loses quality, nothing is shown and the exit code is 1."""
    done = negawatt("plan", toy(0.02), "--budget", "40s", "--lever", "runtime")
    assert done.returncode == 1, done.stdout + done.stderr
    (phase,) = json.loads((tmp_path / "negawatt-plan/plan.json").read_text())["phases"]
    assert phase["setting"] == phase["competent"]
    assert not [s for s in phase["savings"] if s["verdict"] in ("verified", "indicative")]
    assert "indicative" not in done.stdout.split("Not measured", maxsplit=1)[0].split("Savings")[0]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_plan_keeps_its_trials_and_goes_on(negawatt, toy, sent):
    """After Ctrl-C or SIGTERM nothing runs on, every finished trial is in the ledger, and the same command resumes."""
    plan = negawatt("plan", toy(0.15), "--lever", "runtime", "--budget", "60s", wait=False)
    for line in plan.stderr:
        if " search: " in line:
            break
    family = psutil.Process(plan.pid).children(recursive=True)
    plan.send_signal(sent)
    _, errors = plan.communicate(timeout=20)
    assert plan.returncode == 130, errors
    assert "is kept in" in errors
    assert not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    trials = negawatt("ledger", "export").stdout
    assert '"kind": "trial"' in trials or '"kind":"trial"' in trials
    again = negawatt("plan", toy(0.15), "--lever", "runtime", "--budget", "60s")
    assert again.returncode == 0, again.stderr
    assert "trials of an interrupted plan" in again.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["none.py"], 2, "no file none.py"),
        (["toy.py", "--keep", "f1>=0.5"], 2, "reports 'accuracy'"),
        (["toy.py", "--keep", "accuracy"], 2, "--keep"),
        (["toy.py", "--keep", "accuracy>=0.95"], 1, "not the promised 0.95"),
        (["toy.py", "--lever", "batchsize"], 2, "did you mean 'batch-size'"),
        (["toy.py", "--sensor", "rapel"], 2, "did you mean 'rapl'"),
        (["toy.py", "--budget", "soon"], 2, "duration 'soon'"),
        (["toy.py", "--site", "none.toml"], 2, "none.toml"),
        (["toy.py", "--out", "/proc/nowhere"], 2, "--out /proc/nowhere"),
        (["broken.py"], 1, "ZeroDivisionError"),
        (["broken.toml"], 2, "not valid TOML"),
    ],
)
def test_mistakes_are_told_in_three_parts(negawatt, toy, tmp_path, args, code, says):
    """Every mistake has its exit code, what was got, why it matters and what to do, and no traceback of ours."""
    toy()
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "broken.toml").write_text("[workload")
    done = negawatt("plan", *args)
    assert done.returncode == code, done.stderr
    for part in (says, "why it matters:", "what to do:"):
        assert part in done.stderr
    assert "negawatt/cli" not in done.stderr


def test_apply_refuses_what_is_no_plan(negawatt, tmp_path):
    """A missing file, another format and a newer version are usage errors."""
    (tmp_path / "new.json").write_text('{"schema": 99}')
    (tmp_path / "text.json").write_text("hello")
    for name, says in (("none.json", "none.json"), ("new.json", "format 99"), ("text.json", "Expecting value")):
        done = negawatt("apply", name)
        assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_a_ledger_that_cannot_be_opened_stops_before_anything_runs(toy, tmp_path):
    """No trial runs if it could not be recorded."""
    env = {**os.environ, "NEGAWATT_LEDGER": str(tmp_path)}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "negawatt", "plan", str(toy(5.0))], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "what to do:" in done.stderr
    assert time.monotonic() - began < 20


def test_two_plans_in_one_folder(negawatt, toy, tmp_path):
    """The second of two plans with one --out is told to wait, and takes nothing of the first."""
    first = negawatt("plan", toy(0.3), "--budget", "60s", wait=False)
    for line in first.stderr:
        if "naive" in line:
            break
    second = negawatt("plan", tmp_path / "toy.py", "--budget", "60s")
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=20)
    assert second.returncode == 2
    assert "another plan is writing to negawatt-plan" in second.stderr


@pytest.mark.slow
def test_trials_of_another_version_are_not_taken(negawatt, toy, tmp_path):
    """After a change to a module beside the workload, an interrupted plan starts anew."""
    (tmp_path / "helper.py").write_text("x = 1")
    plan = negawatt("plan", toy(0.15), "--lever", "runtime", wait=False)
    for line in plan.stderr:
        if " search: " in line:
            break
    plan.send_signal(signal.SIGTERM)
    plan.communicate(timeout=20)
    (tmp_path / "helper.py").write_text("x = 2")
    again = negawatt("plan", tmp_path / "toy.py", "--lever", "runtime", "--budget", "30s")
    assert "interrupted plan" not in again.stderr


@pytest.mark.slow
def test_a_candidate_that_crashes_in_the_proof_is_refused(negawatt, toy, tmp_path):
    """A setting that fails in one of its proof runs is never the plan, however much the others saved."""
    path = toy(0.1)
    crash = """
        if params["runtime"] == "quick":
            with open("count", "a") as file: file.write("x")
            if len(open("count").read()) > 10: raise MemoryError("too much")
        return dict(params)"""
    path.write_text(path.read_text().replace(" return dict(params)", crash))
    done = negawatt("plan", path, "--lever", "runtime", "--budget", "60s")
    assert done.returncode == 1, done.stdout
    (phase,) = json.loads((tmp_path / "negawatt-plan/plan.json").read_text())["phases"]
    assert phase["setting"] == phase["competent"] != phase["candidate"]
    assert "too much" in phase["savings"][0]["reasons"][-1]
