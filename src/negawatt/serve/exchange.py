"""Exchange: one request on its way through the gateway. Answer: what comes back. Stage: a part of the way.

The gateway is a chain of stages, each of which answers an exchange by itself or asks the next one:

    app -> cache -> cascade -> batcher -> pool (replicas) -> upstream

`app` is the ASGI side: it reads the request, refuses what is malformed or too much, opens and closes the account of
every exchange, and writes the answer. A stage never sees a socket of the client's, and never keeps an account.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from negawatt.core.errors import NegawattError
from negawatt.core.serving import Cost, Outcome

Headers = tuple[tuple[bytes, bytes], ...]
"""Names in lower case, in the order they came, as in ASGI."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request, whole. Stages fill in the second half.

    Attributes:
        id: 32 hexadecimal digits.
        method: in upper case.
        target: raw path and query, as the client sent it, beginning with "/".
        headers: the client's, without those that belong to one hop (RFC 9110, 7.6.1).
        body: the client's, whole; its length was checked.
        received_s: when its head had arrived, on `time.monotonic` [s].
        gone: set when the client has gone away.
        model: that the client asks for, or "".
        stream: whether the client asks for an answer in pieces (OpenAI's "stream": true).
        outcome: so far; `app` decides when it ends.
        tokens_in, tokens_out: as upstream counted them.
        shared: how many requests went upstream as one with this one; 0: it did not go.
        cost: settled after it has ended; None before.
    """

    id: str
    method: str
    target: bytes
    headers: Headers
    body: bytes
    received_s: float
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    model: str = ""
    stream: bool = False
    outcome: Outcome = Outcome.ANSWERED
    tokens_in: int | None = None
    tokens_out: int | None = None
    shared: int = 0
    cost: Cost | None = None

    @property
    def path(self) -> str:
        """Of the target, without the query."""
        return self.target.split(b"?", 1)[0].decode("latin-1")

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name (lower case), or None."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a stage gives back.

    Attributes:
        status: HTTP status.
        headers: without those of one hop; content-length is right for a whole body and left out for pieces.
        body: whole, or in pieces. Pieces raise UpstreamError when upstream breaks off; closing them (`aclose`) ends
            the call upstream at once.
    """

    status: int
    headers: Headers
    body: bytes | AsyncIterator[bytes]


async def closed(body: bytes | AsyncIterator[bytes]) -> None:
    """End the call upstream if the body still comes in pieces."""
    close = getattr(body, "aclose", None)
    if close is not None:
        await close()


class Stage(Protocol):
    """A part of the way. It may be called for many exchanges at once, on one event loop."""

    async def __call__(self, exchange: Exchange) -> Answer:
        """The answer.

        Raises:
            UpstreamError: if upstream gives none.
        """


class UpstreamError(NegawattError):
    """Upstream gave no whole answer.

    Attributes:
        status: what the client is told: 502 for unreachable, malformed or cut off; 503 for too busy; 504 for too slow.
    """

    def __init__(self, status: int, got: str, why: str, fix: str) -> None:
        super().__init__(got, why, fix)
        self.status = status


class Accounts(Protocol):
    """Who pays for the meter's joules. `app` calls it; cheap, and on the event loop's thread."""

    def begin(self, exchange: Exchange) -> None:
        """From now on the exchange is in flight."""

    def so_far(self, exchange: Exchange) -> Cost:
        """What it has cost by now, by the latest look at the meter: what headers tell, as they go before the end."""

    def end(self, exchange: Exchange, status: int) -> None:
        """It is over. Its cost is settled at the next look at the meter, and goes into the ledger and the metrics.

        Args:
            exchange: with its outcome and tokens.
            status: that the client got; 0: it was gone.
        """
