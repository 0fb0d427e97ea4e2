"""Gateway: the ASGI side. It reads a request whole, keeps its account, asks the first stage and writes the answer."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, final

from negawatt.core.serving import Outcome
from negawatt.serve import usage
from negawatt.serve.answers import error_body, ours
from negawatt.serve.exchange import Accounts, Answer, Exchange, Headers, Stage, UpstreamError, closed
from negawatt.serve.headers import end_to_end, first
from negawatt.serve.limits import Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Own = Callable[[str], Awaitable[tuple[int, str, bytes]]]
"""An endpoint of the gateway's own: from the rest of the path to status, content type and body."""

ABORT = "negawatt.abort"
"""ASGI extension: its "call" ends the client's connection in a way that cannot pass for a whole answer."""

_DRAIN_S = 1.0
_LOG = logging.getLogger(__name__)


class _RefusedError(Exception):
    """The gateway does not pass this request on."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _GoneError(Exception):
    """The client went away before its request was whole."""


@final
class Gateway:
    """The ASGI application.

    Answers carry these headers: `negawatt-request-id`, `negawatt-outcome`, and for whole bodies
    `negawatt-energy-joules`, `negawatt-energy-interval-joules` ("low high", 95 %), `negawatt-energy-source`, and where
    known `negawatt-carbon-grams`, `negawatt-tokens-in` and `-out`. Headers go out before the last byte, so their joules
    are of that moment; the settled ones are in the ledger and at /negawatt/requests/ID. A stream's head goes out at
    once, without joules; an event stream ends with a comment that tells them (`: negawatt energy_j=...`), which clients
    ignore by the specification of server-sent events.

    Args:
        first: the first stage.
        accounts: who pays for the joules. `end` is called exactly once for every request, refused ones included.
        limits: how much is taken at once, and how long is waited.
        own: endpoints of the gateway's own, not accounted: by path, or by the beginning of one if it ends with "/".
        comment: whether event streams end with a comment that tells their energy.
    """

    def __init__(
        self,
        first: Stage,
        accounts: Accounts,
        limits: Limits | None = None,
        *,
        own: Mapping[str, Own] | None = None,
        comment: bool = True,
    ) -> None:
        self.first = first
        self.accounts = accounts
        self.limits = limits or Limits()
        self.own = dict(own or {})
        self.comment = comment
        self.at_once = 0
        self.held_bytes = 0
        self._random = b""

    def new_id(self) -> str:
        """32 hexadecimal digits that nobody can guess: whoever knows them may look the request up."""
        if not self._random:
            self._random = os.urandom(16 * 256)  # one call to the system for many
        digits, self._random = self._random[:16].hex(), self._random[16:]
        return digits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway speaks HTTP, not {scope['type']}")
        path = scope["path"]
        if path == "/metrics" or path.startswith("/negawatt/"):
            await self._serve_own(path, scope["method"], send)
            return
        self.at_once += 1
        try:
            await _Turn(self, scope, receive, send).run()
        finally:
            self.at_once -= 1

    async def _serve_own(self, path: str, method: str, send: Send) -> None:
        endpoint, rest = self.own.get(path), ""
        if endpoint is None:
            begin = path[: path.rfind("/") + 1]
            endpoint, rest = self.own.get(begin), path[len(begin) :]
        kind = "application/json"
        if endpoint is None:
            status, body = 404, error_body("the gateway has nothing at this path", "not_found")
        elif method not in ("GET", "HEAD"):
            status, body = 405, error_body("this path is only read: GET", "method_not_allowed")
        else:
            status, kind, body = await endpoint(rest)
        headers = [(b"content-type", kind.encode("latin-1")), (b"content-length", b"%d" % len(body))]
        headers.append((b"cache-control", b"no-store"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@final
class _Turn:
    """One request, from its head to the end of its answer."""

    __slots__ = ("_closing", "_exchange", "_gateway", "_held", "_receive", "_received_s", "_scope", "_send", "_status")

    def __init__(self, gateway: Gateway, scope: Message, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._scope = scope
        self._receive = receive
        self._send = send
        self._received_s = time.monotonic()
        self._held = 0  # bytes of the body that count among those held
        self._closing = False  # the rest of the answer is on its way: a client that leaves now has left with it
        self._status = 0  # that the client gets
        self._exchange: Exchange | None = None

    async def run(self) -> None:
        """Serve it, and see that its account ends once, whatever happens."""
        watch: asyncio.Task[None] | None = None
        try:
            body = await self._read()
            exchange = self._begin(body)
            task = asyncio.current_task()
            watch = asyncio.create_task(self._watch(exchange, task)) if task else None
            usage.asked(exchange)
            await self._serve(exchange)
        except _RefusedError as refused:
            self._begin(b"").outcome = Outcome.REFUSED
            await self._tell(refused.status, refused.code, str(refused), close=refused.status in (408, 413))
        except _GoneError:
            self._begin(b"").outcome = Outcome.CANCELLED
        finally:
            self._closing = True
            if watch is not None and not watch.done():
                watch.cancel()
            self._gateway.held_bytes -= self._held
            if self._exchange is not None:
                self._gateway.accounts.end(self._exchange, self._status)

    def _begin(self, body: bytes) -> Exchange:
        """Open the account: the request is whole, or refused."""
        scope = self._scope
        query = scope["query_string"]
        self._exchange = exchange = Exchange(
            id=self._gateway.new_id(),
            method=scope["method"],
            target=b"%b?%b" % (scope["raw_path"], query) if query else scope["raw_path"],
            headers=end_to_end(scope["headers"]),
            body=body,
            received_s=self._received_s,
        )
        self._gateway.accounts.begin(exchange)
        return exchange

    # ------------------------------------------------------------------------------------------------ the request

    async def _read(self) -> bytes:
        """The body, whole. Raises _RefusedError or _GoneError."""
        limits = self._gateway.limits
        if self._gateway.at_once > limits.requests:
            raise _RefusedError(503, "too_many_requests", "the gateway has as many requests at once as it takes")
        if not self._scope["raw_path"].startswith(b"/"):
            raise _RefusedError(400, "bad_target", "the target of a request begins with a slash")
        length = first(self._scope["headers"], b"content-length")
        announced = int(length) if length is not None and length.isdigit() else 0
        if announced > limits.body_bytes:
            await self._refuse_body()
        self._hold(announced)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.body_s):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    if chunk := message.get("body", b""):
                        chunks.append(chunk)
                        size += len(chunk)
                        if size > limits.body_bytes:
                            await self._refuse_body()
                        self._hold(size)
                    if not message.get("more_body", False):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError:
            raise _RefusedError(408, "body_timeout", f"the body was not there after {limits.body_s:g} s") from None

    def _hold(self, size: int) -> None:
        """Count so many bytes of this body among those held."""
        more = size - self._held
        if more <= 0:
            return
        if self._gateway.held_bytes + more > self._gateway.limits.held_bytes:
            raise _RefusedError(503, "out_of_memory", "the gateway holds as many bytes of requests as it may")
        self._gateway.held_bytes += more
        self._held += more

    async def _refuse_body(self) -> None:
        """Refuse a body that is too large, after a moment of reading on: many clients listen only when all is sent."""
        if first(self._scope["headers"], b"expect") is None:
            try:
                async with asyncio.timeout(_DRAIN_S):
                    while (message := await self._receive()).get("more_body", False):
                        pass
            except TimeoutError:
                message = {"type": "http.request"}
            if message["type"] == "http.disconnect":
                raise _GoneError
        limit = self._gateway.limits.body_bytes
        raise _RefusedError(413, "body_too_large", f"the gateway takes bodies of up to {limit} bytes")

    async def _watch(self, exchange: Exchange, task: asyncio.Task[Any]) -> None:
        """Cancel the request when the client goes away."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._closing:
            exchange.gone.set()
            task.cancel()

    # ------------------------------------------------------------------------------------------------- the answer

    async def _serve(self, exchange: Exchange) -> None:
        """Ask the first stage and hand on what it gives."""
        try:
            answer = await self._gateway.first(exchange)
            if isinstance(answer.body, bytes):
                await self._whole(exchange, answer, answer.body)
            else:
                await self._stream(exchange, answer, answer.body)
        except UpstreamError as error:
            exchange.outcome = Outcome.FAILED
            await self._fail(error.status, "upstream_error", error.reason)
        except asyncio.CancelledError:
            exchange.outcome = Outcome.CANCELLED if exchange.gone.is_set() else Outcome.FAILED
            if not exchange.gone.is_set():  # the gateway is being stopped
                await self._abort()
                raise
            self._status = 0
            if task := asyncio.current_task():
                task.uncancel()
        except Exception as error:  # noqa: BLE001 -- logged; the client is told, and others are served
            exchange.outcome = Outcome.FAILED
            _LOG.exception("request %s: a stage failed", exchange.id)
            await self._fail(500, "gateway_error", f"the gateway failed ({type(error).__name__}); its log says where")

    async def _whole(self, exchange: Exchange, answer: Answer, body: bytes) -> None:
        if answer.status == 200 and exchange.tokens_in is None and exchange.tokens_out is None:
            exchange.tokens_in, exchange.tokens_out = usage.told(body, answer.headers)
        cost = self._gateway.accounts.so_far(exchange)
        headers = [*answer.headers, *ours(exchange)]
        headers.append((b"negawatt-energy-joules", b"%.6g" % cost.energy_j))
        headers.append((b"negawatt-energy-interval-joules", b"%.6g %.6g" % cost.interval_j))
        headers.append((b"negawatt-energy-source", cost.source.value.encode("ascii")))
        if cost.carbon_g is not None:
            headers.append((b"negawatt-carbon-grams", b"%.6g" % cost.carbon_g))
        if exchange.tokens_in is not None:
            headers.append((b"negawatt-tokens-in", b"%d" % exchange.tokens_in))
        if exchange.tokens_out is not None:
            headers.append((b"negawatt-tokens-out", b"%d" % exchange.tokens_out))
        await self._write(answer.status, headers, body)

    async def _stream(self, exchange: Exchange, answer: Answer, pieces: AsyncIterator[bytes]) -> None:
        """Hand pieces on as they come; a client that takes none for too long counts as gone."""
        loop = asyncio.get_running_loop()
        patience_s = self._gateway.limits.answer_s
        if self._scope.get("http_version") == "1.0":  # such clients know no pieces
            await self._whole(exchange, *await self._gathered(answer, pieces))
            return
        tail = usage.Tail() if answer.status == 200 else None
        try:
            self._status = answer.status
            headers = [*answer.headers, *ours(exchange)]
            await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": b"", "more_body": True})  # lets the head go
            async with asyncio.timeout(None) as patience:
                async for piece in pieces:
                    if tail is not None:
                        tail.feed(piece)
                    patience.reschedule(loop.time() + patience_s)
                    await self._send({"type": "http.response.body", "body": piece, "more_body": True})
                    patience.reschedule(None)
            if tail is not None and exchange.tokens_in is None and exchange.tokens_out is None:
                exchange.tokens_in, exchange.tokens_out = tail.tokens
            last = self._comment(exchange, answer.headers, tail)
            self._closing = True
            await self._send({"type": "http.response.body", "body": last})
        except TimeoutError:
            exchange.outcome = Outcome.CANCELLED
            await self._abort()
        finally:
            await closed(pieces)

    async def _gathered(self, answer: Answer, pieces: AsyncIterator[bytes]) -> tuple[Answer, bytes]:
        """A stream made whole."""
        gathered = bytearray()
        limit = self._gateway.limits.body_bytes
        try:
            async for piece in pieces:
                gathered += piece
                if len(gathered) > limit:
                    raise UpstreamError(
                        502,
                        f"an answer of more than {limit} bytes",
                        "an HTTP/1.0 client would get it whole, and it is too large to hold",
                        "use HTTP/1.1",
                    )
        finally:
            await closed(pieces)
        body = bytes(gathered)
        kept = tuple(header for header in answer.headers if header[0] != b"content-length")
        length = (b"content-length", b"%d" % len(body))
        return Answer(status=answer.status, headers=(*kept, length), body=body), body

    def _comment(self, exchange: Exchange, headers: Headers, tail: usage.Tail | None) -> bytes:
        """What an event stream ends with; nothing if it would not be a comment, or not fit."""
        kind = first(headers, b"content-type") or b""
        fits = first(headers, b"content-length") is None and first(headers, b"content-encoding") is None
        if not self._gateway.comment or tail is None or tail.open_line or not fits:
            return b""
        if not kind.lower().startswith(b"text/event-stream"):
            return b""
        cost = self._gateway.accounts.so_far(exchange)
        return b": negawatt energy_j=%.6g low_j=%.6g high_j=%.6g source=%b\n\n" % (
            cost.energy_j, *cost.interval_j, cost.source.value.encode("ascii")
        )  # fmt: skip

    async def _write(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """A whole answer."""
        self._closing = True
        self._status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _tell(self, status: int, code: str, message: str, *, close: bool = False) -> None:
        """An answer of the gateway's own: why there is none of upstream's."""
        body = error_body(message, code)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if self._exchange is not None:
            headers += ours(self._exchange)
        if status == 503:
            headers.append((b"retry-after", b"1"))
        if close:
            headers.append((b"connection", b"close"))
        await self._write(status, headers, body)

    async def _fail(self, status: int, code: str, message: str) -> None:
        """Tell that there is no answer; if it had begun, let the client see that it is not whole."""
        if self._status:
            await self._abort()
        else:
            await self._tell(status, code, message)

    async def _abort(self) -> None:
        """End the client's connection so that what it has cannot pass for a whole answer."""
        self._closing = True
        abort = self._scope.get("extensions", {}).get(ABORT)
        if abort is None:
            raise ConnectionAbortedError("the answer broke off")  # what other servers of ASGI understand
        abort["call"]()
        await asyncio.sleep(0)  # the server takes note of it
