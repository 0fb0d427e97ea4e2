"""Connection: one keep-alive HTTP/1.1 connection to an inference server, one request on it at a time.

Written on the parser alone (httptools), because a gateway that counts joules should cost few: a call takes about a
third of the CPU time that a general client takes, and bytes of headers and bodies pass through as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, final

import httptools

from negawatt.serve.exchange import Headers

if TYPE_CHECKING:
    from negawatt.serve.limits import Limits

_BUFFER_BYTES = 256 << 10
"""Reading from upstream pauses when this much waits for a slow client."""
_JOIN_BYTES = 64 << 10
"""Bodies up to this are copied behind their head."""


class BrokenError(Exception):
    """The connection gave no whole answer.

    Attributes:
        slow: whether it was given up because nothing came.
        untouched: whether it was closed before a byte of an answer had come.
    """

    def __init__(self, reason: str, *, slow: bool = False, untouched: bool = False) -> None:
        super().__init__(reason)
        self.slow = slow
        self.untouched = untouched


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer as it came.

    Attributes:
        status: HTTP status, 200 or more.
        headers: all of them.
        body: whole, or None: its pieces are still to be had of the connection.
    """

    status: int
    headers: Headers
    body: bytes | None


@final
class Connection(asyncio.Protocol):
    """One connection; `ask` only when it is free.

    It is an iterator of the pieces of an answer's body, where `ask` gave none.

    Args:
        limits: how long to wait, how large a head may be, and what is read whole.
        done: called when an answer has ended, with this connection; it can be asked again if it is `free`.
    """

    def __init__(self, limits: Limits, done: Callable[[Connection], None]) -> None:
        self._limits = limits
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._timer: asyncio.TimerHandle | None = None
        self.asked = 0
        self.free_since_s = 0.0
        self.free_for_s: float | None = None
        self._busy = False
        self._reset(head_only=False)

    def _reset(self, *, head_only: bool) -> None:
        self._head_only = head_only
        self._touched = False
        self._head_bytes = 0  # of names and values
        self._before = 0  # bytes that came before the head was whole
        self._status = 0  # of the head, once it is whole
        self._headers: list[tuple[bytes, bytes]] = []
        self._between = False  # after an interim answer's head
        self._gather = False
        self._until_close = False
        self._closed_cleanly = False  # by upstream
        self._keep_alive = False
        self._ended = False
        self._fault: BrokenError | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._paused = False
        self._heard_s = 0.0
        self._ready: asyncio.Future[None] | None = None  # the head, or the whole answer
        self._more: asyncio.Future[None] | None = None  # another piece

    @property
    def free(self) -> bool:
        """Whether it can be asked."""
        return not self._busy and self._transport is not None and not self._transport.is_closing()

    async def ask(self, head: bytes, body: bytes, *, head_only: bool) -> Reply:
        """Send a request and wait for the head of its answer, or for all of it if it is short.

        Args:
            head: of the request, with the empty line.
            body: of the request.
            head_only: whether the answer to it has no body whatever its head says (HEAD).

        Raises:
            BrokenError: if there is no such answer. The connection is closed then, as it is on cancellation.
        """
        if not self.free or self._transport is None:
            raise BrokenError("it was closed", untouched=True)
        self._reset(head_only=head_only)
        self._busy = True
        self.asked += 1
        self._heard_s = self._loop.time()
        self._timer = self._loop.call_at(self._heard_s + self._limits.answer_s, self._impatient)
        self._ready = self._loop.create_future()
        if len(body) <= _JOIN_BYTES:  # one call to the system
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        try:
            await self._ready
        except BaseException:
            self.close()
            raise
        if not self._ended:
            return Reply(status=self._status, headers=tuple(self._headers), body=None)
        reply = Reply(status=self._status, headers=tuple(self._headers), body=b"".join(self._chunks))
        self._finish()
        return reply

    def __aiter__(self) -> Connection:
        return self

    async def __anext__(self) -> bytes:
        """The next piece. Raises BrokenError."""
        while not self._chunks:
            if self._fault:
                self.close()
                raise self._fault
            if self._ended or not self._busy:
                self._finish()
                raise StopAsyncIteration
            self._more = self._loop.create_future()
            try:
                await self._more
            except BaseException:
                self.close()
                raise
        piece = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks, self._size = [], 0
        self._heard_s = self._loop.time()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return piece

    async def aclose(self) -> None:
        """End the answer here: what has not come of it will not, and the connection closes."""
        if self._busy:
            self.close()

    def close(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()
        self._finish()

    def _finish(self) -> None:
        if not self._busy:
            return
        self._busy = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        transport, whole = self._transport, self._ended and self._keep_alive and self._fault is None
        # An answer may be there before the request has gone out: the next one would go out behind the rest of it.
        if transport is not None and not (whole and not transport.get_write_buffer_size()):
            transport.abort()
        self.free_since_s = self._loop.time()
        self._done(self)

    def _impatient(self) -> None:
        """Nothing may have come for too long. A stream that nobody takes is given up as well."""
        due_s = self._heard_s + self._limits.answer_s
        if self._loop.time() < due_s:
            self._timer = self._loop.call_at(due_s, self._impatient)
        else:
            self._timer = None
            self._fail(f"nothing came for {self._limits.answer_s:g} s", slow=True)

    def _fail(self, reason: str, *, slow: bool = False) -> None:
        if self._ended or self._fault is not None:
            return
        self._fault = BrokenError(reason, slow=slow, untouched=not self._touched and not slow)
        if self._transport is not None:
            self._transport.abort()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(self._fault)
        elif self._more is None:
            self._finish()  # a stream that nobody waits for: its next piece is this fault
        self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)
        self._more = None

    def _release(self) -> None:
        """Let `ask` return."""
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    # ------------------------------------------------------------------------------------------ asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if not self._busy or self._ended:
            self._keep_alive = False  # nobody asked for these: whose they are cannot be known
            if self._transport is not None:
                self._transport.abort()
            return
        self._touched = True
        self._heard_s = self._loop.time()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"it is not HTTP ({type(error).__name__})")
            return
        if not self._status:
            self._before += len(data)
        if max(self._before, self._head_bytes) > self._limits.head_bytes:
            self._fail(f"its head has more than {self._limits.head_bytes} bytes")

    def eof_received(self) -> None:
        """Upstream sends no more. Over TLS uvloop tells this only if nobody has cut the connection (RFC 9112, 9.8)."""
        self._closed_cleanly = True

    def connection_lost(self, exc: Exception | None) -> None:
        """Upstream, or this side, has closed."""
        if self._busy and self._until_close and self._status and self._closed_cleanly and exc is None:
            self._end(keep_alive=False)
        elif self._busy:
            self._fail("it closed the connection" + ("" if exc is None else f" ({exc})"))
        self._transport = None
        self._parser = None
        if not self._busy:
            self._done(self)

    # ------------------------------------------------------------------------------------------ the parser's callbacks

    def on_message_begin(self) -> None:
        """An answer begins: one behind the end of the one that was asked for is nobody's."""
        if self._ended:
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or after the body a trailer: those belong to this hop."""
        if not self._status:
            self._head_bytes += len(name) + len(value) + 4
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._ended:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers, self._between = [], True
            return
        self._status = status
        if self._head_bytes > self._limits.head_bytes:
            return
        self._before = 0
        self._keep_alive = self._parser.should_keep_alive()
        found = dict(self._headers)
        if self._head_only:
            self._keep_alive = False  # the parser does not know of this, and may wait for a body
            self._end(keep_alive=False)
            return
        length = found.get(b"content-length", b"")
        chunked = b"transfer-encoding" in found
        self._until_close = not length and not chunked and status not in (204, 304)
        kept = found.get(b"keep-alive", b"").partition(b"timeout=")[2].partition(b",")[0].strip()
        self.free_for_s = float(kept) if kept.isdigit() and len(kept) < 9 else None
        kind = found.get(b"content-type", b"").lower()
        if kind.startswith(b"text/event-stream"):
            self._release()
        elif length:
            self._gather = int(length) <= self._limits.whole_bytes
        else:
            self._gather = kind.startswith(b"application/json") or status in (204, 304)
        if not self._gather:
            self._release()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._ended:
            return
        self._chunks.append(body)
        self._size += len(body)
        if self._gather:
            if self._size <= self._limits.whole_bytes:
                return
            self._gather = False
            self._release()
        if self._size > _BUFFER_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        """The answer is whole, or an interim one is over."""
        if self._between:
            self._between = False
        elif not self._ended:
            self._end(keep_alive=self._keep_alive and not self._until_close)

    def _end(self, *, keep_alive: bool) -> None:
        self._keep_alive = keep_alive
        self._ended = True
        self._release()
        self._wake()
