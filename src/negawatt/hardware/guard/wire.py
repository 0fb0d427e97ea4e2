"""Wire: what a client and the guard say to each other, one line of JSON for each request and one for its answer.

A request is a flat object: "op" names it, the other members are the fields of its class here. An answer is
`{"ok": true, ...}` or `{"ok": false, "error": CODE, "got": ..., "why": ..., "fix": ...}`. Whatever is not exactly that
is an error. Nothing a client sends reaches a device but an address that the guard knows and a finite number.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.core.codec import from_json
from negawatt.core.errors import HardwareError, HeldError, NeedsPrivilegeError, NegawattError, UsageError

VERSION = 1
LINE_BYTES = 16_384
"""The longest request; a host's worth of addresses takes a tenth."""
ANSWER_BYTES = 4 * 2**20
"""The longest answer: the listing of a host with hundreds of controls and all their clocks."""
SILENCE_S = 10.0
"""A client that says nothing for so long is taken to hang, and what it changed is undone [s]."""
TEXT_CHARS = 300
"""The longest address or name of some work."""
_ADDRESSES = 64
_DIGITS = 20

Json = dict[str, Any]


class WireError(NegawattError):
    """What was received is not the guard's language; the connection ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first request. Answer: `version`, `silence_s`."""

    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ListControls:
    """Which controls this client may change. Answer: `controls`, a list of ControlInfo with the policy's range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """Hold some controls; once per connection. Answer: `infos` and `found`, by address.

    Attributes:
        addresses: of the controls.
        owner: what the user would recognise the work by.
    """

    addresses: tuple[str, ...]
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Set:
    """Change a control that is held. Answer: `value`, as read back."""

    address: str
    value: float | None  # in the control's unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Put all that is held back as found. Answer: nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Who holds what. Answer: `holders`, a list of objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """A sign of life. Answer: nothing more."""


Request = Hello | ListControls | Take | Set | Release | Status | Ping

OPS: Mapping[str, type[Request]] = {
    "hello": Hello,
    "list": ListControls,
    "take": Take,
    "set": Set,
    "release": Release,
    "status": Status,
    "ping": Ping,
}

_CODES: Mapping[str, type[NegawattError]] = {
    "held": HeldError,
    "hardware": HardwareError,
    "privilege": NeedsPrivilegeError,
    "usage": UsageError,
    "wire": WireError,
    "other": NegawattError,
}
"""Kinds of error, the finer before the coarser."""


def parse(line: bytes) -> Request:
    """The request of a line, without its line end. Raises WireError if it is anything else."""
    data = dict(loads(line))
    op = data.pop("op", None)
    if not isinstance(op, str) or op not in OPS:
        raise _unclear(f"op {op!r:.40}", f"one of {', '.join(OPS)}")
    try:
        request = from_json(OPS[op], data, op)
    except UsageError as error:
        raise _unclear(error.got, "the fields of that request and no others") from None
    if isinstance(request, Take):
        if not 1 <= len(request.addresses) <= _ADDRESSES or len(set(request.addresses)) < len(request.addresses):
            raise _unclear(f"{len(request.addresses)} addresses", f"1 to {_ADDRESSES} different ones")
        _check_text(*request.addresses, request.owner)
    elif isinstance(request, Set):
        _check_text(request.address)
    return request


def loads(line: bytes) -> Json:
    """A JSON object, strictly: UTF-8, no repeated member, no NaN, infinity or endless number. Else WireError."""
    try:
        data = json.loads(
            line.decode("utf-8"),
            parse_constant=_refuse,
            parse_int=_whole,
            parse_float=_number,
            object_pairs_hook=_members,
        )
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _unclear(f"a line that is not JSON ({str(error)[:60]})", "one JSON object") from None
    if not isinstance(data, dict):
        raise _unclear(f"a {type(data).__name__}", "a JSON object")
    return data


def dumps(message: Mapping[str, Any]) -> bytes:
    """A message as one line, ASCII only, with its line end."""
    return json.dumps(message, allow_nan=False).encode("ascii") + b"\n"


def failure(error: NegawattError) -> Json:
    """The answer that tells an error."""
    code = next(code for code, kind in _CODES.items() if isinstance(error, kind))
    return {"ok": False, "error": code, "got": error.got, "why": error.why, "fix": error.fix}


def raise_failure(answer: Json) -> None:
    """Raise what an answer tells, if it tells an error."""
    if answer.get("ok") is True:
        return
    kind = _CODES.get(str(answer.get("error")), NegawattError)
    raise kind(*(str(answer.get(part, "?")) for part in ("got", "why", "fix")))


def lines(connection: socket.socket, most_bytes: int, silence_s: float) -> Iterator[bytes]:
    """The lines that arrive, without their ends, until the other side closes; half a line at the end is dropped.

    Args:
        connection: is left with a time limit of its own.
        most_bytes: of one line.
        silence_s: how long a whole line may take to arrive [s].

    Raises:
        WireError: if a line is longer or takes longer.
        OSError: if the connection breaks.
    """
    buffer = bytearray()
    while True:
        deadline_s = time.monotonic() + silence_s
        while (end := buffer.find(b"\n")) < 0 and len(buffer) <= most_bytes:
            left_s = deadline_s - time.monotonic()
            try:
                connection.settimeout(max(left_s, 1e-3))
                chunk = connection.recv(65_536) if left_s > 0 else None
            except TimeoutError:
                chunk = None
            if chunk is None:
                raise _unclear(f"no whole line for {silence_s:g} s", "a sign of life")
            if not chunk:
                return
            buffer += chunk
        if end < 0 or end > most_bytes:
            raise _unclear(f"a line of more than {most_bytes} bytes", "a shorter one")
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        yield line


def _unclear(got: str, wanted: str) -> WireError:
    return WireError(
        f"the connection brought {got}",
        f"only {wanted} can be understood",
        "use the same version of negawatt throughout",
    )


def _check_text(*texts: str) -> None:
    """Words are short and printable, so that they can be shown and logged as they are."""
    if not all(text.isprintable() and 0 < len(text) <= TEXT_CHARS for text in texts):
        raise _unclear("a text that is empty, long or not printable", f"1 to {TEXT_CHARS} printable characters")


def _members(pairs: Sequence[tuple[str, Any]]) -> Json:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member twice")
    return members


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError("an endless number")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits) if len(digits) <= 2 * _DIGITS else float("inf")
    if number in (float("inf"), float("-inf")):
        raise ValueError("an endless number")
    return number
