"""%%meter and %meter, in a real IPython shell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from negawatt.core.run import Attribution
from negawatt.integrations.jupyter import summary
from negawatt.metering.run import LiveRun
from negawatt.testing import ManualClock

pytest.importorskip("IPython", reason="needs IPython: pip install ipython")


@pytest.fixture
def shell(clock: ManualClock) -> Iterator[Any]:
    """A shell with the extension and the sensor's clock in its namespace."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell.instance(
        config=Config({"HistoryManager": {"enabled": False}, "InteractiveShell": {"colors": "nocolor"}})
    )
    shell.push({"clock": clock})
    shell.run_line_magic("load_ext", "negawatt.integrations.jupyter")
    yield shell
    InteractiveShell.clear_instance()


def test_a_cell_is_metered(shell: Any, capsys: pytest.CaptureFixture[str], records) -> None:
    """The cell runs in the user's namespace, shows its value and one line, and leaves its run in `_meter`."""
    result = shell.run_cell("%%meter warm-up\nclock.advance(5.0)\nx = 6\nx * 7")
    assert (result.result, shell.user_ns["x"]) == (42, 6)
    assert (shell.user_ns["_meter"].name, shell.user_ns["_meter"].energy_j) == ("warm-up", pytest.approx(50.0))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("warm-up"))
    assert line.replace("\u00a0", " ").startswith("warm-up: 50.0 ± 0.5 J in ")
    assert "counter (scripted); all of cpu:0/package, other programs included; " in line
    assert records() == []


def test_a_recorded_cell_is_kept(shell: Any, records) -> None:
    """--record keeps the cell's run in the ledger, metered by the named sensor."""
    shell.run_cell("%%meter 'two words' --record --sensor scripted\nclock.advance(1.0)")
    assert [(record["name"], record["energy_j"]) for record in records()] == [("two words", pytest.approx(10.0))]


def test_a_line_is_metered(shell: Any) -> None:
    """%meter takes an expression, whose value it gives, or a statement."""
    assert shell.run_cell("%meter clock.advance(2.0) or 'done'").result == "done"
    assert shell.user_ns["_meter"].energy_j == pytest.approx(20.0)
    assert shell.run_cell("%meter y = clock.advance(3.0) or {'a': 1}").success
    assert shell.user_ns["y"] == {"a": 1}
    assert shell.user_ns["_meter"].energy_j == pytest.approx(30.0)


def test_an_exception_shows_as_usual_and_is_recorded(shell: Any, capsys: pytest.CaptureFixture[str], records) -> None:
    """The traceback points to the cell's own line, what follows does not run, and the run says how it ended."""
    result = shell.run_cell("%%meter --record\nclock.advance(4.0)\nnumber = 1 / 0\nnever = True")
    assert isinstance(result.error_in_exec, ZeroDivisionError)
    assert "never" not in shell.user_ns
    out = capsys.readouterr().out
    assert "File <metered code " in out
    assert "----> 3 number = 1 / 0" in out
    assert "jupyter.py" not in out
    assert shell.user_ns["_meter"].error == "ZeroDivisionError: division by zero"
    assert [(r["error"], r["energy_j"]) for r in records()] == [
        ("ZeroDivisionError: division by zero", pytest.approx(40.0))
    ]


@pytest.mark.filterwarnings("ignore:To exit")
def test_ctrl_c_and_sys_exit_are_recorded(shell: Any, records) -> None:
    """What leaves a cell without being an Exception ends its run, too."""
    shell.run_cell("%%meter --record\nraise KeyboardInterrupt")
    shell.run_cell("%%meter --record\nimport sys\nsys.exit(3)")
    assert [record["error"] for record in records()] == ["KeyboardInterrupt", "SystemExit: 3"]


def test_a_syntax_error_is_no_run(shell: Any) -> None:
    """A cell that cannot be compiled is not metered."""
    assert isinstance(shell.run_cell("%%meter\n1 +").error_in_exec, SyntaxError)
    assert "_meter" not in shell.user_ns


def test_magics_and_shell_escapes_work_inside(shell: Any) -> None:
    """A metered cell may use what any cell may."""
    shell.run_cell("%%meter\nwhere = %pwd\nclock.advance(1.0)")
    assert shell.user_ns["where"]


def test_an_unknown_option_is_told(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong option says so in one line, and the cell does not run."""
    shell.run_cell("%%meter --recrod\nran = True")
    shell.run_cell("%%meter --sensor scriptet\nran = True")
    output = capsys.readouterr()
    assert "unrecognized arguments: --recrod" in output.out + output.err
    assert "did you mean 'scripted'" in output.out + output.err
    assert "ran" not in shell.user_ns


def test_a_sensor_that_fails_is_said(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A sensor that fails inside a cell does not fail the cell: the line says that the energy is unknown."""
    result = shell.run_cell("%%meter\nclock.advance(2000.0)\n'kept'")
    assert result.result == "kept"
    assert "cell: energy unknown, " in capsys.readouterr().out


def test_the_line_says_what_the_joules_answer_for(clock: ManualClock) -> None:
    """A run beside another says its part of what."""
    live = LiveRun("mine")
    clock.advance(10.0)
    run = live.stop()
    assert run is not None
    share = Attribution(energy_j=25.0, process_j=12.5, runs=4, rule="by CPU time")
    line = summary(replace(run, attribution=share)).replace("\u00a0", " ")
    assert "its part of 100 J of cpu:0/package, shared by 4 metered runs; 12.5 J of them by this process's" in line


def test_a_killed_kernel_leaves_its_run(script, records) -> None:
    """SIGKILL in the middle of a recorded cell: the run is in the ledger, marked as interrupted, with joules."""
    done = script("""
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        shell.run_line_magic("load_ext", "negawatt.integrations.jupyter")
        shell.run_cell("%%meter doomed --record\\nimport os, time\\ntime.sleep(0.8)\\nos.kill(os.getpid(), 9)")
    """)
    assert done.returncode == -9
    (record,) = records()
    assert (record["name"], record["interrupted"]) == ("doomed", True)
    assert record["energy_j"] > 0
