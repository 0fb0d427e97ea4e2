"""The sensors' errors, by the benchmark that meters known joules on simulated hardware with the faults of real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "simulator.py"


@pytest.mark.slow
def test_the_bars_hold() -> None:
    """In 200 scenarios per sensor: errors of 1 % at most or flagged, few false flags, honest intervals, one host."""
    command = [sys.executable, str(PATH), "--json", "--quick", "--scenarios", "200"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    result = json.loads(printed)
    assert set(result) == {"benchmark", "date", "host", "load", "versions", "metrics", "table"}
    metrics = result["metrics"]
    assert metrics["error_max_fraction"] <= 0.01
    assert metrics["flagged_fraction"] <= 0.03
    assert 0.89 <= metrics["coverage_fraction"] <= 1.0
    assert metrics["host_sum_ratio"] == pytest.approx(1.0, abs=1e-6)
    for row in result["table"]:
        if row["fault"] in ("lost", "no permission", "vanished", "reset"):
            assert row["flagged_fraction"] in (None, 1.0), row
