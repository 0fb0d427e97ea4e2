"""The gateway's ASGI side: headers, accounts that end once, refusals, streams, clients that go away."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from sockets import END, STREAM, Counted, answer, chunk, gateway, head_of, headers_of, origin, post, raw, says

from negawatt.core.serving import Outcome
from negawatt.serve.app import Gateway
from negawatt.serve.exchange import Answer, UpstreamError
from negawatt.serve.limits import Limits
from negawatt.serve.upstream import Upstream

JSON = (b"content-type", b"application/json")


def giving(body=b"{}", *headers, status=200):
    """A stage that always gives the same."""

    async def stage(exchange):
        length = (b"content-length", b"%d" % len(body))
        return Answer(status=status, headers=(JSON, length, *headers), body=body)

    return stage


def asked(first, request, limits=None, **options):
    """What a gateway in front of a stage says, and its accounts."""
    accounts = options.pop("accounts", None) or Counted()

    async def main():
        async with gateway(first, accounts, limits, **options) as port:
            return await raw(port, request)

    said = asyncio.run(main())
    assert not accounts.open
    return said, accounts


def test_a_whole_answer_carries_its_cost():
    """Headers tell id, outcome, joules, their interval and source, grams and tokens; the body is untouched."""
    body = b'{"usage": {"prompt_tokens": 12, "completion_tokens": 3}}'
    said, accounts = asked(giving(body), post(), accounts=Counted(carbon_g=0.25))
    headers = headers_of(said)
    assert said.endswith(body)
    assert headers[b"negawatt-request-id"].decode() == accounts.ended[0][0].id
    assert headers[b"negawatt-energy-joules"] == b"1.5"
    assert headers[b"negawatt-energy-interval-joules"] == b"0.52 2.48"
    assert headers[b"negawatt-energy-source"] == b"sampled"
    assert headers[b"negawatt-carbon-grams"] == b"0.25"
    assert (headers[b"negawatt-tokens-in"], headers[b"negawatt-tokens-out"]) == (b"12", b"3")
    assert headers[b"negawatt-outcome"] == b"answered"
    assert accounts.last == ("answered", 200)


def test_what_is_not_known_has_no_header():
    """Without a site there are no grams, and without usage no tokens."""
    said, _ = asked(giving(b"{}"), post())
    assert not {b"negawatt-carbon-grams", b"negawatt-tokens-in", b"negawatt-tokens-out"} & set(headers_of(said))


def test_an_exchange_is_the_request_without_what_belongs_to_one_hop():
    """Target, body and end-to-end headers arrive; hop-by-hop ones and those that Connection names do not."""
    seen = []

    async def stage(exchange):
        seen.append(exchange)
        return await giving()(exchange)

    body = b'{"model": "small", "stream": true}'
    own = (b"Connection: keep-alive, X-Hop", b"X-Hop: 1", b"TE: trailers", b"X-Forwarded-For: 1.2.3.4", b"X-Own: \xe9")
    asked(stage, post(body, *own, path=b"/v1/chat/completions?a=%20b&c"))
    (exchange,) = seen
    assert (exchange.method, exchange.target, exchange.body) == ("POST", b"/v1/chat/completions?a=%20b&c", body)
    assert (exchange.model, exchange.stream, len(exchange.id)) == ("small", True, 32)
    names = [name for name, _ in exchange.headers]
    assert names == [b"host", b"content-type", b"x-forwarded-for", b"x-own", b"content-length"]
    assert exchange.header(b"x-own") == b"\xe9"


@pytest.mark.parametrize(
    ("request_", "limits", "status", "code"),
    [
        (post(b"x" * 100), Limits(body_bytes=99), 413, "body_too_large"),
        (post(b"x" * 100), Limits(held_bytes=99), 503, "out_of_memory"),
        (post(), Limits(requests=0), 503, "too_many_requests"),
        (b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", Limits(), 400, "bad_target"),
        (post(b"x" * 9)[:-1], Limits(body_s=0.1), 408, "body_timeout"),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"x" * 100) + END,
            Limits(body_bytes=99), 413, "body_too_large",
        ),
    ],
)  # fmt: skip
def test_too_much_or_too_slow_is_refused(request_, limits, status, code):
    """Bodies too large, too many bytes or requests at once and slow bodies get their status, and are accounted."""
    said, accounts = asked(giving(), request_, limits)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]["code"] == code
    assert (b"retry-after" in headers_of(said)) == (status == 503)
    assert accounts.last == ("refused", status)


def test_held_bytes_come_back():
    """What a request held counts no more after it: many in a row pass a bound that two at once would not."""

    async def main():
        accounts = Counted()
        async with gateway(giving(), accounts, Limits(held_bytes=150)) as port:
            for _ in range(5):
                assert (await raw(port, post(b"x" * 100))).startswith(b"HTTP/1.1 200 ")

    asyncio.run(main())


@pytest.mark.parametrize("head", [b"a: " + b"x" * 70_000, b"\r\n".join(b"h%d: x" % i for i in range(9_000))])
def test_a_huge_head_is_refused(head):
    """A head larger than the bound gets 431, however it is made up."""
    said, accounts = asked(giving(), b"GET / HTTP/1.1\r\nhost: a\r\n" + head + b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 431 ")
    assert not accounts.ended


def test_a_head_that_never_comes_is_given_up():
    """A connection that says nothing, or part of a head, is closed after a while."""

    async def main():
        async with gateway(giving(), Counted(), Limits(head_s=0.1)) as port:
            assert await raw(port, b"") == b""
            assert await raw(port, b"GET / HTTP/1.1\r\nhos") == b""

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_",
    [
        b"garbage\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\nx y: 1\r\n\r\n",
    ],
)
def test_malformed_requests_get_400(request_):
    """What is not HTTP, or could be read in two ways, goes nowhere."""
    said, accounts = asked(giving(), request_)
    assert said.startswith(b"HTTP/1.1 400 ")
    assert not accounts.ended


def test_failures_upstream_become_errors_that_clients_understand():
    """An UpstreamError gives its status and an OpenAI-style body, and the request has failed."""

    async def stage(exchange):
        raise UpstreamError(504, "it took\r\nx-evil: 1 too long", "why", "fix")

    said, accounts = asked(stage, post())
    assert said.startswith(b"HTTP/1.1 504 ")
    error = json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]
    assert error == {
        "message": "it took\r\nx-evil: 1 too long; fix", "type": "negawatt_gateway", "code": "upstream_error",
    }  # fmt: skip
    assert b"x-evil" not in headers_of(said)
    assert accounts.last == ("failed", 504)


def test_a_stage_that_breaks_is_logged_and_answered_with_500(caplog):
    """A fault of the gateway's own does not end the connection without a word, nor the gateway."""

    async def stage(exchange):
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR):
        said, accounts = asked(stage, post())
    assert said.startswith(b"HTTP/1.1 500 ")
    assert "a stage failed" in caplog.text
    assert accounts.last == ("failed", 500)


