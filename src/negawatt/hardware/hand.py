"""Hand: who may change some controls for now. Code that tunes asks `take` for one and needs not know its kind."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from negawatt.core.errors import NeedsPrivilegeError, NegawattError, UsageError
from negawatt.hardware.control import ControlInfo, Value


@runtime_checkable
class Hand(Protocol):
    """The right to change some controls. Whatever happens to this process, they end up as found."""

    @property
    def infos(self) -> Mapping[str, ControlInfo]:
        """What may be changed, by address."""

    @property
    def found(self) -> Mapping[str, Value]:
        """How it was found, by address."""

    def set(self, address: str, value: Value) -> Value:
        """Change one control and return what it reads back.

        Raises:
            UsageError: if the value is not allowed: above what was found, or outside the device's range.
            NeedsPrivilegeError: if this user may not, or may not any more.
            HeldError: if the hand was taken away, or somebody else changed the control meanwhile.
            HardwareError: if the device refuses, does not take the value, or is gone.
        """

    def release(self) -> None:
        """Put everything back as found. Calling it again does nothing.

        Raises:
            HardwareError: if something could not be put back, with what an administrator types.
        """


def take(addresses: Sequence[str], *, owner: str) -> Hand:
    """A hand on some controls: directly where this process has the privilege, else through the guard.

    Args:
        addresses: of the controls, as `found_controls` lists them.
        owner: what others are told who ask for the same device, such as "negawatt cap".

    Raises:
        NeedsPrivilegeError: if neither way is open, with what an administrator types.
        HeldError: if somebody else has one of the devices.
        UsageError: on an unknown address.
        HardwareError: if a device is gone.
    """
    ways = [_directly, _through_guard]
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        ways.reverse()  # asking the guard is cheaper than finding out that one may not
    refused: list[NeedsPrivilegeError] = []
    for way in ways:
        try:
            return way(addresses, owner)
        except NeedsPrivilegeError as error:
            refused.append(error)
    raise NeedsPrivilegeError(
        "; ".join(dict.fromkeys(error.got for error in refused)),
        refused[0].why,
        "run this as root, or ask an administrator for `negawatt guard` (docs/guard.md)"
        + "".join(f"; {error.fix}" for error in refused if "[[allow]]" in error.fix),
    ) from refused[0]


_Way = Callable[[Sequence[str], str], Hand]


def _directly(addresses: Sequence[str], owner: str) -> Hand:
    """A lease, after finding out whether this process may write: it writes what is there already."""
    from negawatt.hardware.lease import Lease

    lease = Lease.take(addresses, owner=owner)
    try:
        for address, value in lease.found.items():
            if value is not None:  # unlocking clocks is not sure to change nothing: the first `set` will tell
                lease.set(address, value)
    except BaseException:
        lease.release()
        raise
    return lease


def _through_guard(addresses: Sequence[str], owner: str) -> Hand:
    from negawatt.hardware.guard.client import GuardHand

    return GuardHand.take(addresses, owner=owner)


def put_back(hand: Hand) -> list[str]:
    """Release a hand for a job that must go on: what is not as found afterwards, a sentence each. Raises nothing."""
    try:
        hand.release()
    except Exception as error:  # noqa: BLE001 -- the job goes on; the reason goes into its record
        reason = error.reason if isinstance(error, NegawattError) else f"{type(error).__name__}: {error}"
        return [f"not put back: {reason}"]
    # A lease knows what somebody else has changed meanwhile; the guard keeps that to itself.
    return [f"{one.scope}: {one.note}" for one in getattr(hand, "left", ()) if one.note]


def check_value(info: ControlInfo, value: Value, found: Value, *, above_found: bool = False) -> None:
    """Refuse a value that may not be set.

    Args:
        info: of the control.
        value: that is asked for.
        found: how the control was found; that may always be set.
        above_found: whether values above it may be set.

    Raises:
        UsageError: with the values that may.
    """
    if value == found and type(value) is type(found):
        return
    if reason := _refusal(info, value, found, above_found=above_found):
        raise UsageError(
            f"{info.address} to {value:g}{info.unit and ' '}{info.unit}: {reason}"
            if isinstance(value, int | float)
            else f"{info.address} to {value}: {reason}",
            "a limit that an administrator set is never raised, nor a device run outside its range",
            f"give {_allowed(info, found, above_found=above_found)}",
        )


def _refusal(info: ControlInfo, value: Value, found: Value, *, above_found: bool) -> str:
    """Why a value other than the one found may not be set; "" if it may."""
    if value is None:
        return f"it was found limited to {found}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return "it is no finite number"
    if not info.lowest <= value <= info.highest:
        return "it is outside the device's range"
    if found is not None and value > found and not above_found:
        return f"it is above {found}, as it was found"
    if info.values and value not in info.values:
        return "the device takes only some values"
    return ""


def _allowed(info: ControlInfo, found: Value, *, above_found: bool) -> str:
    """What may be set, in words."""
    highest = info.highest if found is None or above_found else min(info.highest, found)
    if info.values:
        taken = [value for value in info.values if value <= highest]
        return f"one of the {len(taken)} values that it takes, from {taken[0]:g} to {taken[-1]:g}" if taken else "none"
    return f"{info.lowest:g} to {highest:g}" + (", or none" if found is None else "")
