"""Spooled: a spool file as it is read back. Nothing that is not understood is guessed at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from negawatt.core.errors import LedgerError
from negawatt.ledger.checks import checked, checked_curve, json_text, plain
from negawatt.ledger.entry import Entry
from negawatt.ledger.lines import FORMAT
from negawatt.ledger.origin import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """One record of a spool.

    Attributes:
        entry: what the ledger is to keep.
        power_curve: (time_s, power_w) points, or none.
    """

    entry: Entry
    power_curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What was read from a spool file.

    Attributes:
        writer: who wrote it.
        records: its whole lines.
        ended: whether its writer said that nothing follows.
        torn: whether a last line is not whole.
    """

    writer: Origin
    records: tuple[Spooled, ...]
    ended: bool
    torn: bool


def parse(data: bytes) -> Content:
    """Read a spool. Raises ValueError, which names the line, for anything but the format of `lines`."""
    *whole, rest = data.split(b"\n")
    if not whole:
        raise ValueError("line 1: there is none")
    number = 0
    try:
        for number, text in enumerate(whole, 1):
            fields = json.loads(text)
            if number == 1:
                writer, records, ended = _writer(fields), list[Spooled](), False
            elif ended:
                raise ValueError("something follows the end")
            elif fields == {"end": True}:
                ended = True
            else:
                records.append(_spooled(fields, writer))
    except (KeyError, TypeError, ValueError, RecursionError, LedgerError) as error:
        what = error.got if isinstance(error, LedgerError) else str(error) or type(error).__name__
        raise ValueError(f"line {number}: {what}") from error
    return Content(writer=writer, records=tuple(records), ended=ended, torn=bool(rest))


def _writer(fields: dict[str, Any]) -> Origin:
    if fields["negawatt_spool"] != FORMAT:
        raise ValueError(f"format {fields['negawatt_spool']!r}; this negawatt reads format {FORMAT}")
    _types(fields, str, "host", "machine_id", "boot_id", "start")
    _types(fields, int, "pid")
    names = ("host", "machine_id", "boot_id", "pid", "start")
    return Origin(**{name: fields[name] for name in names}, token="")


def _spooled(fields: dict[str, Any], writer: Origin) -> Spooled:
    names = ("sequence", "created_utc", "kind", "workload", "phase", "campaign", "source")
    _types(fields, str, *names)
    _types(fields, dict, "body")
    if set(fields) != {*names, "energy_j", "body", "power_curve"}:
        raise ValueError(f"fields {sorted(fields)}")
    entry = Entry(
        **{name: plain(fields[name]) for name in names},
        host=writer.host,
        energy_j=checked(fields["kind"], fields["energy_j"]),
        machine_id=writer.machine_id,
        boot_id=writer.boot_id,
        body=json_text(fields["kind"], fields["body"]),
    )
    return Spooled(entry=entry, power_curve=checked_curve(fields["power_curve"]))


def _types(fields: dict[str, Any], expected: type, *names: str) -> None:
    for name in names:
        if not isinstance(fields[name], expected):
            raise TypeError(f"{name} is {fields[name]!r}")
