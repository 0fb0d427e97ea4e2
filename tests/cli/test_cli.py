"""The command line is quick, says what is wrong in three parts, and ends with the promised exit codes."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys

import click
import pytest

import negawatt.cli
from negawatt.cli import main
from negawatt.core.errors import NeedsPrivilegeError, NoMeterError, UsageError
from negawatt.ledger.store import Ledger

ENTRY = [sys.executable, "-c", "import sys; from negawatt.cli import main; sys.exit(main())"]
VERBS = ["plan", "apply", "run", "doctor", "ledger", "footprint", "estimate", "forecast", "calibrate", "config"]


@pytest.fixture(autouse=True)
def ledger_path(tmp_path, monkeypatch):
    monkeypatch.setenv("NEGAWATT_LEDGER", str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def boom():
    """Add a command `boom` that raises what the test puts in."""
    errors = []

    def callback():
        raise errors[0]

    negawatt.cli._group.add_command(click.Command("boom", callback=callback))
    yield errors
    del negawatt.cli._group.commands["boom"]


def test_help_lists_every_command(capsys):
    """`negawatt --help` names all commands with what they are for."""
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert f"\n  {verb} " in out


def test_help_imports_nothing_heavy():
    """Help imports neither a command nor a third-party package but click."""
    code = "import sys; from negawatt.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    heavy = {"rich", "psutil", "numpy", "jinja2", "sqlite3", "pynvml", "platformdirs", "importlib.metadata"}
    assert not heavy & set(loaded)
    assert [m for m in loaded if m.startswith("negawatt.cli.")] == []


def test_help_is_quick():
    """Help takes less than a quarter of a second of processor time."""

    def cpu_s():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*ENTRY, "--help"], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_s() for _ in range(3)) < 0.25


def test_version(capsys):
    """`--version` prints the package's version."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().endswith(negawatt.__version__)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["pln"], "did you mean `negawatt plan`?"),
        (["ledger", "exprt"], "did you mean `negawatt ledger export`?"),
        (["qqqq"], "`negawatt --help` lists them"),
    ],
)
def test_an_unknown_command_gets_a_suggestion(capsys, typed, said):
    """A mistyped command is a usage error that names the nearest one."""
    assert main(typed) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("typed", [["--nope"], ["run"], ["doctor", "--nope"], ["ledger", "list", "--limit", "0"]])
def test_wrong_usage_exits_with_2(capsys, typed):
    """Unknown options, missing arguments and values out of range exit with 2 and say so on stderr only."""
    assert main(typed) == 2
    captured = capsys.readouterr()
    assert "Error: " in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("kind", "code"), [(UsageError, 2), (NoMeterError, 3), (NeedsPrivilegeError, 4)])
def test_errors_are_printed_in_three_parts(capsys, boom, kind, code):
    """An error of negawatt goes to stderr with its cause, its meaning and its remedy, and sets the exit code."""
    boom.append(kind("GOT", "WHY", "FIX"))
    assert main(["boom"]) == code
    captured = capsys.readouterr()
    assert captured.err == "negawatt: GOT\n  why it matters: WHY\n  what to do: FIX\n"
    assert captured.out == ""


def test_ctrl_c_says_what_was_kept(capsys, boom, ledger_path):
    """An interrupted command exits with 130 and says where finished work is."""
    boom.append(KeyboardInterrupt())
    assert main(["boom"]) == 130
    assert "nothing was recorded" in capsys.readouterr().err
    with Ledger.open(ledger_path) as ledger:
        ledger.append("trial", {})
    assert main(["boom"]) == 130
    assert f"kept in {ledger_path}" in capsys.readouterr().err


