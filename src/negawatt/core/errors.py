"""Errors, each in three parts: what was got, why it matters, what to type.

The command line turns an error into its exit code: 1 claim not shown or gate failed, 2 usage, 3 no meter,
4 needs privilege.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar


class NegawattError(Exception):
    """Base of every error that negawatt raises on purpose.

    Args:
        got: what was found, with the offending value.
        why: why that stops the work or would spoil a number.
        fix: what to type or change.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, got: str, why: str, fix: str) -> None:
        super().__init__(got, why, fix)
        self.got = got
        self.why = why
        self.fix = fix

    @property
    def reason(self) -> str:
        """Why something is not available, as one sentence that ends with what to type."""
        return f"{self.got}; {self.fix}"

    def __str__(self) -> str:
        return f"{self.got}\n  why it matters: {self.why}\n  what to do: {self.fix}"


class UsageError(NegawattError):
    """An argument, option or file that cannot be understood."""

    exit_code = 2


class NoMeterError(NegawattError):
    """No sensor can price this work on this host."""

    exit_code = 3


class NeedsPrivilegeError(NegawattError):
    """The hardware is there, but this user may not read or change it."""

    exit_code = 4


class SensorError(NegawattError):
    """A sensor that was opened stopped giving readings."""


class HardwareError(NegawattError):
    """A device refused a setting, did not take it, or is gone."""


class HeldError(HardwareError):
    """Somebody else is changing the same device."""


class WorkloadError(NegawattError):
    """The user's workload raised, hung, or returned something that is not a measurement."""


class LedgerError(NegawattError):
    """The ledger cannot be read or written."""


class ScopeMismatchError(NegawattError):
    """Numbers that measure different things were about to be compared or added."""


def refusal(call: Callable[[], object]) -> str | None:
    """None if a call succeeds, else the reason of the NegawattError that it raises."""
    try:
        call()
    except NegawattError as error:
        return error.reason
    return None
