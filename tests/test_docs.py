"""What README, CONTRIBUTING and docs show runs as it stands."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(language, text, id=f"{page.stem}-{i}-{language}")
    for page in PAGES
    for i, (language, text) in enumerate(
        re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize(("language", "text"), [b for b in BLOCKS if b.values[0] == "python"])
def test_python_blocks_run(tmp_path, language, text):
    """Every Python block runs as a program; one that tests another is given it as the plug-in module it imports."""
    plugin = next(b.values[1] for b in BLOCKS if "class MyChip:" in b.values[1])
    (tmp_path / "negawatt_mychip.py").write_text(plugin)
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "NEGAWATT_LEDGER": str(tmp_path / "ledger.sqlite")}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("language", "text"), [b for b in BLOCKS if b.values[0] == "toml"])
def test_toml_blocks_parse(language, text):
    """Every TOML block is TOML."""
    assert tomllib.loads(text)


@pytest.mark.parametrize(("language", "text"), [b for b in BLOCKS if b.values[0] == "sh"])
def test_shell_blocks_name_what_exists(language, text):
    """Every make target, command, option and example that a shell block uses exists."""
    for line in text.splitlines():
        words = shlex.split(line)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            continue
        assert words[0] == "negawatt"
        usage = subprocess.run(
            [sys.executable, "-m", "negawatt", words[1], "--help"], capture_output=True, text=True, check=True
        ).stdout
        ours = words[: words.index("--")] if "--" in words else words
        for word in ours[2:]:
            if word.startswith("--"):
                assert word in usage, line
            if word.startswith("examples/"):
                assert (ROOT / word).exists(), line


def test_the_workload_of_the_docs_is_one(tmp_path):
    """The Python workload in docs/workloads.md loads and keeps the contract's first promises."""
    from negawatt.core.workload import Phase, Split
    from negawatt.search.load import load

    text = next(b.values[1] for b in BLOCKS if "class Sum:" in b.values[1])
    (tmp_path / "sum.py").write_text(text)
    workload = load(tmp_path / "sum.py")
    assert workload.phases() == (Phase.INFER,)
    predict = workload.target.predictor(workload.params(Phase.INFER), None)
    requests = workload.target.requests(Split.REPORT)
    assert workload.target.score(Split.REPORT, [predict(requests)]) == 1.0


def test_the_changelog_and_version_agree():
    """The package's version is the one in pyproject.toml."""
    import negawatt

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == negawatt.__version__
