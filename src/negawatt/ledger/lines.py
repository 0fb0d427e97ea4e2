"""Lines: the format of a spool, one JSON object per line.

The first line says who writes: {"negawatt_spool": 1, "host", "machine_id", "boot_id", "pid", "start"}. Each record is
one line with its columns, "body" as an object and "power_curve" as a list; {"end": true} says that nothing follows.
NAME.jsonl holds finished records, and NAME.open, which is replaced as a whole, the latest state of those that are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from negawatt.ledger.checks import checked, checked_curve, json_text, plain, utc_now
from negawatt.ledger.origin import Origin

FORMAT = 1
END = '{"end":true}\n'


def header(writer: Origin) -> str:
    """The first line of a spool."""
    fields = {
        "negawatt_spool": FORMAT,
        "host": plain(writer.host),
        "machine_id": plain(writer.machine_id),
        "boot_id": writer.boot_id,
        "pid": writer.pid,
        "start": writer.start,
    }
    return json_text("run", fields) + "\n"


def line(  # noqa: PLR0913 -- the columns of a record
    sequence: str,
    kind: str,
    body: Mapping[str, Any],
    *,
    workload: str = "",
    phase: str = "",
    campaign: str = "",
    energy_j: float | None = None,
    source: str = "",
    power_curve: Sequence[tuple[float, float]] = (),
) -> str:
    """The line of one record. Raises LedgerError for a record that the ledger would refuse."""
    fields = {
        "sequence": sequence,
        "created_utc": utc_now(),
        "kind": kind,
        "workload": plain(workload),
        "phase": plain(phase),
        "campaign": plain(campaign),
        "energy_j": checked(kind, energy_j),
        "source": plain(source),
        "body": body,
        "power_curve": checked_curve(power_curve),
    }
    return json_text(kind, fields) + "\n"
