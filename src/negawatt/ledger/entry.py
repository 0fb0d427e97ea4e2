"""Entry: what a record says before it has a number in a ledger. Record: what a ledger gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One entry of the ledger.

    Attributes:
        id: number in the order of writing, from 1.
        created_utc: when it was written, or put into a spool, ISO 8601.
        host: name of the machine.
        kind: one of `checks.KINDS`.
        workload: name of the workload or run.
        phase: "train", "infer" or "".
        campaign: identity of the plan it belongs to, of kind "requests": `sequence` of the gateway's run; or "".
        energy_j: joules, if it has any. Of kind "run": what the run answers for, so that runs at the same time add up.
        source: evidence of the joules, or "".
        machine_id: identity of the machine's installation; "" in records of format 1.
        boot_id: identity of its boot; "" in records of format 1.
        sequence: identity of the record within the boot.
        hash: SHA-256 over the hash of the record before it and all of its own fields, in hexadecimal.
        body: everything else, as JSON types.
    """

    id: int
    created_utc: str
    host: str
    kind: str
    workload: str
    phase: str
    campaign: str
    energy_j: float | None
    source: str
    machine_id: str
    boot_id: str
    sequence: str
    hash: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A record to be: the columns of `Record` without its number and hash, and with the body as JSON text."""

    created_utc: str
    host: str
    kind: str
    workload: str
    phase: str
    campaign: str
    energy_j: float | None
    source: str
    machine_id: str
    boot_id: str
    sequence: str
    body: str
