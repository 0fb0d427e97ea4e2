"""`negawatt plan`: its exit code, the files it writes, and its progress lines."""

from __future__ import annotations

import io
import sys

import pytest

from negawatt.cli import main
from negawatt.cli import plan as cli
from negawatt.core.errors import NegawattError
from negawatt.core.lever import Choice, Setting
from negawatt.core.plan import PhasePlan
from negawatt.core.reading import Source
from negawatt.core.saving import Baseline, Saving, Verdict
from negawatt.core.workload import Phase
from negawatt.report import html


def setting(value: str) -> Setting:
    return Setting.of(Phase.INFER, [Choice(lever="runtime", phase=Phase.INFER, value=value)])


def phase(naive: str, competent: str, best: str, /, **verdicts: Verdict) -> PhasePlan:
    savings = tuple(
        Saving(
            phase=Phase.INFER, against=Baseline(against), fraction=0.5, ci_low=0.4, ci_high=0.6, level_fraction=0.95,
            n=4, evidence=Source.COUNTER, verdict=verdict,
        )
        for against, verdict in verdicts.items()
    )  # fmt: skip
    return PhasePlan(
        phase=Phase.INFER, naive=setting(naive), competent=setting(competent), setting=setting(best),
        candidate=setting(best), savings=savings, steps=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        (phase("a", "b", "c", competent=Verdict.VERIFIED, naive=Verdict.NOT_SHOWN), True),
        (phase("a", "b", "c", competent=Verdict.INDICATIVE), True),
        (phase("a", "b", "c", competent=Verdict.NOT_SHOWN, naive=Verdict.VERIFIED), False),
        (phase("a", "b", "b", naive=Verdict.VERIFIED), False),  # the plan is the competent default
        (phase("a", "a", "c", naive=Verdict.VERIFIED), True),
        (phase("a", "a", "a"), False),
    ],
)
def test_what_counts_is_a_saving_over_the_competent_default(found, counts):
    """A phase counts for exit code 0 by the competent default, or by the naive one where the two are the same."""
    assert cli._headline_shown(found) is counts


def test_help_states_the_exit_code(capsys):
    """The help says when `plan` ends with 0 and when with 1."""
    assert main(["plan", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Exit code 0: a saving over the competent default was shown in at least one phase" in text


@pytest.mark.parametrize(
    ("fault", "told", "says"),
    [
        (OSError(28, "No space left on device"), NegawattError, "cannot write .*No space left"),
        (KeyboardInterrupt("Ctrl-C"), KeyboardInterrupt, "Ctrl-C"),
    ],
)
def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch, fault, told, says):
    """Where a file cannot be written to its end, nothing of it stays."""
    monkeypatch.setattr(html, "render", lambda _plan: "page")
    monkeypatch.setattr("negawatt.core.codec.to_json", lambda _plan: {})

    def half(self, text, encoding):
        self.touch()
        raise fault

    monkeypatch.setattr("pathlib.Path.write_text", half)
    with pytest.raises(told, match=says):
        cli._write(None, tmp_path)
    assert list(tmp_path.iterdir()) == []


class Gone(io.StringIO):
    """A stream whose reader has left."""

    tries = 0

    def write(self, text):
        self.tries += 1
        raise BrokenPipeError(32, "Broken pipe")


def test_progress_goes_quiet_when_nobody_reads_it(monkeypatch, capsys):
    """After the first line that nobody takes, no other is tried, and stdout goes on."""
    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    with cli._Progress(60.0) as progress:
        progress.note("searching")
        tried = gone.tries
        progress.note("proving")
    print("the plan")
    assert gone.tries == tried > 0
    assert capsys.readouterr().out == "the plan\n"


def test_time_left_is_rounded_before_it_is_split(monkeypatch, capsys):
    """599.7 s are ten minutes, not 9:60."""
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    with cli._Progress(599.7) as progress:
        progress.note("searching")
    assert capsys.readouterr().err == "searching; at most 10:00 left\n"


def test_the_path_to_apply_can_be_pasted(monkeypatch, capsys, tmp_path):
    """A folder with a space is quoted for the shell."""
    monkeypatch.setattr("negawatt.report.text.render", lambda _plan, width: "")
    cli._print(None, tmp_path / "my plan")
    assert f"negawatt apply '{tmp_path / 'my plan' / 'plan.json'}'" in capsys.readouterr().out
