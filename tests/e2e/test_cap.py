"""`negawatt cap` on a simulated GPU whose steps take longer under a lower limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from negawatt.core.errors import UsageError
from negawatt.testing.load import Load
from negawatt.testing.nvml import SimulatedGpu, SimulatedNvml

HERE = Path(__file__).parent
JOB = (sys.executable, str(HERE / "limited_job.py"))
FOUND_W = 250.0


def gpu(**changes: Any) -> SimulatedGpu:
    fields = {"load": Load([(0.0, 240.0)]), "limit_w": FOUND_W, "highest_w": 300.0, "lowest_w": 100.0}
    return SimulatedGpu(**{**fields, **changes})


@pytest.fixture
def nvml() -> Iterator[SimulatedNvml]:
    try:
        simulated = SimulatedNvml([gpu()], live=True)
    except UsageError as error:
        pytest.skip(error.reason)
    with simulated:
        yield simulated


def limit_w(nvml: SimulatedNvml) -> float:
    return nvml.settings[0].limit_w


def environ(nvml: SimulatedNvml, tmp_path: Path) -> dict[str, str]:
    return {**os.environ, **nvml.environ, "NEGAWATT_STATE": str(tmp_path / "state")}


def cap(nvml: SimulatedNvml, tmp_path: Path, *how: str, job: tuple[str, ...]) -> tuple[str, dict[str, Any], int]:
    """What it says, the record, and the exit code."""
    record = tmp_path / "record.json"
    argv = [sys.executable, str(HERE / "cap_quickly.py"), str(record), *how, "--", *job]
    done = subprocess.run(argv, env=environ(nvml, tmp_path), capture_output=True, text=True, timeout=120)
    assert record.exists(), done.stderr
    return done.stderr, json.loads(record.read_text()), done.returncode


def test_it_tunes_holds_and_puts_back(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """Windows of the job's own steps find a limit that saves within the bound; afterwards all is as found."""
    said, record, code = cap(nvml, tmp_path, job=(*JOB, "900"))
    (tuned,) = record["tuned"]
    assert code == 0, said
    assert limit_w(nvml) == FOUND_W
    assert tuned["found"] == FOUND_W
    assert 150.0 <= tuned["holds"][-1]["own"]["limit"] <= 210.0, said
    assert tuned["probes"][0]["limit"] == FOUND_W
    assert tuned["holds"][-1]["steps"] > 100
    assert "energy" in said
    assert "-" in said.split("own windows:")[1].split("%")[0]  # less energy


