"""Protocol: uvicorn's HTTP/1.1, with a bound on the head of a request in bytes and time, and an abnormal end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast, final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from negawatt.serve.answers import error_body
from negawatt.serve.app import ABORT
from negawatt.serve.headers import size_of
from negawatt.serve.limits import Limits

_JOIN_BYTES = 64 << 10


@final
class _HeadWithBody:
    """What an answer is written to: its head goes out with the first part of its body, in one call to the system."""

    __slots__ = ("_head", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head: bytes | None = None

    def write(self, data: bytes) -> None:
        """Keep the head; send everything else."""
        if self._head is None and not data.startswith(b"HTTP/1.1 100 "):
            self._head = data
            return
        if self._head and len(data) <= _JOIN_BYTES:
            data = self._head + data
        elif self._head:
            self._transport.write(self._head)
        self._head = b"" if self._head is not None else None
        self._transport.write(data)

    def close(self) -> None:
        """Send what is kept, and close when all is sent."""
        if self._head:
            self._transport.write(self._head)
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self._transport.is_closing()


class BoundedProtocol(HttpToolsProtocol):
    """What uvicorn leaves open: a head that never ends, or comes a byte an hour.

    `limits` is set by `bounded`.
    """

    limits: ClassVar[Limits] = Limits()

    def __init__(self, *args: Any, **named: Any) -> None:  # noqa: ANN401 -- uvicorn's
        super().__init__(*args, **named)
        self._head_bytes = 0
        self._in_head = True
        self._refusal: Callable[[], None] | None = None  # nothing is read any more; it is told when its turn comes
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is there; its first head has to come soon."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client, or this side, has closed."""
        self._head_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._refusal is not None:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._refusal is None and self._head_bytes > self.limits.head_bytes:
            self._refuse_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._head_timer is None and not self._answering:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._in_head = False
        self._head_there()
        if self._refusal is not None:
            return
        if len(self.url) + size_of(self.headers) > self.limits.head_bytes:
            self._refuse_head()
            return
        self.scope["extensions"] = {ABORT: {"call": self.transport.abort}}
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":
            self.cycle.transport = cast("asyncio.Transport", _HeadWithBody(self.transport))

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._refusal is None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is whole; what came behind its request has its turn."""
        super().on_response_complete()
        if self._answering or self.transport.is_closing():
            return
        if self._refusal is not None:
            self._refusal()
        elif self._in_head:
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(partial(super().send_400_response, msg))

    @property
    def _answering(self) -> bool:
        """Whether a request that is whole waits for the end of its answer, which nothing may come between."""
        cycle = self.cycle
        return bool(self.pipeline) or (cycle is not None and not cycle.more_body and not cycle.response_complete)

    def _refuse(self, refusal: Callable[[], None]) -> None:
        if self._refusal is not None:
            return
        self._refusal = refusal
        self._head_there()
        if not self._answering:
            refusal()

    def _refuse_head(self) -> None:
        self._refuse(self._tell_too_large)

    def _tell_too_large(self) -> None:
        body = error_body("the head of the request is too large", "head_too_large")
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_s, self._head_late)

    def _head_late(self) -> None:
        self._head_timer = None
        self.transport.abort()

    def _head_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol with these limits."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})
