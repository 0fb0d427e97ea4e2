"""`negawatt run -- CMD`: run a command under the meter; it behaves as if it had been run alone."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.host import Host
from negawatt.core.plan import NotMeasured
from negawatt.core.reading import Reading, total, weakest


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A command that was run under the meter.

    Attributes:
        name: what the user calls it.
        argv: the command and its arguments.
        started_utc: start, ISO 8601.
        time_s: wall time [s].
        exit_code: of the command; None if a signal killed it.
        signal: name of the signal that killed it, or "".
        readings: one per scope; empty if a sensor failed on the way.
        fault: how a sensor failed, or "".
        not_measured: what was left out, and why.
        host: where it ran.
    """

    name: str
    argv: tuple[str, ...]
    started_utc: str
    time_s: float
    exit_code: int | None
    signal: str
    readings: tuple[Reading, ...]
    fault: str
    not_measured: tuple[NotMeasured, ...]
    host: Host

    def summary(self) -> dict[str, Any]:
        """All of it as JSON, with the sums: energy_j, energy_sd_j, power_w and source; null without readings."""
        from negawatt.core.codec import to_json

        energy_j = sd_j = power_w = source = None
        if self.readings:
            energy_j, sd_j = total(self.readings, self.time_s)
            power_w, source = energy_j / self.time_s, str(weakest(r.source for r in self.readings))
        sums = {"energy_j": energy_j, "energy_sd_j": sd_j, "power_w": power_w, "source": source}
        return {**sums, **to_json(self)}


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
    from negawatt.execute.passthrough import end_like, held_signals
    from negawatt.report.numbers import clean

    if record:
        record = record.absolute()
        _check_writable(record)
    with held_signals() as mask:
        status, run = _metered(argv, clean(name or Path(argv[0]).name), sensors, mask)
        _keep(run, record)
    end_like(status)


def _check_writable(record: Path) -> None:
    """Raise UsageError now rather than after hours of work."""
    if not os.access(record if record.exists() else record.parent, os.W_OK):
        raise UsageError(
            f"--record {record} cannot be written",
            "nothing was run",
            "name a file in a folder that exists and is yours",
        )


def _metered(argv: tuple[str, ...], name: str, sensors: tuple[str, ...], mask: set[int]) -> tuple[int, Run]:
    """Run the command; its status and what it cost."""
    from negawatt.execute.passthrough import run_child
    from negawatt.hardware.host import this_host
    from negawatt.metering.session import Meter

    host = this_host()
    with Meter.open(host, sensors) as meter:
        started_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        window = meter.start()
        status = run_child(argv, mask)
        readings: tuple[Reading, ...] = ()
        fault = ""
        try:
            readings = window.stop()
        except NegawattError as error:  # the command has done its work, so its exit code stands; the fault is recorded
            fault = str(error)
        killed = os.WIFSIGNALED(status)
        return status, Run(
            name=name,
            argv=argv,
            started_utc=started_utc,
            time_s=window.time_s,
            exit_code=None if killed else os.waitstatus_to_exitcode(status),
            signal=_signal_name(os.WTERMSIG(status)) if killed else "",
            readings=readings,
            fault=fault,
            not_measured=meter.unavailable,
            host=host,
        )


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # real-time signals have no names
        return f"signal {signum}"


def _keep(run: Run, record: Path | None) -> None:
    """Write a run to the ledger and the file, and say so. No failure here loses the number or the exit code."""
    from negawatt.ledger.store import Ledger

    summary = run.summary()
    lines, errors = _lines(run, summary), []
    try:
        with Ledger.open() as ledger:
            number = ledger.append(
                "run", summary, workload=run.name, energy_j=summary["energy_j"], source=summary["source"] or ""
            )
        lines.append(f"  recorded: `negawatt ledger show {number}`")
    except NegawattError as error:
        errors.append(str(error))
    if record:
        try:
            record.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            errors.append(f"--record {record} cannot be written: {error.strerror}")
    try:
        for line in lines + [f"negawatt: {error}" for error in errors]:
            click.echo(line, err=True)
    except OSError:  # the terminal or the reader of stderr has gone; the ledger has the number
        return


def _lines(run: Run, summary: dict[str, Any]) -> list[str]:
    """The summary as it is printed."""
    from negawatt.report import numbers

    end = f", killed by {run.signal}" if run.signal else f", exit code {run.exit_code}" if run.exit_code else ""
    if not run.readings:
        return [f"negawatt: {run.name}: {numbers.duration(run.time_s)}, energy unknown{end}", f"  {run.fault}"]
    energy = numbers.energy(summary["energy_j"], summary["energy_sd_j"])
    power = f"{numbers.significant(summary['power_w'])} W"
    lines = [f"negawatt: {run.name}: {energy} in {numbers.duration(run.time_s)}, {power} on average{end}"]
    for reading in run.readings:
        one = numbers.energy(*total([reading], run.time_s))
        lines.append(f"  {reading.scope}: {one}, {reading.source} ({reading.sensor})")
    return lines + [f"  not measured: {left.what}: {left.why}" for left in run.not_measured]
