"""The last stage: bytes pass untouched, connections are kept, and servers that misbehave become errors."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from sockets import END, STREAM, Counted, answer, chunk, gateway, headers_of, length_of, origin, post, raw, says

from negawatt.core.errors import UsageError
from negawatt.serve.exchange import Exchange, UpstreamError
from negawatt.serve.limits import Limits
from negawatt.serve.upstream import UnreachableError, Upstream


def exchange(method="POST", target=b"/v1/embeddings", body=b"{}", headers=()):
    """A request."""
    return Exchange(id="0" * 32, method=method, target=target, headers=headers, body=body, received_s=time.monotonic())


def ask(script, *exchanges, limits=None, path=""):
    """Answers of a server to some requests, one after another, their bodies made whole."""

    async def main():
        async with origin(script) as url:
            upstream = Upstream(url + path, limits)
            answers = []
            for one in exchanges or (exchange(),):
                said = await upstream(one)
                body = said.body if isinstance(said.body, bytes) else b"".join([piece async for piece in said.body])
                answers.append((said.status, dict(said.headers), body))
            await upstream.close()
            return answers

    return asyncio.run(main())


class Echo:
    """A server that answers `{}` and keeps what it was sent."""

    def __init__(self, *answers):
        self.heads, self.bodies, self.connections = [], [], set()
        self.answers = answers or (answer(),)

    async def __call__(self, head, reader, writer):
        self.heads.append(head)
        self.bodies.append(await reader.readexactly(length_of(head)))
        self.connections.add(writer)
        writer.write(self.answers[min(len(self.heads), len(self.answers)) - 1])


def test_a_request_goes_out_as_it_came():
    """Method, target, headers in their order, bytes that are no UTF-8 and the body; host names the server."""
    echo = Echo()
    headers = ((b"host", b"gateway"), (b"authorization", b"Bearer \xe9"), (b"x-b", b"2"), (b"x-a", b"1"))
    one = exchange(target=b"/v1/x?a=%2F//../b&c", body=b"\x00\xff", headers=headers)
    ask(echo, one, path="/base/")
    host = headers_of(echo.heads[0])[b"host"]
    assert echo.heads == [
        b"POST /base/v1/x?a=%2F//../b&c HTTP/1.1\r\nhost: " + host + b"\r\nauthorization: Bearer \xe9\r\n"
        b"x-b: 2\r\nx-a: 1\r\ncontent-length: 2\r\n\r\n"
    ]
    assert host.startswith(b"127.0.0.1:")
    assert echo.bodies == [b"\x00\xff"]
    assert one.shared == 1


def test_connections_are_kept():
    """Requests after one another share a connection; a server that closes after its answer gets a new one."""
    echo = Echo()
    ask(echo, exchange(), exchange(), exchange())
    assert len(echo.connections) == 1
    echo = Echo(answer(b"{}", b"connection: close"))
    ask(echo, exchange(), exchange())
    assert len(echo.connections) == 2


def test_a_connection_is_not_used_beyond_the_time_that_the_server_names():
    """Keep-Alive: timeout=1 leaves no time to use it safely."""
    echo = Echo(answer(b"{}", b"keep-alive: timeout=1"))
    ask(echo, exchange(), exchange())
    assert len(echo.connections) == 2


def test_hop_by_hop_headers_of_the_answer_end_here():
    """They, what Connection names, and headers that pass for the gateway's own are left out; the rest is untouched."""
    own = (b"Connection: keep-alive, x-hop", b"X-Hop: 1", b"Negawatt-Energy-Joules: 0", b"Content-Encoding: gzip")
    ((status, headers, body),) = ask(says(answer(b"\x1f\x8b-not-unpacked", *own, b"Set-Cookie: a=b")))
    assert (status, body) == (200, b"\x1f\x8b-not-unpacked")
    assert set(headers) == {b"content-type", b"content-length", b"content-encoding", b"set-cookie"}


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ([b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n", chunk(b"{"),
          chunk(b"}"), b"0\r\nx-trailer: 1\r\n\r\n"], b"{}"),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n", answer(b"{}")], b"{}"),
        ([answer(b"x" * 200_000)[:100_000], b"x" * 100_000 + b"x" * (len(answer(b"x" * 200_000)) - 200_000)],
         b"x" * 200_000),
        ([STREAM, chunk(b"a" * 10), chunk(b"b" * 10) + END], b"a" * 10 + b"b" * 10),
        ([bytes([byte]) for byte in answer(b"[1]")], b"[1]"),
    ],
)  # fmt: skip
def test_bodies_in_any_shape_arrive(parts, body):
    """Chunked with trailers, behind interim answers, large, streamed, or byte by byte; the connection serves on."""
    answers = ask(says(*parts), exchange(), exchange())
    assert [(status, got) for status, _, got in answers] == [(200, body)] * 2


