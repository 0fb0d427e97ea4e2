"""docs/claims.md cannot rot: its arithmetic is run, its commands work, and every claim has a verdict and a source."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from negawatt.cli import footprint, forecast

PAGE = (Path(__file__).parents[1] / "docs" / "claims.md").read_text(encoding="utf-8")
CLAIMS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = [
    pytest.param(block, id=title[:40])
    for title, text in CLAIMS.items()
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
COMMANDS = sorted(set(re.findall(r"`negawatt ((?:footprint|forecast)[^`]*)`", PAGE)))
VERDICTS = {"holds", "holds as an estimate", "wrong", "cannot be checked"}
TOPICS = [
    "phone charge", "SDXL", "image takes about", "US home", "GPT-3", "ChatGPT uses", "ChatGPT query", "H100",
    "Iceland or the Netherlands", "26 to 36 %", "20 %", "415 TWh", "Power limits", "trackers", "probabilistic",
    "Hala Point", "quantum",
]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
def test_arithmetic_is_right(block):
    """Every block of code makes assertions, and they hold."""
    assert "\nassert " in f"\n{block}"
    exec(compile(block, "docs/claims.md", "exec"), {})


@pytest.mark.parametrize("typed", COMMANDS)
def test_commands_work(typed):
    """Every command that the page names runs and prints something."""
    verb, *words = shlex.split(typed)
    command = {"footprint": footprint.command, "forecast": forecast.command}[verb]
    result = CliRunner().invoke(command, words or ["--help"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.output


@pytest.mark.parametrize("title", CLAIMS)
def test_every_claim_has_a_verdict_and_a_source(title):
    """A claim begins with a verdict in one of the four words, and links to what it rests on."""
    text = CLAIMS[title].strip()
    verdict = re.match(r"Verdict: \*\*(.+?)\*\*", text)
    assert verdict, "no verdict"
    assert verdict[1] in VERDICTS
    assert "https://" in text.split("Sources:")[1]
    assert "```python" in text or verdict[1] == "cannot be checked"


def test_the_words_of_the_verdicts_are_explained():
    """The page's head explains each verdict that it gives."""
    head = PAGE.split("\n## ")[0]
    assert set(re.findall(r"^- \*\*(.+?)\*\*", head, re.MULTILINE)) == VERDICTS


@pytest.mark.parametrize("topic", TOPICS)
def test_every_popular_figure_has_its_line(topic):
    """The figures that the field quotes most are all there."""
    assert any(topic in title for title in CLAIMS)
