"""Merge: bring what processes spooled into the ledger, each record once, however often it is tried.

A writer holds the lock of its spool for as long as it lives. The spool of a living process is read and left; the
spool of a dead one is read, its unfinished runs are recorded as interrupted, and then it is removed. A spool on a
network share, from another host that may be alive without its lock being seen from here, is left until its writer has
ended it, or a merge on its own host, or a week of silence.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from negawatt.core.errors import LedgerError
from negawatt.ledger.checks import json_text
from negawatt.ledger.locks import only_merger, try_lock
from negawatt.ledger.origin import running, this_process
from negawatt.ledger.spooled import Content, Spooled, parse

_QUIET_S = 7 * 86400.0  # after so long without a word, a process of another host counts as dead
_LEFT_OVER_S = 60.0  # a half-made file of that age is nobody's


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What became of a merge.

    Attributes:
        added: records that are new in the ledger, the interrupted ones included.
        known: records that it had already.
        interrupted: runs of dead processes, recorded as they were last heard of.
        torn: half lines that killed processes left, dropped.
        faults: spools, or records of them, that were not taken and were kept where they are, and why.
    """

    added: int = 0
    known: int = 0
    interrupted: int = 0
    torn: int = 0
    faults: tuple[str, ...] = ()

    def __add__(self, other: Merged) -> Merged:
        return Merged(
            added=self.added + other.added,
            known=self.known + other.known,
            interrupted=self.interrupted + other.interrupted,
            torn=self.torn + other.torn,
            faults=self.faults + other.faults,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the ledger did with some records: their sequences, by whether they were new, known, or known otherwise."""

    added: frozenset[str]
    known: frozenset[str]
    conflicting: frozenset[str]


def merge_folder(folder: Path, keep: Callable[[Sequence[Spooled]], Kept], wait_s: float) -> Merged:
    """Merge the spools of a folder.

    Args:
        folder: where they are; a folder that does not exist has none.
        keep: puts records on the disk in one transaction, unless they are there. May raise LedgerError.
        wait_s: how long to wait for another process that merges.

    Raises:
        BusyError: if another process is still merging then.
        LedgerError: if the ledger could not be written, or the folder not be read. No spool is lost.
    """
    merged = Merged()
    if not folder.is_dir():
        return merged
    try:
        if not any(path.suffix in (".jsonl", ".part") for path in folder.iterdir()):
            return merged
        with only_merger(folder, wait_s):
            for path in sorted(folder.glob("*.jsonl")):
                merged += _merge_file(path, keep)
            _sweep(folder)
    except OSError as error:
        raise LedgerError(
            f"cannot merge the spools in {folder}: {error.strerror}",
            "what is in them is not in the ledger yet; nothing is lost",
            "make the folder readable and writable, then `negawatt ledger merge`",
        ) from error
    return merged


def waiting(folder: Path) -> bool:
    """Whether there are spools in a folder, as far as this user may see."""
    return next(folder.glob("*.jsonl"), None) is not None


def _merge_file(path: Path, keep: Callable[[Sequence[Spooled]], Kept]) -> Merged:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # another process was faster, where there are no locks
        return Merged()
    except OSError as error:
        return Merged(faults=(f"{path}: {error.strerror}",))
    try:
        free = try_lock(fd, shared=True)  # before reading: what a dead process wrote is all there
        try:
            content = parse(path.read_bytes())
            dead = _dead(content, free, os.fstat(fd).st_mtime)
            interrupted = _interrupted(path, content) if dead else ()
        except ValueError as error:
            return Merged(faults=(f"{path}: {error}",))
        kept = keep([*content.records, *interrupted])
        last_words = {spooled.entry.sequence for spooled in interrupted}
        conflicting = kept.conflicting - last_words  # a run that is recorded already has ended in another file
        if dead and not conflicting:
            _state_file(path).unlink(missing_ok=True)  # first: nobody looks for it without the other file
            path.unlink(missing_ok=True)
    finally:
        os.close(fd)
    return Merged(
        added=len(kept.added),
        known=len(kept.known) + len(kept.conflicting & last_words),
        interrupted=len(kept.added & last_words),
        torn=int(dead and content.torn),
        faults=tuple(f"{path}: the ledger has another record {name}" for name in sorted(conflicting)),
    )


def _dead(content: Content, free: bool | None, modified_s: float) -> bool:  # noqa: FBT001
    """Whether nothing will be written to a spool any more.

    Args:
        content: of the spool.
        free: whether its lock was to be had; None: there are no locks.
        modified_s: when it was last written, by the system's clock [s].
    """
    if content.ended:
        return True
    if free is False:
        return False
    here, writer = this_process(), content.writer
    if writer.boot_id != here.boot_id:
        return writer.machine_id == here.machine_id or time.time() - modified_s > _QUIET_S
    return True if free else not running(writer.pid, writer.start)


def _interrupted(path: Path, content: Content) -> tuple[Spooled, ...]:
    """Runs that a dead process left unfinished, as it last described them. Raises ValueError."""
    try:
        states = parse(_state_file(path).read_bytes()).records
    except FileNotFoundError:
        return ()
    finished = {spooled.entry.sequence for spooled in content.records}
    return tuple(_cut_short(state) for state in states if state.entry.sequence not in finished)


def _cut_short(state: Spooled) -> Spooled:
    body = {**json.loads(state.entry.body), "interrupted": True}
    return replace(state, entry=replace(state.entry, body=json_text(state.entry.kind, body)))


def _state_file(path: Path) -> Path:
    return path.with_suffix(".open")


def _sweep(folder: Path) -> None:
    """Remove what processes left that were killed while they made a file."""
    for path in folder.glob("*.part"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _LEFT_OVER_S:
                path.unlink()
