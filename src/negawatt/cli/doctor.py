"""`negawatt doctor`: what this host can measure and change, and what to type for the rest."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from negawatt import __version__
from negawatt.core.errors import NegawattError, NoMeterError
from negawatt.core.host import Host
from negawatt.core.lever import Lever
from negawatt.core.reading import Sensor, Source

if TYPE_CHECKING:
    from negawatt.core.registry import Found


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A sensor, lever or placement as it is found here.

    Attributes:
        name: its name.
        state: "ready", "unavailable" or "broken".
        summary: what it is for.
        reason: why it is not ready and what to type, or "".
        scopes: what a sensor measures here.
        source: how a sensor's readings come about, or "".
        evidence: where a sensor's error figures come from, or "".
    """

    name: str
    state: str
    summary: str = ""
    reason: str = ""
    scopes: tuple[str, ...] = ()
    source: str = ""
    evidence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that `negawatt doctor` knows.

    Attributes:
        version: of negawatt.
        host: this machine.
        sensors, levers, placements: everything registered, broken plug-ins included.
        controls: what of the hardware can be set, as it is set now, and what cannot.
        held: who holds which device now.
        repaired: what a job that was killed had left changed, and what came of putting it back.
        evidence: the strongest evidence that a sensor here gives, or "".
        ledger: path of the ledger.
        ledger_fault: why nothing could be recorded and what to do, or "".
    """

    version: str
    host: Host
    sensors: tuple[Part, ...]
    levers: tuple[Part, ...]
    placements: tuple[Part, ...]
    controls: tuple[Part, ...]
    held: tuple[str, ...]
    repaired: tuple[str, ...]
    evidence: str
    ledger: str
    ledger_fault: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(as_json: bool) -> None:  # noqa: FBT001
    """Show what this host can measure and change, and what to type for the rest.

    Exit code 0: something can be metered here; 3: nothing can.
    """
    from negawatt.core.codec import to_json

    found = diagnose()
    if as_json:
        click.echo(json.dumps(to_json(found), indent=1, allow_nan=False))
    else:
        _print(found)
    sys.exit(0 if found.evidence else NoMeterError.exit_code)


def diagnose() -> Diagnosis:
    """Look at everything registered, reading every sensor once. Raises UsageError if two plug-ins have one name."""
    from negawatt.core import registry
    from negawatt.hardware.host import this_host
    from negawatt.ledger.store import default_path, fault

    host, path = this_host(), default_path()
    repaired = _repaired()
    sensors = _parts(registry.sensors(), lambda sensor: _sensor(sensor, host))
    sources = {part.source for part in sensors if part.state == "ready"}
    problem = fault(path)
    return Diagnosis(
        version=__version__,
        host=host,
        sensors=sensors,
        levers=_parts(registry.levers(), lambda lever: _lever(lever, host)),
        placements=_parts(
            registry.placements(), lambda p: Part(name=p.info.name, state="ready", summary=p.info.summary)
        ),
        controls=_controls(),
        held=_held(),
        repaired=repaired,
        evidence=next((str(source) for source in Source if source in sources), ""),
        ledger=str(path),
        ledger_fault=problem.reason if problem else "",
    )


def _parts(found: Found[Any], look: Callable[[Any], Part]) -> tuple[Part, ...]:
    parts = []
    for name, member in found.members.items():
        try:
            parts.append(look(member))
        except Exception as error:  # noqa: BLE001 -- foreign code; the reason is shown
            parts.append(Part(name=name, state="broken", reason=f"{type(error).__name__}: {error}"))
    broken = [Part(name=b.name, state="broken", reason=f"{b.reason} (from {b.distribution})") for b in found.broken]
    return (*parts, *broken)


def _sensor(sensor: Sensor, host: Host) -> Part:
    """A sensor is ready if all it opens can be read now."""
    reason = sensor.available(host)
    info = sensor.info  # asked for after: some sensors know only then how they measure here
    scopes: tuple[str, ...] = ()
    if not reason:
        try:
            probes = sensor.open()
            for probe in probes:
                probe.snapshot()
            scopes = tuple(probe.scope for probe in probes)
            reason = None if probes else "it found nothing to read"
        except NegawattError as error:
            reason = error.reason
    return Part(
        name=info.name,
        state="unavailable" if reason else "ready",
        summary=info.measures + ("; used only where nothing better measures" if info.fallback else ""),
        reason=reason or "",
        scopes=scopes,
        source=str(info.source),
        evidence=info.evidence,
    )


def _lever(lever: Lever, host: Host) -> Part:
    reason = lever.available(host)
    state = "unavailable" if reason else "ready"
    return Part(name=lever.info.name, state=state, summary=lever.info.summary, reason=reason or "")


def _controls() -> tuple[Part, ...]:
    """Everything that can be set here, and what cannot, with the reason."""
    from negawatt.hardware.controls import found_controls

    here, absent = found_controls()
    parts = []
    for control in here:
        info = control.info
        try:
            value = control.read()
        except NegawattError as error:
            parts.append(Part(name=info.scope, state="unavailable", summary=str(info.knob), reason=error.reason))
            continue
        now = "not limited" if value is None else f"{value:g} {info.unit}".strip()
        summary = f"{info.knob} of {info.scope}: {now} ({info.lowest:g} to {info.highest:g} {info.unit})"
        parts.append(Part(name=info.address.partition(":")[0], state="ready", summary=summary, scopes=()))
    return (*parts, *(Part(name=left.what, state="unavailable", reason=left.why) for left in absent))


def _held() -> tuple[str, ...]:
    from negawatt.hardware.lease import held

    try:
        return tuple(f"{record.scope} is held by {record.holder}" for record in held())
    except NegawattError as error:
        return (error.reason,)


def _repaired() -> tuple[str, ...]:
    """Put back what a job left changed that was killed together with its watchdog."""
    from negawatt.hardware.lease import repair
    from negawatt.hardware.restoring import Outcome

    try:
        outcomes = [one for one in repair() if one.outcome is not Outcome.UNTOUCHED]
    except NegawattError as error:
        return (error.reason,)
    return tuple(f"{one.scope}, left by {one.owner}: {one.outcome}. {one.note}".rstrip() for one in outcomes)


def _print(found: Diagnosis) -> None:
    from rich.console import Console

    from negawatt.report.numbers import clean

    console = Console(markup=False, highlight=False, emoji=False)
    host = found.host
    facts = [host.name, host.system, host.cpu, f"{host.logical_cpus} CPUs", f"{host.memory_bytes / 2**30:.1f} GiB"]
    console.print(clean(", ".join([*facts, *([host.virtual] if host.virtual else [])])), soft_wrap=True)
    for title, parts in (
        ("Sensors", found.sensors),
        ("Levers", found.levers),
        ("Placements", found.placements),
        ("What can be set", found.controls),
    ):
        console.print(f"\n{title}", style="bold")
        _print_parts(console, parts)
    console.print()
    for line in (*found.repaired, *found.held, *_conclusions(found)):
        console.print(clean(line), soft_wrap=True)


def _print_parts(console: Any, parts: Iterable[Part]) -> None:  # noqa: ANN401 -- rich is imported where it is used
    from rich.table import Table

    from negawatt.report.numbers import clean

    table = Table.grid(padding=(0, 2, 0, 0))
    for part in parts:
        about = part.reason or (f"{', '.join(part.scopes)} ({part.source}): " if part.scopes else "") + part.summary
        table.add_row(f"  {clean(part.name)}", part.state, clean(about))
    console.print(table if table.row_count else "  none is registered")


def _conclusions(found: Diagnosis) -> list[str]:
    """What it comes to: the best claim possible here, and whether results are kept."""
    measured = [source for source in Source if source.measured]
    if not found.evidence:
        claim = "Nothing can be metered here: do what a sensor above asks for."
    elif found.evidence in measured:
        claim = f"A saving can be verified here (evidence: {found.evidence})."
    else:
        claim = f"A saving can be indicative at best here (evidence: {found.evidence}); a sensor above would verify it."
    return [claim, found.ledger_fault or f"Results are kept in {found.ledger}."]