@pytest.mark.slow
def test_steps_of_pytorch_are_counted_without_a_change_of_the_program(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """A program with an optimizer that knows nothing of negawatt is tuned."""
    pytest.importorskip("torch")
    said, record, _ = cap(nvml, tmp_path, job=(*JOB, "800", "torch"))
    assert record["tuned"][0]["probes"], said
    assert "optimizer step" in said


def test_a_program_that_tells_no_steps_is_left_alone(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """Without steps no slow-down can be told, so nothing is set, and what to do is said."""
    said, record, code = cap(nvml, tmp_path, job=(*JOB, "50", "silent"))
    assert code == 0
    assert record["tuned"][0]["probes"] == []
    assert "NEGAWATT_PROGRESS" in said


def test_a_fixed_limit_is_held_and_put_back(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """--limit sets it for the command's time."""
    look = (
        "import pynvml as n; n.nvmlInit(); print(n.nvmlDeviceGetPowerManagementLimit(n.nvmlDeviceGetHandleByIndex(0)))"
    )
    argv = [sys.executable, str(HERE / "cap_quickly.py"), str(tmp_path / "r"), "175", "--", sys.executable, "-c", look]
    done = subprocess.run(argv, env=environ(nvml, tmp_path), capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "175000", done.stderr
    assert limit_w(nvml) == FOUND_W


def test_advice_changes_nothing_and_names_the_command(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """With --advise the limit is never touched, and what an administrator would type is said."""
    pytest.importorskip("numpy")
    said, record, code = cap(nvml, tmp_path, "advise", job=(*JOB, "300"))
    assert code == 0
    assert record["tuned"] == []
    assert "nvidia-smi" in said
    assert "expected per step" in said
    assert limit_w(nvml) == FOUND_W


def test_without_permission_the_job_runs_and_advice_is_given(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """A driver that refuses does not stop the job; the exit code is the job's."""
    nvml.gpus[0].limit_error = 4
    nvml.update()
    said, record, code = cap(nvml, tmp_path, job=("sh", "-c", "sleep 0.5; exit 7"))
    assert code == 7
    assert "not limited" in said
    assert record["tuned"] == []


@pytest.mark.slow
def test_a_limit_that_does_not_take_ends_the_tuning(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """The device says OK and does nothing: the job finishes, and the record says what happened."""
    nvml.gpus[0].limit_ignored = True
    nvml.update()
    said, record, code = cap(nvml, tmp_path, job=(*JOB, "500"))
    assert code == 0
    assert limit_w(nvml) == FOUND_W
    assert any("could not be set" in note for note in record["tuned"][0]["notes"]), said


@pytest.mark.slow
def test_permission_withdrawn_on_the_way(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """The job finishes; as soon as it is allowed again, the next start puts the limit back."""
    record = tmp_path / "record.json"
    argv = [sys.executable, str(HERE / "cap_quickly.py"), str(record), "--", *JOB, "600"]
    job = subprocess.Popen(argv, env=environ(nvml, tmp_path), stderr=subprocess.PIPE, text=True)
    wait_for_change(nvml)
    nvml.gpus[0].limit_error = 4
    nvml.update()
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 0
    assert any(
        "could not be set" in n or "not put back" in n for n in json.loads(record.read_text())["tuned"][0]["notes"]
    )
    assert limit_w(nvml) != FOUND_W, said
    nvml.gpus[0].limit_error = 0
    nvml.update()
    cap(nvml, tmp_path, job=(*JOB, "5"))
    assert limit_w(nvml) == FOUND_W


def test_a_killed_cap_leaves_the_limit_as_found(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """SIGKILL in the middle of the tuning: the watchdog puts the limit back within 2 s, and the job goes on."""
    argv = [sys.executable, str(HERE / "cap_quickly.py"), str(tmp_path / "r"), "--", *JOB, "2000"]
    job = subprocess.Popen(argv, env=environ(nvml, tmp_path), stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for_change(nvml)
    job.send_signal(signal.SIGKILL)
    killed_s = time.monotonic()
    while limit_w(nvml) != FOUND_W and time.monotonic() - killed_s < 10:
        time.sleep(0.01)
    assert limit_w(nvml) == FOUND_W
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


@pytest.mark.slow
def test_the_second_of_two_users_is_not_limited(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """While one job's limit is tuned, another job on the same GPU runs, is told who has it, and changes nothing."""
    argv = [sys.executable, str(HERE / "cap_quickly.py"), str(tmp_path / "first"), "--", *JOB, "1500"]
    first = subprocess.Popen(argv, env=environ(nvml, tmp_path), stderr=subprocess.DEVNULL)
    wait_for_change(nvml)
    said, record, code = cap(nvml, tmp_path, job=(*JOB, "20"))
    assert code == 0
    assert "negawatt cap" in said.split("not limited")[1]
    assert record["tuned"] == []
    first.terminate()
    first.wait()
    deadline_s = time.monotonic() + 10
    while limit_w(nvml) != FOUND_W and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert limit_w(nvml) == FOUND_W


def wait_for_change(nvml: SimulatedNvml) -> None:
    deadline_s = time.monotonic() + 60
    while limit_w(nvml) == FOUND_W:
        assert time.monotonic() < deadline_s, "no limit was tried"
        time.sleep(0.01)


@pytest.mark.slow
def test_the_command_line_at_its_own_pace(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """The real command tunes a job of a minute within its bound."""
    record = tmp_path / "record.json"
    argv = [sys.executable, "-m", "negawatt", "cap", "--max-slowdown", "0.1", "--record", str(record), "--"]
    done = subprocess.run(
        [*argv, *JOB, "6000"], env=environ(nvml, tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (tuned,) = json.loads(record.read_text())["tuned"]
    base, held = tuned["probes"][0], tuned["probes"][-1]
    assert held["time_s"] < 1.12 * base["time_s"]
    assert held["energy_j"] < 0.95 * base["energy_j"]
    assert limit_w(nvml) == FOUND_W
