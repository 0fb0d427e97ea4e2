"""Server: builds the chain of stages and serves it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Self, final

import uvicorn

from negawatt.core.errors import UsageError
from negawatt.serve.app import Gateway
from negawatt.serve.limits import Limits
from negawatt.serve.protocol import bounded

STOP_S = 30.0
"""How long calls may go on after the gateway was told to stop [s]."""
BACKLOG = 2048
"""Connections that may wait to be accepted."""
KEPT_S = 75
"""How long a client's connection is kept without a request, as nginx does by default [s]."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0: on a free one. Raises UsageError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise UsageError(
            f"--listen {host}:{port}: {error.strerror or error}",
            "no client could reach the gateway",
            "name an address of this host, e.g. --listen 127.0.0.1:8080",
        ) from None
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(
            f"--listen {host}:{port}: {error.strerror}",
            "no client could reach the gateway",
            "name a free port, or 0 to have one picked: --listen 127.0.0.1:0",
        ) from None
    sock.setblocking(False)  # noqa: FBT003 -- the standard library's
    return sock


@final
class _Server(uvicorn.Server):
    """uvicorn's; `Signals` handles them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class _NotCancelled(logging.Filter):
    """Drops what uvicorn logs of requests that were cancelled because the gateway stops: they are accounted."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def uvicorn_of(gateway: Gateway, limits: Limits, stop_s: float = STOP_S) -> uvicorn.Server:
    """A server of uvicorn's for the gateway; it leaves signals alone.

    Args:
        gateway: the application.
        limits: how large and how slow the head of a request may be.
        stop_s: how long calls may go on when it stops; then they are cancelled [s].
    """
    noise = logging.getLogger("uvicorn.error")
    noise.setLevel(logging.ERROR)
    if not noise.filters:
        noise.addFilter(_NotCancelled())
    config = uvicorn.Config(
        gateway,
        http=bounded(limits),
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEPT_S,
        timeout_graceful_shutdown=max(1, round(stop_s)),
    )
    return _Server(config)


@final
class Signals:
    """What SIGTERM and SIGINT do while it is entered: they end serving, and never what is put back behind it.

    The first lets calls in flight end, the second cancels them. From then on, and when serving is over, a signal is
    only answered with a line: replicas that stayed asleep, or a power limit that stayed, would outlive the gateway.

    Args:
        say: told that line.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told = 0
        self._server: uvicorn.Server | None = None

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signal)
        return self

    def __exit__(self, *error: object) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def ending(self, server: uvicorn.Server) -> Iterator[None]:
        """They end this server; at once, if one has come already."""
        self._server, server.should_exit = server, self._told > 0
        try:
            yield
        finally:
            self._server, self._told = None, max(self._told, 1)

    def _signal(self) -> None:
        self._told += 1
        if self._server is not None and self._told <= 2:
            self._server.should_exit, self._server.force_exit = True, self._told > 1
            if self._told == 1 and self._server.server_state.tasks:
                self._say("waiting for the requests under way; a second signal cuts them off")
        elif self._told > 1:
            self._say("putting back what was changed; this is not cut short")


async def serve(
    server: uvicorn.Server, sock: socket.socket, ready: Callable[[], Awaitable[None]], signals: Signals
) -> None:
    """Serve until a signal. When it returns, every request has ended.

    Args:
        server: as `uvicorn_of` made it.
        sock: that listens.
        ready: called when requests are taken.
        signals: that end it.
    """
    announcing = asyncio.create_task(_announce(server, ready))
    try:
        with signals.ending(server):
            await server.serve(sockets=[sock])
        if tasks := list(server.server_state.tasks):  # of a second signal, or just cancelled
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=5)
    finally:
        announcing.cancel()


async def _announce(server: uvicorn.Server, ready: Callable[[], Awaitable[None]]) -> None:
    while not server.started:
        await asyncio.sleep(0.005)
    await ready()
