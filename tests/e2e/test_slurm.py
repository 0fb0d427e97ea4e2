"""Metered runs inside a real Slurm: ranks add up to the host, and a job answers for its CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "Slurm is there"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two ranks need two CPUs"),
]

RANK = """
    import json, time, negawatt
    with negawatt.meter("rank", sensors=["cpu-model"]) as m:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            sum(range(1000))
    print(json.dumps([m.host_energy_j, m.energy_j, m.attribution.runs]))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm.one_node(tmp_path_factory.mktemp("slurm")) as environ:
        yield environ


def ranks(cluster: dict[str, str], board: Path, count: int) -> list[list[float]]:
    """What each rank of a job with one CPU per rank says."""
    command = ["srun", "-n", str(count), "-c", "1", "--cpu-bind=cores", sys.executable, "-c", textwrap.dedent(RANK)]
    environ = {**cluster, "NEGAWATT_BOARD": str(board)}
    done = subprocess.run(command, env=environ, cwd=board.parent, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_ranks_add_up_to_the_host(cluster: dict[str, str], tmp_path: Path) -> None:
    """Two ranks on all CPUs answer for the host once, not twice."""
    told = ranks(cluster, tmp_path / "board", 2)
    if os.cpu_count() == 2:
        assert sum(mine for _, mine, _ in told) == pytest.approx(max(host for host, *_ in told), rel=0.1)
    assert [runs for *_, runs in told] == [2, 2]


def test_a_job_answers_for_its_cpus(cluster: dict[str, str], tmp_path: Path) -> None:
    """A job that Slurm bound to one CPU answers for one CPU's part of the host, whatever runs on the others."""
    ((host_j, mine_j, _),) = ranks(cluster, tmp_path / "board", 1)
    assert mine_j == pytest.approx(host_j / (os.cpu_count() or 1), rel=1e-3)
