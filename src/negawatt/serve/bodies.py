"""What stages read in requests and answers: JSON, what tells two requests apart, pieces made whole.

A stage that cannot read a body leaves it alone: it goes on untouched, and upstream says what it thinks of it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Self, final

from negawatt.serve.exchange import Answer, Exchange, Headers, closed
from negawatt.serve.headers import first

_SALT = secrets.token_bytes(32)
"""Of this process: what is kept under a digest cannot be traced back to credentials or texts by guessing."""
UNTOLD = frozenset(
    (
        *(b"content-length", b"accept-encoding", b"cache-control", b"pragma", b"user-agent"),
        *(b"traceparent", b"tracestate", b"baggage", b"b3", b"x-request-id", b"x-correlation-id"),
        *(b"x-amzn-trace-id", b"x-cloud-trace-context", b"request-id", b"x-client-request-id"),
    )
)
"""Headers that may differ between requests that mean the same; so may those that begin with one of `_UNTOLD_BEGIN`."""
_UNTOLD_BEGIN = (b"x-b3-", b"x-stainless-")
_MOST_HELD_BYTES = 256 << 20
"""Held of all answers that are being gathered."""
_SMALL_BYTES = 64 << 10
"""An answer up to this length is gathered even then."""
_OF_BODY = frozenset((b"content-length", b"etag", b"content-md5", b"digest", b"content-digest", b"repr-digest"))


def json_object(exchange: Exchange) -> dict[str, Any] | None:
    """The JSON object that a POST carries.

    None if it carries none, or one that two readers may take differently: encoded, not UTF-8, with a member given
    twice, with NaN.
    """
    if exchange.method != "POST" or exchange.header(b"content-encoding") is not None:
        return None
    kind = (exchange.header(b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        return None
    found = from_json(exchange.body)
    return found if isinstance(found, dict) else None


def from_json(text: bytes) -> Any:  # noqa: ANN401 -- JSON is anything
    """The value, or None if it is not JSON that every reader takes the same way."""
    try:
        return _READER.decode(text.decode())
    except (ValueError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a member is given twice")
    return made


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_READER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)
_WRITER = json.JSONEncoder(separators=(",", ":"), sort_keys=True, allow_nan=False)


def to_json(value: object) -> bytes:
    """Compact and with sorted members: equal for equal values. Integers and floats stay apart, as 1 and 1.0.

    Raises:
        ValueError: for a number beyond what a double holds.
    """
    return _WRITER.encode(value).encode()


def told(headers: Headers, *more: bytes) -> bytes:
    """All headers that may make a difference to the answer, credentials among them, as one text.

    Args:
        headers: of the request.
        more: names beside, of those that are left out else.
    """
    kept = [pair for pair in headers if pair[0] in more or not is_untold(pair[0])]
    kept.sort(key=lambda pair: pair[0])
    return b"\n".join(b"%b:%b" % pair for pair in kept)


def is_untold(name: bytes) -> bool:
    """Whether a header of that name makes no difference to the answer."""
    return name in UNTOLD or name.startswith(_UNTOLD_BEGIN)


def digest(*parts: bytes) -> bytes:
    """32 bytes that are equal for equal parts only; another run of the gateway has others."""
    made = blake2b(key=_SALT, digest_size=32)
    for part in parts:
        made.update(len(part).to_bytes(8, "big"))
        made.update(part)
    return made.digest()


def with_headers(headers: Headers, **changed: bytes) -> Headers:
    """A copy with some headers replaced; their names are written with "_" for "-"."""
    new = {name.replace("_", "-").encode(): value for name, value in changed.items()}
    return (*(pair for pair in headers if pair[0] not in new), *new.items())


def with_body(exchange: Exchange, body: bytes) -> Exchange:
    """A request of its own with another body, whose answer comes without an encoding.

    Nobody's client going away is told to it: who asks cancels it.
    """
    length = str(len(body)).encode()
    headers = with_headers(exchange.headers, content_length=length, accept_encoding=b"identity")
    return replace(exchange, headers=headers, body=body, gone=asyncio.Event())


def answer_with(answer: Answer, body: bytes, *more: tuple[bytes, bytes], without: Iterable[bytes] = ()) -> Answer:
    """A copy with another body, its length told; headers that were about the body as it was are left out.

    Args:
        answer: the model for it.
        body: the new one, whole.
        more: headers to add.
        without: names of headers to leave out beside.
    """
    dropped = _OF_BODY | set(without)
    kept = (pair for pair in answer.headers if pair[0] not in dropped)
    return replace(answer, headers=(*kept, (b"content-length", b"%d" % len(body)), *more), body=body)


def flows(answer: Answer) -> bool:
    """Whether its pieces are meant to be read as they come: waiting for the last would spoil it."""
    kind = (first(answer.headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    return kind in (b"text/event-stream", b"application/x-ndjson", b"application/jsonl")


def plain(answer: Answer) -> bool:
    """Whether its body comes as it is, without an encoding."""
    return (first(answer.headers, b"content-encoding") or b"identity").lower() == b"identity"


@final
class _Held:
    """Pieces that came and are held, then those still to come. What all of these hold is counted together."""

    __slots__ = ("_kept", "_more", "size")
    together = 0  # bytes, of all in this process

    def __init__(self, more: AsyncIterator[bytes]) -> None:
        self._kept: deque[bytes] = deque()
        self._more = more
        self.size = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._kept:
            return await anext(self._more)
        piece = self._kept.popleft()
        self._count(-len(piece))
        return piece

    def hold(self, piece: bytes) -> None:
        self._kept.append(piece)
        self._count(len(piece))

    def whole(self) -> bytes:
        """All pieces as one; they are not held any more."""
        made = b"".join(self._kept)
        self._drop()
        return made

    async def aclose(self) -> None:
        self._drop()
        await closed(self._more)

    def _drop(self) -> None:
        self._kept.clear()
        self._count(-self.size)

    def _count(self, more: int) -> None:
        self.size += more
        _Held.together += more


async def gathered(answer: Answer, most_bytes: int) -> Answer:
    """The answer with its pieces made one.

    One that is larger than `most_bytes` keeps coming in pieces; so does any but a small one while all that are being
    gathered hold 256 MiB.

    Raises:
        UpstreamError: if upstream breaks off.
    """
    if isinstance(answer.body, bytes):
        return answer
    held = _Held(answer.body)
    try:
        async for piece in answer.body:
            held.hold(piece)
            full = _Held.together > _MOST_HELD_BYTES and held.size > _SMALL_BYTES
            if held.size > most_bytes or full:
                return replace(answer, body=held)
    except BaseException:
        await held.aclose()
        raise
    body = held.whole()
    if plain(answer):
        return answer_with(answer, body)
    length = b"%d" % len(body)
    return replace(answer, headers=with_headers(answer.headers, content_length=length), body=body)
