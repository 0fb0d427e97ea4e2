"""`negawatt forecast`: what is typed, what is printed, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from negawatt.cli.forecast import command
from negawatt.core.codec import to_json
from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.host import Host
from negawatt.core.lever import Choice, Setting
from negawatt.core.plan import SCHEMA, Keep, PhasePlan, Plan
from negawatt.core.reading import Source
from negawatt.core.saving import Baseline, Saving, Verdict
from negawatt.core.workload import Phase


def run(*words: str) -> str:
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output.replace("\u00a0", " ")


def as_json(*words: str) -> dict:
    return json.loads(run(*words, "--json"))


def levers(*words: str) -> dict[str, dict]:
    typed = [word for lever in words for word in ("--lever", lever)]
    return {lever["name"]: lever for lever in as_json(*typed)["assumptions"]["levers"]}


@pytest.fixture
def plan_file(tmp_path) -> Path:
    """A plan that has shown 20 to 30 % in inference, on counters."""
    setting = Setting.of(Phase.INFER, [Choice(lever="batch-size", phase=Phase.INFER, value=8)])
    other = Setting.of(Phase.INFER, [Choice(lever="batch-size", phase=Phase.INFER, value=64)])
    saving = Saving(
        phase=Phase.INFER, against=Baseline.COMPETENT, fraction=0.25, ci_low=0.2, ci_high=0.3, level_fraction=0.95,
        n=8, evidence=Source.COUNTER, verdict=Verdict.VERIFIED,
    )  # fmt: skip
    phase = PhasePlan(
        phase=Phase.INFER, naive=setting, competent=setting, setting=other, candidate=other, savings=(saving,), steps=()
    )  # fmt: skip
    host = Host(
        name="h", machine_id="m", boot_id="b", system="Linux", cpu="c", logical_cpus=2, memory_bytes=1
    )  # fmt: skip
    plan = Plan(
        schema=SCHEMA, version="0", created_utc="2026-11-24T00:00:00+00:00", workload="mnist", path="w", unit="image",
        keep=Keep(metric="accuracy", bound=None, margin=0.01), max_slowdown=None, host=host, phases=(phase,),
        lifetimes={}, search_j=1.0, search_time_s=1.0, outcomes=(), not_measured=(), trials=(),
    )  # fmt: skip
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(to_json(plan)))
    return path


def test_it_prints_years_levers_and_the_comparison():
    """The table of years, what bends most, and 2027 beside both countries."""
    text = run()
    assert re.search(r"^2030 +249 to 394 ", text, re.MULTILINE)
    assert "What bends it most by 2030: serving" in text
    assert "85 to 134 TWh" in text
    assert "Iceland (19 TWh in 2020): does not hold (more)" in text
    assert "the Netherlands (112 TWh in 2020): holds" in text
    assert "Ranges go by corners" in text
    assert "https://" not in text


def test_sources_on_request():
    """--sources names what every figure rests on."""
    text = run("--sources")
    for word in ("growth:", "share of training:", "adoption: an assumption", "serving:", "Iceland: 19.127 TWh in 2020"):
        assert word in text
    assert text.count("https://") > 15


def test_assumptions_can_be_typed():
    """Growth, base, share and years as typed, in percent or as fractions."""
    given = as_json(
        "--growth", "10%..20%", "--base-twh", "46..82", "--base-year", "2025", "--train-share",
        "0.2", "--to", "2028",
    )  # fmt: skip
    assumed = given["assumptions"]
    assert assumed["growth"] == {"low": 0.1, "high": 0.2}
    assert assumed["base_twh"] == {"low": 46, "high": 82}
    assert assumed["train_share"] == {"low": 0.2, "high": 0.2}
    assert [year["year"] for year in given["years"]] == [2025, 2026, 2027, 2028]
    assert given["years"][-1]["without_twh"]["high"] == pytest.approx(82 * 1.2**3)


def test_levers_can_be_typed():
    """Known levers by name, with another phase or adoption; new ones with their saving."""
    assert set(levers()) == {"power-limit", "early-stopping", "serving"}
    narrow = levers("power-limit:train:80%", "quantise=20%..40%:infer:30%")
    assert set(narrow) == {"power-limit", "quantise"}
    assert set(narrow["power-limit"]["savings"]) == {"train"}
    assert narrow["power-limit"]["adoption_fraction"] == 0.8
    assert narrow["quantise"]["savings"] == {"infer": {"low": 0.2, "high": 0.4}}
    assert (narrow["quantise"]["adoption_fraction"], narrow["quantise"]["grade"]) == (0.3, "declared")
    known = levers("power-limit=10%:both")["power-limit"]
    assert known["savings"] == {phase: {"low": 0.1, "high": 0.1} for phase in ("train", "infer")}
    assert known["citations"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--growth", "fast"], "it is not a range"),
        (["--growth", "26..36"], "could be percent or a multiple"),
        (["--growth", "26%..0.36"], "it is not a range"),
        (["--growth", "36%..26%"], "the low end is above the high end"),
        (["--growth", "-150%"], "outside of -100% to 1000%"),
        (["--train-share", "120%"], "outside of 0% to 100%"),
        (["--base-twh", "0"], "no amount of electricity"),
        (["--base-twh", "60%"], "no amount of electricity"),
        (["--base-twh", "1000000"], "at most 10000 TWh"),
        (["--base-twh", "6e1"], "--base-twh 46..82"),
        (["--base-year", "0"], "no start of a forecast"),
        (["--to", "2026"], "a forecast from 2024 to 2026"),
        (["--lever", "nope"], "'nope' is not known, so its saving must be given"),
        (["--lever", "a=10%"], "in which phase"),
        (["--lever", "a=10%:sleep"], "in which phase"),
        (["--lever", "a=101%:train"], "outside of 0% to 100%"),
        (["--lever", "a=10%:train:200%"], "outside of 0% to 100%"),
        (["--lever", "=10%"], "not of the form NAME=SAVING:PHASE:ADOPTION"),
        (["--lever", "serving:train"], "has no known saving in that phase"),
        (["--lever", "serving", "--lever", "serving"], "two levers called 'serving'"),
    ],
)
def test_what_cannot_be_meant_is_refused(words, said):
    """Each slip is a usage error that says what is wrong."""
    with pytest.raises(UsageError, match=said):
        command.main(words, standalone_mode=False)


def test_a_plan_is_one_more_lever(plan_file):
    """--plan adds the shown saving with its interval, verdict and the host it was measured on."""
    found = as_json("--plan", str(plan_file))["assumptions"]["levers"]
    lever = next(lever for lever in found if lever["name"] == "plan for mnist")
    assert lever["savings"] == {"infer": {"low": 0.2, "high": 0.3}}
    assert lever["grade"] == "verified"
    assert len(found) == 4


def test_the_picture_is_written(tmp_path):
    """--svg writes the drawing; a place that cannot be written to is an error, not a silence."""
    run("--svg", str(tmp_path / "out.svg"))
    assert (tmp_path / "out.svg").read_text().startswith("<svg xmlns=")
    with pytest.raises(NegawattError, match="cannot write"):
        command.main(["--svg", str(tmp_path / "no" / "out.svg")], standalone_mode=False)
