"""`negawatt apply` on plans that were edited, moved or outlived, and a progress stream that nobody reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = """
from negawatt import Knob, Phase, Split

class Toy:
    name, unit, quality, knobs = "toy", "x", "accuracy", ()
    def predictor(self, params, state): return lambda batch: batch
    def requests(self, split): return [1]
    def score(self, split, answers): return 1.0

workload = Toy()
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A folder with a workload and a plan for it, made while nobody read the progress; and its environment."""
    folder: Path = tmp_path_factory.mktemp("apply")
    (folder / "toy.py").write_text(TOY)
    env = {**os.environ, "NEGAWATT_LEDGER": str(folder / "ledger.sqlite")}
    command = [sys.executable, "-m", "negawatt", "plan", "toy.py", "--budget", "4s"]
    with Path("/dev/full").open("w") as full:
        subprocess.run(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=full)
    return folder, env


def run(planned, *args: str):
    """Run the command line in the folder of the plan."""
    folder, env = planned
    return subprocess.run(
        [sys.executable, "-m", "negawatt", *args], cwd=folder, env=env, capture_output=True, text=True, timeout=60
    )


def test_a_plan_is_made_though_nobody_can_read_its_progress(planned):
    """A full or closed stderr costs the progress lines, not the plan."""
    assert (planned[0] / "negawatt-plan/plan.json").exists()


def test_nothing_claimed_still_keeps_the_promise(planned):
    """Where the plan claims nothing, the run is recorded, and a missed quality is a failure."""
    folder, _ = planned
    assert run(planned, "apply", "negawatt-plan/plan.json").returncode == 0
    plan = json.loads((folder / "negawatt-plan/plan.json").read_text())
    plan["keep"]["bound"] = 2.0
    (folder / "strict.json").write_text(json.dumps(plan))
    done = run(planned, "apply", "strict.json")
    assert done.returncode == 1
    assert "accuracy is 1.0, below 2" in done.stdout


def test_dry_run_as_json(planned):
    """--dry-run --json prints the settings as JSON and runs nothing."""
    done = run(planned, "apply", "negawatt-plan/plan.json", "--dry-run", "--json")
    assert json.loads(done.stdout)["infer"]["phase"] == "infer"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.update(phases=[]), "a plan with the phases"),
        (lambda p: p.update(phases=p["phases"] * 2), "a plan with the phases"),
        (lambda p: p["phases"][0].update(phase="train"), "a plan with the phases"),
        (lambda p: p.update(path="/gone/toy.py"), "no file /gone/toy.py"),
        (lambda p: p.update(search_j="much"), "search_j"),
    ],
)
def test_edited_plans_are_refused(planned, change, says):
    """A plan that does not hang together is a usage error, and nothing runs."""
    folder, _ = planned
    plan = json.loads((folder / "negawatt-plan/plan.json").read_text())
    change(plan)
    (folder / "edited.json").write_text(json.dumps(plan))
    done = run(planned, "apply", "edited.json")
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_a_folder_that_cannot_be_made(planned):
    """An --out that cannot be written is a usage error."""
    done = run(planned, "apply", "negawatt-plan/plan.json", "--out", "/proc/x")
    assert (done.returncode, "--out /proc/x" in done.stderr) == (2, True)


@pytest.mark.parametrize("command", [["doctor"], ["ledger", "export"]])
def test_a_full_disk_behind_stdout(planned, command):
    """Output that cannot be written is told in three parts, without a traceback."""
    folder, env = planned
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "negawatt", *command], cwd=folder, env=env, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert b"what to do:" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize("option", ["--requests", "--max-slowdown"])
def test_numbers_that_are_none(planned, option, value):
    """Non-finite options are refused before anything runs."""
    assert run(planned, "plan", "toy.py", option, value).returncode == 2
