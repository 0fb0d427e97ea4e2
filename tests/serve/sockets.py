"""Real sockets for the tests of the gateway: servers that misbehave, a gateway on a free port, and a raw client."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from negawatt.core.reading import Source
from negawatt.core.serving import Cost
from negawatt.serve.app import Gateway
from negawatt.serve.exchange import Accounts, Exchange, Stage
from negawatt.serve.limits import Limits
from negawatt.serve.server import listen, uvicorn_of

Script = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""What a server does with a request whose head it has read."""


@dataclass
class Counted(Accounts):
    """Accounts that check their contract: each exchange begins once and ends once."""

    open: dict[str, Exchange] = field(default_factory=dict)
    ended: list[tuple[Exchange, int]] = field(default_factory=list)
    carbon_g: float | None = None

    def begin(self, exchange):
        assert exchange.id not in self.open
        self.open[exchange.id] = exchange

    def so_far(self, exchange):
        assert exchange.id in self.open
        return Cost(energy_j=1.5, energy_sd_j=0.5, source=Source.SAMPLED, carbon_g=self.carbon_g)

    def end(self, exchange, status):
        assert self.open.pop(exchange.id) is exchange
        self.ended.append((exchange, status))

    @property
    def last(self):
        """Outcome and status of the one that ended last."""
        exchange, status = self.ended[-1]
        return exchange.outcome.value, status


async def head_of(reader):
    """A request's or an answer's head, or b"" at the end."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


def length_of(head):
    """The content-length that a head announces; 0 without one."""
    lines = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(lines[0].split(b":")[1]) if lines else 0


@contextlib.asynccontextmanager
async def origin(script: Script, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server on a free port, as its URL; its connections end with it."""
    tasks = set()

    async def connected(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            while head := await head_of(reader):
                await script(head, reader, writer)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def says(*parts: bytes, then_close: bool = False) -> Script:
    """A script that reads the request's body and says these parts, a moment apart."""

    async def script(head, reader, writer):
        await reader.readexactly(length_of(head))
        for part in parts:
            writer.write(part)
            await writer.drain()
            if len(parts) > 1:
                await asyncio.sleep(0.01)
        if then_close:
            writer.close()

    return script


def answer(body=b"{}", *headers: bytes, status=b"200 OK", kind=b"application/json") -> bytes:
    """An answer with a content-length."""
    lines = [b"HTTP/1.1 " + status, b"content-type: " + kind, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunk(piece: bytes) -> bytes:
    """A piece of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@contextlib.asynccontextmanager
async def gateway(first: Stage, accounts: Accounts, limits: Limits | None = None, **options) -> AsyncIterator[int]:
    """A gateway on a free port; nothing is left open behind it."""
    limits = limits or Limits()
    app = Gateway(first, accounts, limits, **options)
    sock = listen("127.0.0.1", 0)
    server = uvicorn_of(app, limits, stop_s=1)
    task = asyncio.create_task(server.serve(sockets=[sock]))
    while not server.started:
        await asyncio.sleep(0.001)
    try:
        yield sock.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        await asyncio.gather(*server.server_state.tasks, return_exceptions=True)
    assert (app.at_once, app.held_bytes) == (0, 0)


async def raw(port: int, request: bytes, *, timeout_s: float = 5.0) -> bytes:
    """All that a server says to these bytes until it closes, or until a whole answer with a length is there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(timeout_s):
            head = await head_of(reader)
            if b"content-length:" in head.lower() and not request.startswith(b"HEAD"):
                return head + await reader.readexactly(length_of(head))
            return head + (b"" if request.startswith(b"HEAD") else await reader.read())
    finally:
        writer.close()


def post(body: bytes = b"{}", *headers: bytes, path: bytes = b"/v1/embeddings", close: bool = False) -> bytes:
    """A POST of JSON."""
    lines = [b"POST " + path + b" HTTP/1.1", b"host: gateway", b"content-type: application/json", *headers]
    lines += [b"content-length: %d" % len(body)] + ([b"connection: close"] if close else [])
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def headers_of(said: bytes) -> dict[bytes, bytes]:
    """The headers of an answer, the last of each name."""
    lines = said.split(b"\r\n\r\n", 1)[0].split(b"\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