def test_a_body_that_ends_with_the_connection_arrives():
    """HTTP/1.0 style: no length, no chunks."""
    said = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{}"
    ((status, headers, body),) = ask(says(said, then_close=True))
    assert (status, headers[b"content-length"], body) == (200, b"2", b"{}")


@pytest.mark.parametrize(
    ("method", "said", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\netag: a\r\n\r\n", 304),
        ("POST", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    ],
)
def test_answers_without_a_body_end_with_their_head(method, said, status):
    """HEAD, 204 and 304 are not waited for, and pass the gateway whole."""
    one = exchange(method=method, body=b"")
    assert [(got, body) for got, _, body in ask(says(said), one, one)] == [(status, b"")] * 2

    async def main():
        accounts = Counted()
        async with origin(says(said)) as url, gateway(Upstream(url), accounts) as port:
            request = method.encode() + b" / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
            return await raw(port, request), accounts.last

    through, last = asyncio.run(main())
    assert through.startswith(b"HTTP/1.1 %d " % status)
    assert (b"content-length: 100" in through) == (method == "HEAD")
    assert last == ("answered", status)


def test_errors_and_redirects_of_upstream_are_answers():
    """4xx, 5xx and 3xx pass through and are not acted upon."""
    for status in (b"302 Found", b"404 Not Found", b"429 Too Many Requests", b"500 Oh"):
        ((got, headers, _),) = ask(says(answer(b"{}", b"location: /elsewhere", status=status)))
        assert (got, headers[b"location"]) == (int(status[:3]), b"/elsewhere")


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (b"garbage\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3x\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(9_000)) + b"\r\n", "more than 65536"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 0\r\n\r\n", "not HTTP|malformed"),
        (b"HTTP/1.1 200 OK\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n", "not HTTP|malformed"),
        (b"HTTP/1.1 777 Odd\r\ncontent-length: 0\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n",
         "closed the connection"),
        (b"", "closed the connection"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_502(said, match):
    """Garbage, heads too large, switched protocols, line breaks in headers, answers cut off."""
    with pytest.raises(UpstreamError, match=match) as caught:
        ask(says(said, then_close=True))
    assert caught.value.status == 502


def test_folded_headers_are_refused():
    """A header that is continued on the next line, which RFC 9112 (5.2) lets a gateway refuse."""
    said = b"HTTP/1.1 200 OK\r\nx: a\r\n set-cookie: b\r\ncontent-length: 2\r\n\r\n{}"
    with pytest.raises(UpstreamError, match="not HTTP"):
        ask(says(said))


def test_what_follows_an_answer_is_not_taken_for_the_next():
    """Bytes behind an answer close the connection: the next request gets its own answer on a new one."""
    echo = Echo(answer(b"[1]") + answer(b"[666]"), answer(b"[2]"))
    bodies = [body for _, _, body in ask(echo, exchange(), exchange())]
    assert len(echo.connections) == 2
    assert bodies == [b"[1]", b"[2]"]


def test_a_connection_whose_request_has_not_gone_out_is_not_kept():
    """A server that answers before it has read the body: the next request does not go out behind the rest of it."""
    heads = []

    async def early(head, reader, writer):
        heads.append(writer)
        writer.write(answer(b"[1]", status=b"413 Too Large" if len(heads) == 1 else b"200 OK"))
        await writer.drain()
        if len(heads) == 1:
            await asyncio.sleep(0.2)

    large = exchange(body=b"x" * (12 << 20))
    assert [status for status, _, _ in ask(early, large, exchange())] == [413, 200]
    assert len(set(heads)) == 2


def test_an_answer_that_is_over_takes_no_piece_of_the_next():
    """Its pieces have ended for good, although its connection serves another call by now."""

    async def main():
        async with origin(says(STREAM, chunk(b"a"), END)) as url:
            upstream = Upstream(url)
            first = (await upstream(exchange())).body
            assert [piece async for piece in first] == [b"a"]
            second = (await upstream(exchange())).body
            assert second._connection is first._connection
            assert [piece async for piece in first] == []
            assert [piece async for piece in second] == [b"a"]
            await upstream.close()

    asyncio.run(main())


def test_slow_servers_are_504():
    """No first byte, and no next byte within the limit."""
    for begin in (b"", b"HTTP/1.1 200 OK\r\n", STREAM + chunk(b"data: 1\n\n")):

        async def script(head, reader, writer, begin=begin):
            writer.write(begin)
            await asyncio.sleep(10)

        begin_s = time.monotonic()
        with pytest.raises(UpstreamError, match=r"nothing came for 0\.2 s") as caught:
            ask(script, limits=Limits(answer_s=0.2))
        assert caught.value.status == 504
        assert time.monotonic() - begin_s < 2


def test_a_slow_stream_is_not_given_up():
    """The limit is between bytes, not for all of them."""

    async def script(head, reader, writer):
        writer.write(STREAM)
        for _ in range(5):
            await asyncio.sleep(0.1)
            writer.write(chunk(b"x"))
        writer.write(END)

    assert ask(script, limits=Limits(answer_s=0.25))[0][2] == b"xxxxx"


def test_an_upstream_that_is_down_is_unreachable():
    """Nothing listens: 502 of the kind that lets another server be asked."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        upstream = Upstream(f"http://127.0.0.1:{sock.getsockname()[1]}")
    with pytest.raises(UnreachableError, match=r"Connection refused|Connect call failed") as caught:
        asyncio.run(upstream(exchange()))
    assert caught.value.status == 502


def test_an_upstream_that_does_not_take_connections_is_504():
    """A full backlog: the handshake never ends."""

    async def main():
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen(0)
            address = sock.getsockname()
            full = [socket.socket() for _ in range(4)]
            for one in full:
                one.setblocking(False)
                one.connect_ex(address)
            try:
                await Upstream(f"http://127.0.0.1:{address[1]}", Limits(connect_s=0.2))(exchange())
            finally:
                for one in full:
                    one.close()

    with pytest.raises(UnreachableError, match=r"within 0\.2 s") as caught:
        asyncio.run(main())
    assert caught.value.status == 504


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("PUT", 2), ("POST", 1), ("PATCH", 1)])
def test_only_idempotent_requests_are_sent_again(method, times):
    """On a used connection that closes before a byte of the answer: GET goes again, POST does not."""
    heads = []

    async def script(head, reader, writer):
        heads.append(head)
        if len(heads) == 2:
            writer.close()
        else:
            writer.write(answer())

    requests = exchange(method="GET", body=b""), exchange(method=method, body=b"")
    if times == 2:
        assert [status for status, _, _ in ask(script, *requests)] == [200, 200]
    else:
        with pytest.raises(UpstreamError, match="closed the connection"):
            ask(script, *requests)
    assert len(heads) == 1 + times


def test_a_first_connection_that_closes_is_not_tried_again():
    """A server that closes on every request is asked once, whatever the method."""
    heads = []

    async def script(head, reader, writer):
        heads.append(head)
        writer.close()

    with pytest.raises(UpstreamError, match="closed the connection"):
        ask(script, exchange(method="GET", body=b""))
    assert len(heads) == 1


@pytest.mark.parametrize(
    "odd",
    [
        exchange(headers=((b"x", b"1\r\nx-evil: 1"),)),
        exchange(headers=((b"x", b"1\nx-evil: 1"),)),
        exchange(target=b"/ HTTP/1.1\r\nx-evil: 1\r\n\r\n"),
        exchange(target=b"/a b"),
        exchange(headers=((b"x", b"\0"),)),
    ],
)
def test_requests_cannot_be_injected(odd):
    """Whatever a stage puts into an exchange stays one request."""
    echo = Echo()
    with pytest.raises(UpstreamError, match="line break") as caught:
        ask(echo, odd)
    assert caught.value.status == 400
    assert echo.heads == []


def test_cancelling_closes_the_connection():
    """A call that nobody waits for any more ends at once, with and without a begun answer; so does aclose."""
    closed = []

    async def script(head, reader, writer):
        if b"stream" in head:
            writer.write(STREAM + chunk(b"1"))
        assert await reader.read() == b""
        closed.append(head)

    async def main():
        async with origin(script) as url:
            upstream = Upstream(url)
            task = asyncio.create_task(upstream(exchange(body=b"")))
            await asyncio.sleep(0.05)
            task.cancel()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
            said = await upstream(exchange(target=b"/stream", body=b""))
            await said.body.aclose()
            async with asyncio.timeout(2):
                while len(closed) < 2:
                    await asyncio.sleep(0.005)

    asyncio.run(main())


def test_memory_is_bounded_when_the_client_is_slow():
    """Reading from upstream pauses: a stream of 64 MB that nobody takes is not taken in."""
    written = []

    async def script(head, reader, writer):
        writer.write(STREAM)
        for _ in range(1024):
            writer.write(chunk(b"x" * 65_536))
            await writer.drain()
            written.append(1)

    async def main():
        async with origin(script) as url:
            said = await Upstream(url)(exchange(body=b""))
            await asyncio.sleep(0.3)
            stalled = len(written)
            await said.body.__anext__()
            await said.body.aclose()
            return stalled

    assert asyncio.run(main()) < 512


def test_credentials_pass_and_are_logged_nowhere(caplog):
    """Authorization, api-key and cookies reach upstream byte for byte; no log record and no account holds them."""
    secrets = (b"authorization: Bearer s3cret-1", b"api-key: s3cret-2", b"cookie: s3cret-3")
    echo = Echo(answer(b"{}"), b"garbage\r\n\r\n")
    accounts = Counted()

    async def main():
        async with origin(echo) as url, gateway(Upstream(url), accounts) as port:
            for _ in range(2):
                await raw(port, post(b"{}", *secrets, path=b"/v1/embeddings?key=s3cret-4"))

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert all(secret in echo.heads[0] for secret in secrets)
    assert [status for _, status in accounts.ended] == [200, 502]
    assert "s3cret" not in caplog.text
    assert all("s3cret" not in exchange_.path + exchange_.model for exchange_, _ in accounts.ended)


def certified(folder):
    """A server's context of TLS and the file of its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    key, cert = folder / "key.pem", folder / "cert.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    named = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*made.split(), *named], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context, cert


def test_tls_is_verified(tmp_path):
    """Over https the server's certificate has to be one that this host trusts; then all is as without."""
    context, cert = certified(tmp_path)

    async def main(trust):
        async with origin(says(answer(b"[1]")), context) as url:
            upstream = Upstream(url.replace("http://127.0.0.1", "https://localhost"))
            if trust:
                upstream._context = ssl.create_default_context(cafile=cert)
            got = [(await upstream(exchange())).body for _ in range(2)]
            await upstream.close()
            return got

    assert asyncio.run(main(trust=True)) == [b"[1]", b"[1]"]
    with pytest.raises(UnreachableError, match=r"(?i)certificate"):
        asyncio.run(main(trust=False))


@pytest.mark.parametrize("whole", [True, False])
def test_a_body_that_ends_with_the_connection_may_not_be_cut_over_tls(tmp_path, whole):
    """Without a length, only TLS's own farewell tells the end of a body from a cut (RFC 9112, 9.8)."""
    uvloop = pytest.importorskip("uvloop")  # what the gateway runs on
    context, cert = certified(tmp_path)

    def serve(listener):
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(9999)
            secured.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[1]")
            if whole:
                secured.unwrap()

    async def main(port):
        upstream = Upstream(f"https://localhost:{port}")
        upstream._context = ssl.create_default_context(cafile=cert)
        return (await upstream(exchange())).body

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            if whole:
                assert runner.run(main(listener.getsockname()[1])) == b"[1]"
            else:
                with pytest.raises(UpstreamError, match="closed the connection"):
                    runner.run(main(listener.getsockname()[1]))
        finally:
            thread.join(5)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("127.0.0.1:8000", "it is not http://HOST"),
        ("ftp://127.0.0.1", "it is not http://HOST"),
        ("http://", "it is not http://HOST"),
        ("http://127.0.0.1:99999", "Port out of range"),
        ("http://a:0", "it is not http://HOST"),
        ("http://user:pw@127.0.0.1", "a name or a password"),
        ("http://127.0.0.1/?a=1", "no query"),
        ("http://127.0.0.1/a b", "it is not http://HOST"),
        ("http://[::1", "Invalid IPv6"),
    ],
)
def test_malformed_urls_are_usage_errors(url, match):
    """A URL that cannot be one says what to write, and never shows a password."""
    with pytest.raises(UsageError, match=match) as caught:
        Upstream(url)
    assert "pw" not in str(caught.value)


def test_reachable_tells_whether_something_listens():
    """For the warning at the start."""

    async def main():
        async with origin(says(answer())) as url:
            there = await Upstream(url).reachable()
        return there, await Upstream(url).reachable()

    assert asyncio.run(main()) == (True, False)