@pytest.mark.parametrize("bad", [b"a\r\nset-cookie: x=1", b"a\nb", b"a\rb", b"a\0b"])
def test_headers_cannot_be_injected(bad):
    """A line break in a header that a stage gives never reaches the client (upstream's are a 502)."""
    said, accounts = asked(giving(b"{}", (b"x-a", bad)), post())
    assert said == b""
    assert accounts.last[0] == "failed"


def test_a_stream_goes_on_at_once_and_ends_with_its_energy():
    """Pieces arrive as upstream sends them; the head has the id alone; a comment before the end tells the joules."""
    accounts = Counted()
    go_on = asyncio.Event()
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}\n\ndata: [DONE]\n\n'

    async def script(head, reader, writer):
        await reader.readexactly(2)
        writer.write(STREAM + chunk(b"data: 1\n\n"))
        await go_on.wait()
        writer.write(chunk(usage[:40]) + chunk(usage[40:]) + END)

    async def main():
        async with origin(script) as url, gateway(Upstream(url), accounts) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(path=b"/v1/chat/completions", close=True))
            head = await head_of(reader)
            early = await reader.readuntil(b"data: 1\n\n\r\n")
            go_on.set()
            late = await reader.read()
            writer.close()
            return head, early, late

    head, early, late = asyncio.run(main())
    assert b"negawatt-request-id" in head
    assert b"negawatt-energy" not in head
    assert early == chunk(b"data: 1\n\n")
    comment = b": negawatt energy_j=1.5 low_j=0.52 high_j=2.48 source=sampled\n\n"
    assert late.endswith(chunk(comment) + END)
    assert (accounts.ended[0][0].tokens_in, accounts.ended[0][0].tokens_out) == (5, 7)
    assert accounts.last == ("answered", 200)


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ([STREAM, chunk(b"data: half a line"), END], {}),
        ([STREAM, chunk(b"data: 1\n\n"), END], {"comment": False}),
        ([STREAM.replace(b"event-stream", b"plain"), chunk(b"1\n\n"), END], {}),
    ],
)
def test_a_comment_is_only_where_it_is_one(parts, options):
    """No comment behind half a line, in what is no event stream, or where it is not wanted."""

    async def main():
        async with origin(says(*parts)) as url, gateway(Upstream(url), Counted(), **options) as port:
            return await raw(port, post(close=True))

    assert b"negawatt energy" not in asyncio.run(main())


