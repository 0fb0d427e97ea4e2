"""`%%meter` and `%meter` for IPython and Jupyter: `%load_ext negawatt`."""

from __future__ import annotations

import ast
import linecache
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from IPython.core.interactiveshell import InteractiveShell

    from negawatt.core.run import Run

_numbers = count(1)


def load_ipython_extension(shell: InteractiveShell) -> None:
    """Register the magic in a shell; IPython calls this for `%load_ext`."""
    from IPython.core.magic import no_var_expand, output_can_be_silenced
    from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

    def meter(line: str, cell: str | None = None) -> Any:  # noqa: ANN401 -- whatever the user's code gives
        """Meter a cell, or with `%meter CODE` one line: joules, time and what they answer for.

        The variable `_meter` holds the run.
        """
        __tracebackhide__ = True  # IPython leaves this function out of tracebacks
        if cell is None:
            return _metered(shell, line, "line")
        options = parse_argstring(meter, line)
        return _metered(shell, cell, options.name.strip("'\""), sensors=options.sensor, record=options.record)

    for mark in (
        argument("--sensor", action="append", default=[], help="Meter only with this sensor (repeatable)."),
        argument("--record", action="store_true", help="Keep it in the ledger."),
        argument("name", nargs="?", default="cell", help="What to call it; default: cell."),
        magic_arguments(),
        output_can_be_silenced,
        no_var_expand,
    ):
        mark(meter)  # as a decorator; all give back the same function
    shell.register_magic_function(meter, "line_cell", "meter")


def _metered(shell: Any, text: str, name: str, *, sensors: Sequence[str] = (), record: bool = False) -> Any:  # noqa: ANN401
    """Run code in the user's namespace as a run, print what it took, and return its last expression's value."""
    from negawatt.metering.run import LiveRun

    __tracebackhide__ = True
    codes = _compiled(shell, text)
    live = LiveRun(name, sensors=sensors, record=record)
    value, failed = None, None
    try:
        for code in codes:
            value = eval(code, shell.user_ns)  # noqa: S307 -- the user's own code
    except BaseException as error:
        failed = error
        raise
    finally:
        run = live.stop(error=failed)
        if run:  # else this is a forked child
            shell.push({"_meter": run}, interactive=False)
            print(summary(run))  # noqa: T201 -- a cell's output
    return value


def _compiled(shell: Any, text: str) -> list[Any]:  # noqa: ANN401
    """A cell's statements and, if it ends with an expression, that one apart."""
    # The empty line stands for that of the magic, so that line numbers in a traceback are those of the cell.
    source = "\n" + shell.transform_cell(text)
    name = f"<metered code {next(_numbers)}>"
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # for tracebacks to show it
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=name))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    codes = [shell.compile(tree, name, "exec")]
    if last is not None:
        codes.append(shell.compile(ast.Expression(last.value), name, "eval"))
    return codes


def summary(run: Run) -> str:
    """A run in one line: "cell: 61.2 ± 8.1 J in 3.20 s, estimated (cpu-model); ..."."""
    from negawatt.report import numbers

    took, energy_j = numbers.duration(run.time_s), run.energy_j
    name = numbers.clean(run.name)
    if energy_j is None:
        return f"{name}: energy unknown, {took}: {numbers.clean(run.fault)}"
    sensors = ", ".join(dict.fromkeys(reading.sensor for reading in run.readings))
    text = f"{name}: {numbers.energy(energy_j, run.energy_sd_j)} in {took}, {run.source} ({sensors})"
    return "; ".join([text, *_answers_for(run), *dict.fromkeys(flag for r in run.readings for flag in r.flags)])


def _answers_for(run: Run) -> list[str]:
    """What of the host's joules these are."""
    from negawatt.report import numbers

    scopes = ", ".join(reading.scope for reading in run.readings)
    part = run.attribution
    if part is None:
        return []
    if part.runs > 1 and run.host_energy_j is not None:
        said = [f"its part of {numbers.energy(run.host_energy_j)} of {scopes}, shared by {part.runs} metered runs"]
    else:
        said = [f"all of {scopes}, other programs included"]
    if part.process_j is not None:
        said.append(f"{numbers.energy(part.process_j)} of them by this process's CPU time")
    return said
