"""The error rates of the proof, by the benchmark that simulates whole campaigns."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "proof.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The benchmark as a module."""
    spec = importlib.util.spec_from_file_location("proof_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rates_are_about_right(benchmark: ModuleType) -> None:
    """In 60 campaigns each: few false claims, most truths covered, most savings seen."""
    metrics = benchmark.report(60, quick=True)["metrics"]
    assert metrics["false_shown_fraction"] <= 0.10
    assert metrics["coverage_fraction"] >= 0.88
    assert metrics["power_fraction"] >= 0.65


@pytest.mark.slow
def test_rates_hold_and_the_usual_ways_do_not(benchmark: ModuleType) -> None:
    """In 2000 campaigns each: at most 5 % false, 93 % covered, 80 % seen; the usual ways claim more falsely."""
    result = benchmark.report(benchmark.CAMPAIGNS, quick=False)
    metrics = result["metrics"]
    assert metrics["false_shown_fraction"] <= 0.05
    assert metrics["coverage_fraction"] >= 0.93
    assert metrics["drift_coverage_fraction"] >= 0.93
    assert metrics["power_fraction"] >= 0.80
    for row in result["table"]:
        if row["scenario"] == "no saving, drift" and row["method"] != "negawatt":
            assert row["shown_fraction"] > 0.05, row


def test_one_json_object_on_stdout() -> None:
    """The program prints the object that the design asks for, and nothing else."""
    command = [sys.executable, str(PATH), "--json", "--quick", "--campaigns", "3"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    result = json.loads(printed)
    assert set(result) == {"benchmark", "date", "host", "load", "versions", "metrics", "table"}
    assert result["benchmark"] == "proof"
    assert {"false_shown_fraction", "coverage_fraction", "power_fraction"} <= set(result["metrics"])
