"""`negawatt apply` on plans that were edited, moved or outlived, and a progress stream that nobody reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from negawatt.core.codec import to_json
from negawatt.core.reading import Source
from negawatt.core.saving import Baseline, Saving, Verdict
from negawatt.core.workload import Phase

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
        (lambda p: p.update(phases=[]), "a plan without phases"),
        (lambda p: p.update(phases=p["phases"] * 2), "phases of a plan are distinct"),
        (lambda p: p["phases"][0].update(phase="train"), "settings of the train phase"),
        (lambda p: p.update(path="/gone/toy.py"), "the workload has moved"),
        (lambda p: p.update(search_j="much"), "search_j"),
        (lambda p: p.update(search_j=-1.0), "search_j is finite and not negative"),
        (lambda p: p.update(search_time_s=float("nan")), "search_time_s is finite"),
        (lambda p: p["lifetimes"]["plan"].update(requests=float("inf")), "lifetime 'plan' is of finite numbers"),
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


def test_a_plan_nested_too_deeply_is_no_plan(planned):
    """JSON that Python cannot take in is a usage error."""
    (planned[0] / "deep.json").write_text("[" * 100_000)
    done = run(planned, "apply", "deep.json")
    assert (done.returncode, "there is no plan to carry out" in done.stderr) == (2, True), done.stderr


def claiming(planned, measurements: list[dict]) -> Path:
    """The plan, edited to claim a saving over the competent default, with these proof runs of that default."""
    folder, _ = planned
    plan = json.loads((folder / "negawatt-plan/plan.json").read_text())
    (phase,) = plan["phases"]
    saving = Saving(
        phase=Phase.INFER, against=Baseline.COMPETENT, fraction=0.5, ci_low=0.4, ci_high=0.6, level_fraction=0.95, n=4,
        evidence=Source.ESTIMATED, verdict=Verdict.INDICATIVE,
    )  # fmt: skip
    phase["savings"] = [to_json(saving)]
    trial = plan["trials"][0]
    plan["trials"] = [
        {**trial, "setting": phase["competent"], "role": "proof", "split": "report", "measurement": m, "error": None}
        for m in measurements
    ]
    (folder / "claims.json").write_text(json.dumps(plan))
    return folder / "claims.json"


def measured(planned) -> dict:
    """A measurement of the plan."""
    plan = json.loads((planned[0] / "negawatt-plan/plan.json").read_text())
    return next(t["measurement"] for t in plan["trials"] if t["measurement"])


def without_energy(m: dict) -> dict:
    """The same run with no joules."""
    return {**m, "readings": [{**reading, "energy_j": 0.0} for reading in m["readings"]]}


@pytest.mark.parametrize(
    "runs", [lambda m: [], lambda m: [m], lambda m: [without_energy(m)] * 2], ids=["none", "one", "no energy"]
)
def test_too_few_proof_runs_are_not_comparable(planned, runs):
    """Without two proof runs of the baseline that took energy, the saving is not comparable, and the reason is told."""
    done = run(planned, "apply", str(claiming(planned, runs(measured(planned)))))
    assert done.returncode == 1, done.stderr
    assert "not comparable: the plan holds" in done.stdout


def test_a_run_is_counted_once(planned):
    """The joules of a run are in the bench's record of the trial, and not in the record of the apply as well."""
    assert run(planned, "apply", "negawatt-plan/plan.json").returncode == 0
    records = [json.loads(line) for line in run(planned, "ledger", "export").stdout.splitlines()]
    *_, trial = (record for record in records if record["kind"] == "trial")
    *_, applied = (record for record in records if record["kind"] == "apply")
    assert (trial["campaign"], trial["energy_j"] > 0) == (applied["campaign"], True)
    assert applied["energy_j"] is None


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


@pytest.mark.parametrize("command", [["doctor"], ["ledger", "export"], ["--help"]])
@pytest.mark.parametrize("redirect", [">&-", "2>&-", "| true", "2>&1 >/dev/full | true"])
def test_streams_that_are_closed_give_no_traceback(planned, command, redirect):
    """Closed streams and readers that leave end the command quietly, also when Python shuts down."""
    folder, env = planned
    line = f"{sys.executable} -m negawatt {' '.join(command)} {redirect}"
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True)
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stdout + done.stderr


def test_a_mistake_keeps_its_exit_code_where_it_cannot_be_told(planned):
    """A full stderr costs the message of a usage error, not its exit code."""
    folder, env = planned
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "negawatt", "apply", "none.json"], cwd=folder, env=env, stderr=full
        )
    assert done.returncode == 2


@pytest.mark.parametrize("value", ["inf", "nan"])
@pytest.mark.parametrize("option", ["--requests", "--max-slowdown"])
def test_numbers_that_are_none(planned, option, value):
    """Non-finite options are refused before anything runs."""
    assert run(planned, "plan", "toy.py", option, value).returncode == 2
