"""`negawatt run -- CMD`: run a command under the meter; it behaves as if it had been run alone."""

from __future__ import annotations

import json
import logging
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from negawatt.core.errors import NegawattError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from negawatt.core.run import Run
    from negawatt.execute.cap import Capped
    from negawatt.metering.run import LiveRun

    Around = Callable[[LiveRun, tuple[str, ...]], AbstractContextManager[Capped]]


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--name", metavar="NAME", help="What to call it in the ledger; default: the command's name.")
@click.option("--sensor", "sensors", multiple=True, metavar="NAME", help="Meter only with this sensor (repeatable).")
@click.option(
    "--record", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Write the summary as JSON, too."
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD...")
def command(name: str | None, sensors: tuple[str, ...], record: Path | None, argv: tuple[str, ...]) -> None:
    """Run CMD under the meter and record its joules.

    CMD keeps stdin, stdout, stderr and signals; negawatt writes a summary to stderr behind it and ends with its exit
    code. Joules are those of the host (or the GPU) while it ran, other programs included.
    """
    meter_command(argv, name, sensors, record)


def meter_command(
    argv: tuple[str, ...],
    name: str | None,
    sensors: tuple[str, ...],
    record: Path | None,
    around: Around | None = None,
) -> NoReturn:
    """Run a command under the meter, say what it cost, and end this process as the command ended.

    Args:
        argv: the command.
        name: what to call it; None: the command's name.
        sensors: names; none: every one available.
        record: file for the summary, too.
        around: makes a block in which the command runs, from the run under the meter and the scopes that are metered:
            it yields the environment to run it in, and lines to print behind the summary.

    Raises:
        NegawattError: if it could not be started.
    """
    from negawatt.execute.passthrough import end_like, held_signals
    from negawatt.report.numbers import clean

    if record:
        record = record.absolute()
        _check_writable(record)
    # What the ledger's background thread would log is said in the summary.
    logging.getLogger("negawatt.ledger").addHandler(logging.NullHandler())
    with held_signals() as mask:
        status, run, key, lines = _metered(argv, clean(name or Path(argv[0]).name), sensors, mask, around)
        _keep(run, key, record, lines)
    end_like(status)


def _check_writable(record: Path) -> None:
    """Raise UsageError now rather than after hours of work."""
    if not os.access(record if record.exists() else record.parent, os.W_OK):
        raise UsageError(
            f"--record {record} cannot be written",
            "nothing was run",
            "name a file in a folder that exists and is yours",
        )


def _metered(
    argv: tuple[str, ...], name: str, sensors: tuple[str, ...], mask: set[int], around: Around | None
) -> tuple[int, Run, str, Sequence[str]]:
    """Run the command; its status, what it cost, its key in the ledger, and what else there is to say."""
    from negawatt.execute.passthrough import run_child
    from negawatt.metering.run import LiveRun
    from negawatt.metering.session import Meter

    lines: list[str] = []
    with Meter.open(names=sensors) as meter:
        live = LiveRun(name, meter=meter, record=True, argv=argv)
        status = None
        try:
            with around(live, meter.scopes) if around else nullcontext() as block:
                for line in block.before if block else []:
                    click.echo(f"negawatt: {line}", err=True)
                status = run_child(argv, mask, block.environ if block else None)
            lines += block.lines if block else []
        except BaseException as error:
            if status is None or not isinstance(error, Exception):
                live.discard()  # nothing was run
                raise
            # The command has ended: its exit code and its joules come first.
            lines.append(error.reason if isinstance(error, NegawattError) else f"{type(error).__name__}: {error}")
        killed = os.WIFSIGNALED(status)
        run = live.end(
            exit_code=None if killed else os.waitstatus_to_exitcode(status),
            signal=_signal_name(os.WTERMSIG(status)) if killed else "",
        )
    return status, run, live.key, lines


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # real-time signals have no names
        return f"signal {signum}"


def _keep(run: Run, key: str, record: Path | None, more: Sequence[str]) -> None:
    """See the run through to the ledger and the file, and say so. No failure here loses the number or the exit code."""
    lines, errors = [*_lines(run), *(f"  {line}" for line in more)], []
    try:
        lines.append(_recorded(key))
    except NegawattError as error:
        errors.append(str(error))
    except Exception as error:  # noqa: BLE001 -- said below; the command's exit code comes first
        errors.append(f"the run is not in the ledger yet ({type(error).__name__}: {error}): `negawatt ledger merge`")
    if record:
        try:
            record.write_text(json.dumps(run.summary(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            errors.append(f"--record {record} cannot be written: {error.strerror}")
    try:
        for line in lines + [f"negawatt: {error}" for error in errors]:
            click.echo(line, err=True)
    except OSError:  # the terminal or the reader of stderr has gone; the ledger has the number
        return


def _recorded(key: str) -> str:
    """Bring the run into the ledger now, because this process may end by a signal; where it is, as a line."""
    from negawatt.ledger.spool import shared_spool
    from negawatt.ledger.store import Ledger

    spool = shared_spool()
    if spool.close() is None:  # another process merges at this moment, or another host will
        return f"  recorded: run {key} in {spool.folder}, until it is merged"
    with Ledger.open() as ledger:
        found = ledger.find(key)
    return f"  recorded: `negawatt ledger show {found.id}`" if found else f"  recorded: run {key}"


def _lines(run: Run) -> list[str]:
    """The summary as it is printed."""
    from negawatt.core.reading import total
    from negawatt.report import numbers

    end = f", killed by {run.signal}" if run.signal else f", exit code {run.exit_code}" if run.exit_code else ""
    if run.energy_j is None or run.host_energy_j is None:
        return [f"negawatt: {run.name}: {numbers.duration(run.time_s)}, energy unknown{end}", f"  {run.fault}"]
    energy = numbers.energy(run.energy_j, run.energy_sd_j)
    power = f"{numbers.significant(run.energy_j / run.time_s)} W"
    lines = [f"negawatt: {run.name}: {energy} in {numbers.duration(run.time_s)}, {power} on average{end}"]
    for reading in run.readings:
        one = numbers.energy(*total([reading], run.time_s))
        lines.append(f"  {reading.scope}: {one}, {reading.source} ({reading.sensor})")
        lines += [f"    doubtful: {flag}" for flag in reading.flags]
    if run.fault:
        lines.append(f"  {run.fault}")
    if run.wall_j is not None:
        lines.append(f"  at the wall, by this host's calibration: {numbers.energy(run.wall_j, run.wall_sd_j)}")
    if part := run.attribution:
        if part.runs > 1:
            whole = numbers.energy(run.host_energy_j)
            lines.append(f"  attributed: its part of {whole} that {part.runs} metered runs shared, {part.rule}")
        if part.process_j is not None:
            lines.append(f"  attributed: {numbers.energy(part.process_j)} to its own processes, by CPU time")
    if run.not_measured:
        left_out = ", ".join(left.what for left in run.not_measured)
        lines.append(f"  not measured: {left_out}; `negawatt doctor` says why")
    return lines
