"""The benchmark of searches for the best power limit, and the prior that is shipped."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import pytest

from negawatt.tuning.plain import Sweep
from negawatt.tuning.prior import Prior

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("NEGAWATT_DATA", ROOT.parent / "shared" / "data")) / "power_limit"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="Zeus's power traces are not beside the checkout")


@pytest.fixture
def benchmark(monkeypatch):
    """benchmarks/power_limit.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("power_limit")


@pytest.fixture
def traces(tmp_path):
    """A folder with two unknown GPUs and three unknown networks, one row of which has no power."""
    for gpu, limits in (("x1", (400, 300, 200)), ("x2", (350, 280, 210, 140))):
        lines = ["dataset,network,batch_size,optimizer,power_limit,time_per_epoch,average_power"]
        for n, network in enumerate(("net a", "net b", "net c")):
            for limit in limits:
                power_w = min(250 + 20 * n, 0.98 * limit)
                lines.append(f"set,{network},{8 * n},sgd,{limit},{10 + n + 500 / power_w:.3f},{power_w}")
        (tmp_path / f"summary_power_{gpu}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (tmp_path / "summary_power_x1.csv").open("a", encoding="utf-8") as file:
        file.write("set,net a,0,sgd,100,20.0,nan\n")
    return tmp_path


def test_other_gpus_and_networks_are_taken(benchmark, traces, capsys):
    """GPUs come from the names of files, networks from a column; a row without power is said and left out."""
    result = benchmark.report(traces, quick=True)
    assert "summary_power_x1.csv, line 11" in capsys.readouterr().err
    assert result["data"] == {"curves": 6, "gpus": ["x1", "x2"], "networks": ["net a", "net b", "net c"], "repeats": 5}
    for prefix in ("", "sweep_", "ternary_"):
        for goal in ("10", "5", "min"):
            for name in (f"probes_{goal}", f"regret_{goal}_fraction", f"violations_{goal}_fraction"):
                assert result["metrics"][prefix + name] >= 0
    assert result["metrics"]["sweep_probes_5"] == 3.5


def test_without_data_it_says_what_to_give(benchmark, tmp_path):
    """A folder without traces ends the benchmark with what is missing."""
    with pytest.raises(SystemExit, match="no summary_power_"):
        benchmark.read(tmp_path)


def test_a_gpu_or_network_too_few_is_said(benchmark, traces):
    """Leaving out a GPU and a network must leave something to learn from."""
    (traces / "summary_power_x2.csv").unlink()
    with pytest.raises(SystemExit, match="too few curves"):
        benchmark.priors(benchmark.read(traces))


def test_regret_and_violation_are_of_true_figures(benchmark):
    """A pick misled by noise is judged by what is true; breaking the bound is a violation and earns nothing."""
    one = benchmark.Measured(
        gpu="g",
        network="n",
        limits_w=np.array([300.0, 200.0, 100.0]),
        times_s=np.array([1.0, 1.04, 1.2]),
        powers_w=np.array([250.0, 200.0, 100.0]),
    )

    def sweep(one, objective):
        return Sweep(one.limits_w.tolist(), objective)

    none = np.ones(3)
    right = benchmark.play(one, "5", sweep, (none, none))
    assert (right.probes, right.regret, right.violation) == (3, 0.0, False)
    assert right.saving == pytest.approx(1 - 1.04 * 200 / 250)
    too_slow = benchmark.play(one, "5", sweep, (np.array([1.0, 1.0, 0.85]), none))
    assert (too_slow.regret, too_slow.violation) == (0.0, True)
    shy = benchmark.play(one, "5", sweep, (np.array([1.0, 1.02, 1.0]), none))
    assert shy.regret == pytest.approx(250 / (1.04 * 200) - 1)
    assert shy.slow_windows == 0


@needs_data
def test_the_shipped_prior_is_what_the_script_makes(benchmark, monkeypatch):
    """The file in the package can be made again from the traces."""
    made = importlib.import_module("fit_power_prior").made(DATA)
    shipped = Prior.load()
    assert made.source == shipped.source
    for name in ("weights", "means", "covariances", "nuggets"):
        assert getattr(made, name) == pytest.approx(getattr(shipped, name), rel=1e-3, abs=1e-5), name


@needs_data
@pytest.mark.slow
def test_the_bars_are_met(benchmark):
    """Probes, regret and violations on Zeus's traces stay within what was asked of the search."""
    metrics = benchmark.report(DATA, quick=True)["metrics"]
    for goal, probes, regret in (("10", 3.2, 0.010), ("5", 3.4, 0.018), ("min", 3.0, 0.008)):
        assert metrics[f"probes_{goal}"] <= probes
        assert metrics[f"regret_{goal}_fraction"] <= regret
        assert metrics[f"violations_{goal}_fraction"] <= 1.5 * metrics[f"sweep_violations_{goal}_fraction"]
