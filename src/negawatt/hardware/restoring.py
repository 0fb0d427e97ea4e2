"""Restoring: puts a control back as a record says that it was found, unless somebody else has changed it since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from negawatt.core.errors import HardwareError, NegawattError
from negawatt.hardware.control import Control, Value
from negawatt.hardware.controls import open_control
from negawatt.hardware.records import Kept, Record, Touched, same


class Outcome(StrEnum):
    """What came of putting a control back."""

    RESTORED = "restored"
    UNTOUCHED = "untouched"
    """nothing had been written to it"""
    LEFT = "left"
    """somebody else has changed it since, so it was left to them"""
    DROPPED = "dropped"
    """the machine was started anew since, and a device forgets its limits then"""
    FAILED = "failed"
    """it could not be put back; the record is kept for the next try"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What came of putting one control back.

    Attributes:
        address: of the control; "" if the record of its device cannot be understood.
        scope: of its device.
        owner: who had changed it.
        outcome: what came of it.
        found: what it had been like; None: not limited, or not known.
        note: a sentence for people; "" if there is nothing to say.
        command: what an administrator types to put it back by hand.
    """

    address: str
    scope: str
    owner: str
    outcome: Outcome
    found: Value
    note: str = ""
    command: str = ""


def put_back(record: Record, kept: Kept, control: Control | None = None) -> Repaired:
    """Put one control back and say what came of it; it never raises, so that the others get their turn.

    Args:
        record: it belongs to.
        kept: what is known of it.
        control: opened already; None: it is opened here.
    """
    try:
        outcome, note = _put_back(kept, control or open_control(kept.address))
    except NegawattError as error:
        outcome, note = Outcome.FAILED, error.reason
    except Exception as error:  # noqa: BLE001 -- a driver's own error; the reason is recorded and told
        outcome, note = Outcome.FAILED, f"{type(error).__name__}: {error}"
    return _repaired(record, kept, outcome, note)


def damaged(scope: str, error: HardwareError) -> Repaired:
    """What is said of a record that cannot be understood."""
    return Repaired(
        address="", scope=scope, owner="", outcome=Outcome.FAILED, found=None, note=error.got, command=error.fix
    )


def _repaired(record: Record, kept: Kept, outcome: Outcome, note: str) -> Repaired:
    return Repaired(
        address=kept.address,
        scope=record.scope,
        owner=record.owner,
        outcome=outcome,
        found=kept.found,
        note=note,
        command=kept.command,
    )


def _put_back(kept: Kept, control: Control) -> tuple[Outcome, str]:
    if kept.touched is Touched.NO:
        return Outcome.UNTOUCHED, ""
    current = control.read()
    ours = kept.touched is Touched.WRITING or same(current, kept.value, kept.step)
    # As found already, it is written all the same: of locked clocks a driver does not tell.
    if not ours and not same(current, kept.found, kept.step):
        return Outcome.LEFT, f"{kept.address} is {current}, and not {kept.value} as it was set: somebody changed it"
    control.write(kept.found)
    current = control.read()
    if not same(current, kept.found, kept.step):
        return Outcome.FAILED, f"{kept.address} was set to {kept.found} and is {current}"
    return Outcome.RESTORED, ""


def dropped(record: Record) -> list[Repaired]:
    """What is said of a record of an earlier start of the machine."""
    note = "the machine was started anew since, and the device forgot it"
    return [_repaired(record, kept, Outcome.DROPPED, note) for kept in record.controls]


def not_restored(failed: Sequence[Repaired]) -> HardwareError:
    """The error that says what could not be put back, and what an administrator types."""
    return HardwareError(
        "; ".join(f"{one.address or one.scope} could not be put back as found: {one.note}" for one in failed),
        "it stays changed for everybody, until a `negawatt` command that may puts it back",
        "; ".join(one.command for one in failed),
    )