@pytest.mark.parametrize("body", [STREAM + chunk(b"data: 1\n\n"), answer(b"x" * 100_000)[:-50_000]])
def test_a_stream_that_breaks_off_ends_abnormally(body):
    """If upstream stops in the middle the client sees an error, not a clean end, and the request has failed."""
    accounts = Counted()

    async def main():
        async with origin(says(body, then_close=True)) as url, gateway(Upstream(url), accounts) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post())
            said = b""
            try:
                while piece := await reader.read(1 << 16):
                    said += piece
            except ConnectionResetError:
                pass
            writer.close()
            return said

    said = asyncio.run(main())
    assert not said.endswith(END)
    assert len(said) < 100_000
    assert accounts.last == ("failed", 200)


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_goes_away_ends_the_call_upstream(begun):
    """Before the answer and in the middle of a stream: upstream's connection closes at once, and it is accounted."""
    accounts = Counted()
    closed = asyncio.Event()

    async def script(head, reader, writer):
        await reader.readexactly(2)
        if begun:
            writer.write(STREAM + chunk(b"data: 1\n\n"))
        assert await reader.read() == b""
        closed.set()

    async def main():
        async with origin(script) as url, gateway(Upstream(url), accounts) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post())
            if begun:
                await reader.readuntil(b"data: 1")
            else:
                await asyncio.sleep(0.05)
            writer.transport.abort()
            async with asyncio.timeout(2):
                await closed.wait()
                while not accounts.ended:
                    await asyncio.sleep(0.005)

    asyncio.run(main())
    assert accounts.last == ("cancelled", 0)
    assert accounts.ended[0][0].gone.is_set()


def test_a_client_that_goes_away_while_it_sends_is_accounted():
    """Half a body and a closed connection: nothing goes upstream, the request is cancelled."""
    accounts = Counted()

    async def main():
        async with gateway(giving(), accounts) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(b"x" * 100)[:-50])
            await asyncio.sleep(0.05)
            writer.transport.abort()
            async with asyncio.timeout(2):
                while not accounts.ended:
                    await asyncio.sleep(0.005)

    asyncio.run(main())
    assert accounts.last == ("cancelled", 0)


def test_a_client_that_takes_nothing_is_given_up():
    """A client that stops reading a stream does not hold upstream for ever."""
    accounts = Counted()

    async def script(head, reader, writer):
        await reader.readexactly(2)
        writer.write(STREAM)
        while True:
            writer.write(chunk(b"x" * 65_536))
            await writer.drain()

    async def main():
        limits = Limits(answer_s=0.3)
        async with origin(script) as url, gateway(Upstream(url, limits), accounts, limits) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(post())
            async with asyncio.timeout(5):
                while not accounts.ended:
                    await asyncio.sleep(0.01)
            writer.transport.abort()

    asyncio.run(main())
    assert accounts.last[0] in ("cancelled", "failed")


def test_the_gateways_stop_cancels_and_accounts(caplog):
    """Calls that outlast the stop are cancelled; their accounts end, and nothing is logged as a fault."""
    accounts = Counted()

    async def stage(exchange):
        await asyncio.sleep(60)

    async def main():
        async with gateway(stage, accounts) as port:
            call = asyncio.create_task(raw(port, post()))
            await asyncio.sleep(0.05)
        return (await asyncio.gather(call, return_exceptions=True))[0]

    with caplog.at_level(logging.ERROR, logger="negawatt"):
        said = asyncio.run(main())
    assert said == b"" or isinstance(said, ConnectionError)
    assert accounts.last == ("failed", 0)
    assert not [record for record in caplog.records if record.exc_info]


