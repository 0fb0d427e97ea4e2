"""Upstream: the last stage, one inference server behind keep-alive connections."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import final
from urllib.parse import urlsplit

from negawatt.core.errors import UsageError
from negawatt.serve.connection import BrokenError, Connection, Reply
from negawatt.serve.exchange import Answer, Exchange, UpstreamError
from negawatt.serve.headers import clean, end_to_end, first
from negawatt.serve.limits import Limits

FREE_FOR_S = 4.0
"""How long a connection is kept without use, unless the server names a time [s].

uvicorn, on which most inference servers run, closes after 5 s by default (its settings page, `--timeout-keep-alive`).
A request that crosses with the close cannot be repeated safely if it is a POST, so this end closes first.
"""
FREE_AT_MOST = 256
"""Connections kept without use."""

_SAFE = ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
"""Idempotent methods (RFC 9110, 9.2.2)."""
_OURS = (b"host", b"content-length", b"expect")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class UnreachableError(UpstreamError):
    """No connection could be made: upstream has not seen the request, so another server may be asked."""


@final
class Upstream:
    """One server.

    The request goes out with the client's method, target, headers and body, byte for byte; only the headers of one hop
    are left out, and `host` names the server. Redirects are answers like others; nothing is decompressed; there are no
    cookies of the gateway's own, and no proxy is taken from the environment. Credentials are passed on and never
    logged.

    A request is sent a second time only if the first went out on a connection that had been used before and was closed
    before a byte of an answer had come, and only if its method is idempotent (RFC 9110, 9.2.2): inference is mostly
    POST, and is not asked for twice.

    Args:
        url: base URL, http or https; a path in it goes before each target.
        limits: times and sizes.

    Raises:
        UsageError: on a URL that cannot be one.
    """

    def __init__(self, url: str, limits: Limits | None = None) -> None:
        self.url = url
        self._limits = limits or Limits()
        self._host, self._port, self._tls, self._authority, self._base = _parse(url)
        self._free: deque[Connection] = deque()
        self._context: ssl.SSLContext | None = None  # it takes milliseconds to make
        self._closed = False

    async def __call__(self, exchange: Exchange) -> Answer:
        """The server's answer.

        Raises:
            UnreachableError: 502 if no connection could be made, 504 if that took too long.
            UpstreamError: 502 if what came is no answer, 504 if nothing came.
        """
        head = self._head(exchange)
        exchange.shared = exchange.shared or 1
        head_only = exchange.method == "HEAD"
        for attempt in (1, 2):
            connection = self._kept() or await self._connect()
            used = connection.asked > 0
            try:
                reply = await connection.ask(head, exchange.body, head_only=head_only)
            except BrokenError as error:
                if attempt == 1 and used and error.untouched and exchange.method in _SAFE:
                    continue
                raise self._broken(error) from error
            return self._answer(reply, connection, head_only=head_only)
        raise AssertionError("the second attempt returns or raises")

    async def reachable(self) -> bool:
        """Whether a connection can be made now."""
        try:
            connection = await self._connect()
        except UnreachableError:
            return False
        connection.close()
        return True

    async def close(self) -> None:
        """Close the connections that are not in use; those in use close when their answers end."""
        self._closed = True
        while self._free:
            self._free.pop().close()

    def _kept(self) -> Connection | None:
        """The connection used last, if it may still be open at the other end; older ones are closed."""
        now_s = asyncio.get_running_loop().time()
        while self._free:
            connection = self._free[-1]
            kept_s = FREE_FOR_S if connection.free_for_s is None else min(FREE_FOR_S, connection.free_for_s - 1)
            if connection.free and now_s - connection.free_since_s < kept_s:
                self._free.pop()
                return connection
            self._free.pop()
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self._tls and self._context is None:
            self._context = ssl.create_default_context()
        try:
            async with asyncio.timeout(self._limits.connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._limits, self._done), self._host, self._port, ssl=self._context
                )
        except TimeoutError as error:
            raise self._unreachable(504, f"no connection within {self._limits.connect_s:g} s") from error
        except OSError as error:  # the certificate's errors are among these
            raise self._unreachable(502, error.strerror or type(error).__name__) from error
        return connection

    def _done(self, connection: Connection) -> None:
        """A connection has become free, or is gone."""
        if connection.free and not self._closed and len(self._free) < FREE_AT_MOST:
            self._free.append(connection)
        elif connection.free:
            connection.close()
        elif connection in self._free:
            self._free.remove(connection)

    def _head(self, exchange: Exchange) -> bytes:
        lines = [
            b"%b %b%b HTTP/1.1" % (exchange.method.encode("ascii"), self._base, exchange.target),
            b"host: " + self._authority,
        ]
        lines += [name + b": " + value for name, value in exchange.headers if name not in _OURS]
        if exchange.body or exchange.method in ("POST", "PUT", "PATCH"):
            lines.append(b"content-length: %d" % len(exchange.body))
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        # One line per header, whatever is in them: nothing of a client's can become a header or a request of its own.
        if not head.count(b"\n") == head.count(b"\r") == len(lines) + 1 or b"\0" in head or b" " in exchange.target:
            raise UpstreamError(
                400,
                "a request with a line break, a NUL or a blank where none may be",
                "upstream would read it as another request",
                "send a valid HTTP request",
            )
        return head

    def _answer(self, reply: Reply, connection: Connection, *, head_only: bool) -> Answer:
        headers = tuple((name, value) for name, value in end_to_end(reply.headers) if not name.startswith(b"negawatt-"))
        if reply.status > 599 or not clean(headers):
            connection.close()
            raise self._broken(BrokenError("its head is malformed"))
        if reply.status in (204, 304):
            headers = tuple(header for header in headers if header[0] != b"content-length")
        elif reply.body is not None and not head_only and first(headers, b"content-length") is None:
            headers = (*headers, (b"content-length", b"%d" % len(reply.body)))
        return Answer(
            status=reply.status,
            headers=headers,
            body=_Pieces(self, connection) if reply.body is None else reply.body,
        )

    def _unreachable(self, status: int, reason: str) -> UnreachableError:
        return UnreachableError(
            status,
            f"{self.url}: {reason}",
            "the request did not reach it",
            "start the inference server, or correct --upstream",
        )

    def _broken(self, error: BrokenError) -> UpstreamError:
        return UpstreamError(
            504 if error.slow else 502,
            f"{self.url} gave no whole answer: {error}",
            "what came of it cannot be used",
            "look at the inference server's log; `--timeout` says how long the gateway waits"
            if error.slow
            else "look at the inference server's log",
        )


@final
class _Pieces(AsyncIterator[bytes]):
    """The body of an answer, as it comes."""

    def __init__(self, upstream: Upstream, connection: Connection) -> None:
        self._upstream = upstream
        self._connection = connection
        self._call = connection.asked

    async def __anext__(self) -> bytes:
        if self._connection.asked != self._call:
            raise StopAsyncIteration
        try:
            return await self._connection.__anext__()
        except BrokenError as error:
            raise self._upstream._broken(error) from error  # noqa: SLF001 -- of one module

    async def aclose(self) -> None:
        """End the call."""
        if self._connection.asked == self._call:  # else its connection serves another by now
            await self._connection.aclose()


def _parse(url: str) -> tuple[str, int, bool, bytes, bytes]:
    """Host, port, whether TLS, authority and base path of a URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode("ascii") if parts.hostname else ""
    except ValueError as error:
        raise _malformed(url, str(error)) from None
    odd = any(not "!" <= character <= "~" for character in parts.path)
    if parts.scheme not in _DEFAULT_PORTS or not host or port == 0 or odd:
        raise _malformed(url, "it is not http://HOST[:PORT] or https://HOST[:PORT]")
    if parts.username is not None or parts.password is not None:
        raise _malformed("the URL", "it holds a name or a password; clients send their credentials in headers")
    if parts.query or parts.fragment:
        raise _malformed(url, "a base URL has no query and no fragment")
    shown = f"[{host}]" if ":" in host else host
    authority = shown if port is None else f"{shown}:{port}"
    base = parts.path.rstrip("/").encode("ascii")
    return host, port or _DEFAULT_PORTS[parts.scheme], parts.scheme == "https", authority.encode("ascii"), base


def _malformed(url: str, reason: str) -> UsageError:
    return UsageError(
        f"upstream {url!r}: {reason}", "no request could be passed on", "write e.g. --upstream http://127.0.0.1:8000"
    )