def test_ctrl_c_outside_of_a_command(capsys, monkeypatch):
    """An interrupt before click can take it ends with 130 too."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(negawatt.cli._group, "main", interrupted)
    assert main([]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_ctrl_c_during_the_imports():
    """An interrupt while `python -m negawatt` still imports the command line ends with 130, without a traceback."""
    code = (
        "import runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'negawatt.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "runpy.run_module('negawatt', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


def test_an_error_of_the_system_is_told_in_three_parts(capsys, boom):
    """An OSError that a command lets through goes to stderr with exit code 1."""
    boom.append(OSError(28, "No space left on device"))
    assert main(["boom"]) == 1
    assert "No space left on device\n  why it matters: " in capsys.readouterr().err


def test_completion_lists_commands_without_importing_them():
    """The shell's completion gets command names from the map."""
    words = {"_NEGAWATT_COMPLETE": "bash_complete", "COMP_WORDS": "negawatt p", "COMP_CWORD": "1"}
    timed = [sys.executable, "-X", "importtime", *ENTRY[1:]]
    ended = subprocess.run(timed, env={**os.environ, **words}, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["plain,plan"]
    assert "negawatt.cli.plan" not in ended.stderr


def test_ledger_list_shows_the_newest(capsys, ledger_path):
    """`list` prints one line per record, filtered and limited, the newest last; names cannot inject markup."""
    with Ledger.open(ledger_path) as ledger:
        for i in range(5):
            ledger.append("run", {}, workload=f"[red]w{i}[/red]\x1b[31m", energy_j=i * 1000.0, source="estimated")
        ledger.append("trial", {}, workload="other")
    assert main(["ledger", "list", "--kind", "run", "--limit", "2"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["id", "written"]
    assert [line.split()[0] for line in lines] == ["4", "5"]
    assert "[red]w4[/red]" in lines[1]
    assert "\x1b" not in lines[1]
    assert "4.00\u00a0kJ" in lines[1]
    assert main(["ledger", "list", "--workload", "other", "--json"]) == 0
    assert [r["workload"] for r in json.loads(capsys.readouterr().out)] == ["other"]


def test_ledger_list_refuses_an_unknown_kind(capsys):
    """A kind that no record has is a usage error, not an empty list."""
    assert main(["ledger", "list", "--kind", "runs"]) == 2
    assert "run, trial" in capsys.readouterr().err


def test_ledger_show_prints_the_record(capsys, ledger_path):
    """`show` prints one whole record as JSON; an unknown id exits with 2."""
    with Ledger.open(ledger_path) as ledger:
        ledger.append("run", {"argv": ["a", "b"]}, energy_j=2.0)
    assert main(["ledger", "show", "1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["body"], shown["energy_j"]) == ({"argv": ["a", "b"]}, 2.0)
    assert main(["ledger", "show", "2"]) == 2
    assert "no record 2" in capsys.readouterr().err


def test_ledger_export_writes_every_record(capsys, ledger_path, tmp_path):
    """JSON lines and CSV hold the same records; the body survives both."""
    import csv

    with Ledger.open(ledger_path) as ledger:
        for i in range(30):
            ledger.append("trial", {"i": i, "text": 'comma, "quote"\nnewline'}, workload="w", energy_j=float(i))
    assert main(["ledger", "export"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["body"]["i"] for row in rows] == list(range(30))
    out = tmp_path / "out.csv"
    assert main(["ledger", "export", "--format", "csv", "--out", str(out)]) == 0
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [json.loads(row["body"]) for row in table] == [row["body"] for row in rows]
    assert [float(row["energy_j"]) for row in table] == [row["energy_j"] for row in rows]


def test_ledger_export_to_nowhere_fails_clean(capsys, ledger_path, tmp_path):
    """An export that cannot be written exits with 1 and leaves no file."""
    Ledger.open(ledger_path).close()
    assert main(["ledger", "export", "--out", str(tmp_path / "none" / "x.jsonl")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_looking_makes_no_ledger(capsys, ledger_path):
    """Reading commands say that there is no ledger yet and do not make one."""
    assert main(["ledger", "list", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == []
    assert "no ledger at" in captured.err
    assert main(["ledger", "export"]) == 0
    assert main(["ledger", "show", "1"]) == 2
    assert not ledger_path.exists()


def test_a_damaged_ledger_is_reported(capsys, ledger_path):
    """A file that is no ledger exits with 1 and says how to set it aside."""
    ledger_path.write_text("x" * 5000)
    assert main(["ledger", "list"]) == 1
    assert "what to do" in capsys.readouterr().err


def test_a_terminal_with_few_characters_gets_plain_ones():
    """Where the encoding has no hard space, the numbers of a table are still there to read."""
    program = "import sys; from negawatt.cli import main; sys.exit(main(['footprint', '1 TWh']))"
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True)
    assert re.search(r"phone charges +\d+\.?\d* (m|b)illion ", done.stdout)
