"""Checks: what a record may hold, made on the way in, so that it can be found, read and believed later."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime

from negawatt.core.errors import LedgerError

KINDS = ("run", "trial", "campaign", "plan", "apply", "requests")
"""What a record can be about. "requests": some that a gateway served, a part of its run."""


def utc_now() -> str:
    """The time as records have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def json_text(kind: str, value: object) -> str:
    """JSON in one line of ASCII. Raises LedgerError if it could not be read back."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerError(
            f"a {kind!r} record that is not JSON: {error}",
            "it could not be read back",
            "pass the body through negawatt.core.codec.to_json and leave out numbers that are not finite",
        ) from error


def plain(text: str) -> str:
    """Text as UTF-8 can hold it: the odd bytes of a file name (lone surrogates) are written out as escapes."""
    return str(text) if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def checked(kind: str, energy_j: float | None) -> float | None:
    """The energy as it will be stored [J]. Raises LedgerError for a record that nobody would find or believe."""
    if kind not in KINDS:
        raise LedgerError(f"a record of kind {kind!r}", "nobody would look for it", f"use one of {', '.join(KINDS)}")
    if energy_j is None:
        return None
    if not math.isfinite(energy_j):
        raise LedgerError(f"a {kind!r} record with {energy_j} J", "it is no energy", "give None for an unknown energy")
    return float(energy_j) + 0.0  # SQLite keeps no negative zero


def checked_curve(points: Sequence[tuple[float, float]], after_s: float = 0.0) -> tuple[tuple[float, float], ...]:
    """A power curve: (time_s, power_w), each power the mean over the time since the point before it.

    Args:
        points: the curve.
        after_s: where the first interval begins [s].

    Raises:
        LedgerError: if times do not increase, or a number is not finite.
    """
    last_s = after_s
    for time_s, power_w in points:
        if not (math.isfinite(time_s) and math.isfinite(power_w) and time_s > last_s):
            raise LedgerError(
                f"a power curve with the point ({time_s} s, {power_w} W) after {last_s} s",
                "energy is power times the length of its interval, which has to be positive",
                "give finite points in the order of time, the first after 0 s",
            )
        last_s = time_s
    return tuple((float(time_s), float(power_w)) for time_s, power_w in points)
