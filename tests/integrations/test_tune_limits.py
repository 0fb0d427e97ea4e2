"""`tune_limits` in real PyTorch loops on simulated GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from negawatt.core.errors import UsageError
from negawatt.testing.load import Load
from negawatt.testing.nvml import SimulatedGpu, SimulatedNvml

pytest.importorskip("torch")
RANK = Path(__file__).with_name("limited_rank.py")


@pytest.fixture
def nvml() -> Iterator[SimulatedNvml]:
    gpus = [
        SimulatedGpu(uuid=f"GPU-{n}", load=Load([(0.0, 240.0)]), limit_w=250.0, highest_w=300.0, lowest_w=100.0)
        for n in range(2)
    ]
    try:
        simulated = SimulatedNvml(gpus, live=True)
    except UsageError as error:
        pytest.skip(error.reason)
    with simulated:
        yield simulated


def train(nvml: SimulatedNvml, tmp_path: Path, world: int, steps: int) -> list[dict[str, Any]]:
    """What each rank printed."""
    environ = {**os.environ, **nvml.environ}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(rank), str(world), str(tmp_path / "meet"), str(steps)],
            env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


@pytest.mark.slow
def test_a_loop_is_tuned_and_put_back(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """One process: the limit is lowered within the bound while it trains."""
    (rank,) = train(nvml, tmp_path, 1, 1000)
    assert rank["tuned"]["probes"], rank
    assert min(rank["limits"]) < 250.0
    assert rank["after_w"] == 250.0


@pytest.mark.slow
def test_ranks_follow_one_decision(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """Two ranks of torch.distributed have the same limit at the same step, each on its own GPU."""
    first, second = train(nvml, tmp_path, 2, 1300)
    assert first["tuned"]["scopes"] != second["tuned"]["scopes"]
    assert first["tuned"]["holds"], first["tuned"]
    different = sum(one != other for one, other in zip(first["limits"], second["limits"], strict=True))
    assert different <= 6  # a rank may read its limit in the moment between its own setting and the other's
    assert first["after_w"] == second["after_w"] == 250.0


@pytest.mark.slow
def test_one_rank_without_permission_leaves_all_alone(nvml: SimulatedNvml, tmp_path: Path) -> None:
    """Training goes on in all ranks, and says why nothing was tuned."""
    nvml.gpus[1].limit_error = 4
    nvml.update()
    first, second = train(nvml, tmp_path, 2, 50)
    assert first["tuned"] is None
    assert "another rank" in first["reason"]
    assert second["reason"]
    assert set(first["limits"]) == {250.0}
