"""The fleet's file: jobs join, leave, and keep one mean."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.tuned import Hold, ProbeResult, Tuned
from negawatt.execute.fleetfile import Member
from negawatt.tuning.objective import Goal


def probe(limit: float, steps: float, time_s: float, energy_j: float) -> ProbeResult:
    return ProbeResult(limit=limit, steps=steps, time_s=time_s, time_sd_s=0.0, energy_j=energy_j, energy_sd_j=0.0)


BASE, HELD = probe(250, 100, 1.0, 240.0), probe(200, 20, 1.05, 210.0)
TUNED = Tuned(
    knob="power-limit", unit="W", scopes=("gpu:A",), objective="least energy", found=250.0,
    probes=(BASE, HELD), holds=(Hold(steps=880, base=BASE, own=HELD),),
)  # fmt: skip


def member(path: Path, name: str = "a", budget: float | None = 0.05) -> Member:
    return Member(path=path, name=name, length_s=1000.0, budget_fraction=budget)


def test_a_job_joins_and_leaves_with_what_it_lost(tmp_path: Path) -> None:
    """900 of 1,000 steps 5 % longer are 4.5 % of the job."""
    job = member(tmp_path / "fleet.json")
    objective = job.admit()
    assert objective.goal is Goal.WEIGHTED
    assert objective.max_slowdown_fraction is not None
    said = job.finish(TUNED, 1045.0)
    assert "4.50 % slower over 1 jobs, of 5 %" in said
    state = json.loads((tmp_path / "fleet.json").read_text())
    assert state["lost_s"] == pytest.approx(45.0)
    assert state["admitted"] == []


def test_what_one_job_spent_the_next_one_cannot(tmp_path: Path) -> None:
    """The bound of the second job is what the first one left."""
    first, second = member(tmp_path / "f", "a"), member(tmp_path / "f", "b", None)
    before = first.admit().max_slowdown_fraction
    first.finish(TUNED, 1045.0)
    after = second.admit().max_slowdown_fraction
    assert before is not None
    assert after is not None
    assert after == pytest.approx(0.051 + (51.0 - 45.0) / 1000.0, abs=0.002)


def test_an_untuned_job_counts_as_not_slowed(tmp_path: Path) -> None:
    """It leaves its part of the budget to others."""
    job = member(tmp_path / "f")
    job.admit()
    assert "0.00 % slower over 1 jobs" in job.finish(None, 500.0)


def test_many_jobs_at_once_lose_nothing(tmp_path: Path) -> None:
    """The lock lets one at a time change the file."""
    jobs = [member(tmp_path / "f", str(n)) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(Member.admit, jobs))
        list(pool.map(lambda job: job.finish(TUNED, 1045.0), jobs))
    assert json.loads((tmp_path / "f").read_text())["jobs"] == 16


def test_a_new_fleet_needs_a_budget(tmp_path: Path) -> None:
    """No budget is assumed."""
    with pytest.raises(UsageError, match=r"--fleet-budget 0\.05"):
        member(tmp_path / "f", budget=None).admit()


def test_another_budget_or_another_file_is_refused(tmp_path: Path) -> None:
    """A file that is no fleet's is left as it is."""
    member(tmp_path / "f").admit()
    with pytest.raises(UsageError, match=r"shares 0\.05"):
        member(tmp_path / "f", "b", 0.1).admit()
    (tmp_path / "other").write_text("hello")
    with pytest.raises(UsageError, match="no fleet's file"):
        member(tmp_path / "other").admit()
    assert (tmp_path / "other").read_text() == "hello"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    """The error names the file and what to do."""
    with pytest.raises(NegawattError, match="cannot be shared"):
        member(tmp_path / "missing" / "f").admit()
