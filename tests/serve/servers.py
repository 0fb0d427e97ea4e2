"""Small servers for the tests of the pool and the controller: stages that take time, and a process of its own."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from negawatt.core.reading import Source
from negawatt.core.serving import Cost
from negawatt.serve.exchange import Answer, Exchange
from negawatt.serve.upstream import UnreachableError

URLS = tuple(f"http://{name}" for name in "abcdef")
_NUMBERS = itertools.count()


def request(path: str = "/embed", body: bytes = b"{}") -> Exchange:
    """A POST of a client's that arrives now."""
    return Exchange(
        id=f"{next(_NUMBERS):032x}",
        method="POST",
        target=path.encode(),
        headers=((b"content-type", b"application/json"),),
        body=body,
        received_s=time.monotonic(),
    )


class Worker:
    """A server that works on `at_once` requests at a time, each for `time_s`; its answer is its name.

    It counts what it sees, can be `down` (no connection), and answers GETs (health) at once, with `health`.
    """

    def __init__(self, name: str = "a", *, time_s: float = 0.01, at_once: int = 1000) -> None:
        self.url = f"http://{name}"
        self.name = name
        self.time_s = time_s
        self.down = False
        self.health = 200
        self.pieces = 0
        self.seen = self.busy = self.most_busy = self.probed = 0
        self._slots = asyncio.Semaphore(at_once)

    async def __call__(self, exchange: Exchange) -> Answer:
        if self.down:
            raise UnreachableError(502, f"{self.url}: refused", "the request did not reach it", "start it")
        if exchange.method == "GET":
            self.probed += 1
            return Answer(status=self.health, headers=(), body=b"")
        self.seen += 1
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            async with self._slots:
                await asyncio.sleep(self.time_s)
        finally:
            self.busy -= 1
        return Answer(status=200, headers=(), body=self._streamed() if self.pieces else self.name.encode())

    async def _streamed(self) -> AsyncIterator[bytes]:
        for number in range(self.pieces):
            await asyncio.sleep(self.time_s)
            yield b"%d" % number


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> float:
    """How long it takes until a condition holds [s]. Fails if that is longer."""
    begin_s = time.monotonic()
    while not condition():
        assert time.monotonic() - begin_s < within_s, f"not within {within_s} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - begin_s


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on an event loop, which must end without any task left."""

    async def alone() -> None:
        await test()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks that were left: {left}"

    asyncio.run(alone())


class Payer:
    """Accounts that write down who was begun and ended."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[tuple[str, int]] = []

    def begin(self, exchange: Exchange) -> None:
        self.begun.append(exchange.id)

    def so_far(self, exchange: Exchange) -> Cost:
        return Cost(energy_j=1.0, energy_sd_j=0.1, source=Source.COUNTER)

    def end(self, exchange: Exchange, status: int) -> None:
        self.ended.append((exchange.id, status))


_SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"fine"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()
    def log_message(self, *told):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def server_process() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A small HTTP server in a process group of its own, and its URL."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()