def test_http_1_0_clients_get_streams_whole():
    """Such a client knows no chunks: it gets a length."""

    async def main():
        async with (
            origin(says(STREAM, chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n"), END)) as url,
            gateway(Upstream(url), Counted()) as port,
        ):
            return await raw(port, b"GET /stream HTTP/1.0\r\n\r\n")

    said = asyncio.run(main())
    assert headers_of(said)[b"content-length"] == b"18"
    assert said.endswith(b"\r\n\r\ndata: 1\n\ndata: 2\n\n")


def test_expect_100_continue_is_answered():
    """A client that asks before it sends its body is told to go on."""
    request = post(b"12", b"expect: 100-continue")

    async def main():
        async with gateway(giving(), Counted()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request[:-2])
            interim = await head_of(reader)
            writer.write(request[-2:])
            head = await head_of(reader)
            writer.close()
            return interim, head

    interim, head = asyncio.run(main())
    assert interim == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert head.startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_turn():
    """Two requests in one packet get two answers."""
    accounts = Counted()

    async def main():
        async with gateway(giving(b'{"a": 1}'), accounts) as port:
            return await raw(port, post() + post(close=True) + b"")

    assert asyncio.run(main()).endswith(b'{"a": 1}')
    assert [status for _, status in accounts.ended] == [200, 200]


@pytest.mark.parametrize(
    ("behind", "then"),
    [
        (b"GET /b HTTP/1.1\r\nhos", b""),
        (b"GET /b HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", b"HTTP/1.1 431 "),
        (b"GET /b HTTP/1.1\r\nx: " + b"y" * 70_000, b"HTTP/1.1 431 "),
        (b"garbage\r\n\r\n", b"HTTP/1.1 400 "),
    ],
)
def test_what_comes_behind_a_request_does_not_spoil_its_answer(behind, then):
    """A second head that is late, too large or garbage is refused when the first request has its answer."""
    accounts = Counted()

    async def stage(exchange):
        await asyncio.sleep(0.3)
        return await giving(b"[1]")(exchange)

    async def main():
        async with gateway(stage, accounts, Limits(head_s=0.1)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post() + behind[:9])
            await asyncio.sleep(0.05)
            writer.write(behind[9:])
            async with asyncio.timeout(5):
                await head_of(reader)
                got = await reader.readexactly(3), await reader.read()
            writer.close()
            return got

    body, rest = asyncio.run(main())
    assert body == b"[1]"
    assert rest.startswith(then)
    assert (rest == b"") == (then == b"")
    assert accounts.last == ("answered", 200)


def test_head_is_answered_on_a_connection_that_is_kept():
    """Two HEADs on one connection get a head each, without a body."""

    async def main():
        async with gateway(giving(b"[1]"), Counted()) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(5):
                for _ in range(2):
                    writer.write(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n")
                    head = await head_of(reader)
                    assert head.startswith(b"HTTP/1.1 200 ")
                    assert headers_of(head)[b"content-length"] == b"3"
            writer.close()

    asyncio.run(main())


def test_own_endpoints_are_not_accounted():
    """/metrics and /negawatt/... are the gateway's, only to be read, and never go upstream."""

    async def metrics(rest):
        return 200, "text/plain", b"metrics"

    async def requests(rest):
        return 200, "text/plain", rest.encode()

    own = {"/metrics": metrics, "/negawatt/requests/": requests}
    for request, status, end in (
        (b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n", 200, b"metrics"),
        (b"GET /negawatt/requests/abc HTTP/1.1\r\nhost: a\r\n\r\n", 200, b"abc"),
        (b"GET /negawatt/none HTTP/1.1\r\nhost: a\r\n\r\n", 404, b"}"),
        (post(path=b"/metrics"), 405, b"}"),
    ):
        said, accounts = asked(giving(), request, own=own)
        assert said.startswith(b"HTTP/1.1 %d " % status)
        assert said.endswith(end)
        assert not accounts.ended


def test_a_cached_outcome_is_told():
    """What a stage made of the request is in a header and in the account."""

    async def stage(exchange):
        exchange.outcome = Outcome.CACHED
        return await giving()(exchange)

    said, accounts = asked(stage, post())
    assert headers_of(said)[b"negawatt-outcome"] == b"cached"
    assert accounts.last == ("cached", 200)


def test_other_protocols_are_refused():
    """ASGI scopes other than HTTP raise, as the specification asks."""
    with pytest.raises(RuntimeError, match="speaks HTTP, not lifespan"):
        asyncio.run(Gateway(giving(), Counted())({"type": "lifespan"}, None, None))
