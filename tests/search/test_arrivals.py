"""Traces and their replay: what is read, what is refused, and that waiting is never hidden."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.core.workload import Call
from negawatt.search.arrivals import Trace, read_trace, replay

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
ROWS = "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
needs_serve = pytest.mark.skipif(find_spec("aiohttp") is None, reason='needs pip install "negawatt[serve]"')


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz"])
def test_a_trace_is_read(tmp_path, name):
    """Plain or gzipped, with seven digits of a second: times count from the first arrival, sizes are kept."""
    trace = read_trace(write(tmp_path / name, HEAD + ROWS))
    assert trace == Trace(at_s=(0.0, 4.314579), tokens_in=(374, 396), tokens_out=(44, 109))
    assert (len(trace), trace.time_s) == (2, 4.314579)


def test_rows_are_put_in_order(tmp_path):
    """A log written at the end of each request is still a trace of arrivals; more columns and zones do no harm."""
    rows = ["x,2024-05-10 00:00:09+00:00,3,4\n", "y,2024-05-10 00:00:00.5+00:00,1,2\n"]
    trace = read_trace(write(tmp_path / "t.csv", "\ufeffid," + HEAD + "".join(rows)))
    assert trace == Trace(at_s=(0.0, 8.5), tokens_in=(1, 3), tokens_out=(2, 4))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no column TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("TIMESTAMP,ContextTokens\n", "has no column GeneratedTokens"),
        (HEAD, "has no rows"),
        (HEAD + ROWS + "2023-11-16 18:15:51,12\n", "line 4: invalid literal"),
        (HEAD + "yesterday,1,1\n", "line 2: Invalid isoformat"),
        (HEAD + "2023-11-16 18:15:51,1.5,1\n", "line 2: invalid literal"),
        (HEAD + "2023-11-16 18:15:51,-1,1\n", "line 2: a number of tokens is below 0"),
        (HEAD + ROWS + "2023-11-16 18:15:51+00:00,1,1\n", "with and without a time zone"),
    ],
)
def test_a_malformed_trace_is_refused(tmp_path, text, says):
    """The error names the file, the line and what is wrong with it."""
    with pytest.raises(UsageError, match=says):
        read_trace(write(tmp_path / "t.csv", text))


def test_an_unreadable_trace_is_refused(tmp_path):
    """No file, a gzip file that breaks off, one that is none, and bytes that are no text."""
    with pytest.raises(UsageError, match="no trace file"):
        read_trace(tmp_path / "none.csv")
    whole = gzip.compress((HEAD + ROWS * 100).encode())
    for name, data in (("cut.csv.gz", whole[:-20]), ("none.csv.gz", b"TIMESTAMP"), ("t.csv", b"\xff\xfe\xfa")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match="cannot be read"):
            read_trace(tmp_path / name)


times = st.lists(st.floats(0, 1e4), max_size=50).map(sorted)


@given(times, st.floats(0.1, 100), st.floats(0.01, 1), st.integers(0, 9))
def test_compressing_and_thinning_keep_their_laws(at_s, factor, fraction, seed):
    """Compression scales times only; thinning gives the same sub-sequence for a seed; 1 changes nothing."""
    n = range(len(at_s))
    trace = Trace(at_s=tuple(at_s), tokens_in=tuple(n), tokens_out=tuple(n))
    assert trace.compressed(factor).time_s == pytest.approx(trace.time_s / factor)
    assert trace.compressed(factor).tokens_in == trace.tokens_in
    part = trace.thinned(fraction, seed)
    assert part == trace.thinned(fraction, seed)
    assert [trace.at_s[i] for i in part.tokens_in] == list(part.at_s)
    assert trace.thinned(1.0, seed) == trace.compressed(1.0) == trace.until(1e5) == trace


def test_a_senseless_factor_is_refused():
    """Factor and fraction are above 0, a fraction at most 1."""
    trace = Trace(at_s=(0.0,), tokens_in=(1,), tokens_out=(1,))
    for factor in (0, -1, float("nan")):
        with pytest.raises(UsageError, match="use a factor above 0"):
            trace.compressed(factor)
    for fraction in (0, 1.5):
        with pytest.raises(UsageError, match="use a fraction above 0"):
            trace.thinned(fraction, 1)


@contextmanager
def served(answer) -> Iterator[str]:
    """A bare HTTP server on loopback, on a thread of its own; `answer` is a coroutine (head, body, writer)."""
    loop = asyncio.new_event_loop()

    async def client(reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if b"content-length" in x), 0)
                await answer(head, await reader.readexactly(length), writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    server = loop.run_until_complete(asyncio.start_server(client, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
            loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        server.close()
        loop.run_until_complete(server.wait_closed())
        loop.close()


def reply(writer, body: bytes, status: str = "200 OK") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nNegawatt-Outcome: cached\r\nX-Other: 1\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


@needs_serve
def test_calls_come_as_they_were_recorded():
    """Posts and gets reach the server with path, query, body and type untouched, at their times, answers in order."""
    seen = []

    async def echo(head, body, writer):
        seen.append((asyncio.get_running_loop().time(), head.split(b"\r\n")[0].decode()))
        reply(writer, body or head, "404 Not Found" if not body else "200 OK")

    calls = [
        Call(at_s=0.05, path="/v1/embeddings?a=%2Fb", body=b'{"input": "x"}'),
        Call(at_s=0.1, path="/health"),
        Call(at_s=0.25, path="/csv", body=b"1,2", content_type="text/csv"),
    ]
    with served(echo) as url:
        post, get, csv = replay(url + "/", calls, timeout_s=5, connections=4)
    assert [line for _, line in seen] == [
        "POST /v1/embeddings?a=%2Fb HTTP/1.1",
        "GET /health HTTP/1.1",
        "POST /csv HTTP/1.1",
    ]
    assert seen[2][0] - seen[0][0] == pytest.approx(0.2, abs=0.1)
    assert (post.status, get.status, csv.status) == (200, 404, 200)
    assert json.loads(post.body) == {"input": "x"}
    assert post.headers == {"content-type": "text/plain", "negawatt-outcome": "cached"}
    assert 0 <= post.late_s <= post.time_s < 1


@needs_serve
def test_a_stalled_server_shows_in_every_request_it_holds_up():
    """One connection, 0.3 s for the first answer: those that came meanwhile count their wait from their arrival."""

    async def stall(head, body, writer):
        if body == b"0":
            await asyncio.sleep(0.3)
        reply(writer, body)

    calls = [Call(at_s=i / 20, path="/", body=str(i).encode()) for i in range(5)]
    with served(stall) as url:
        replied = replay(url, calls, timeout_s=5, connections=1)
    assert [r.body for r in replied] == [b"0", b"1", b"2", b"3", b"4"]
    for i, r in enumerate(replied):
        assert r.time_s >= 0.3 - i / 20 - 0.01


@needs_serve
def test_arrivals_do_not_wait_for_answers():
    """Open loop: ten calls at once are ten at the server at once."""
    under_way = [0, 0]

    async def slow(head, body, writer):
        under_way[0] += 1
        under_way[1] = max(under_way)
        await asyncio.sleep(0.2)
        under_way[0] -= 1
        reply(writer, body)

    with served(slow) as url:
        replied = replay(url, [Call(at_s=0, path="/", body=b"x")] * 10, timeout_s=5, connections=100)
    assert {r.status for r in replied} == {200}
    assert under_way[1] == 10


@needs_serve
def test_what_goes_wrong_is_told_and_the_rest_goes_on():
    """Too slow, cut off, no HTTP: status 0 with the reason and the time until then; the last call is answered."""

    async def trouble(head, body, writer):
        if body == b"slow":
            await asyncio.sleep(0.5)
        elif body == b"cut":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            writer.close()
        elif body == b"bad":
            writer.write(b"good day to you\r\n\r\n")
        else:
            reply(writer, body)

    calls = [Call(at_s=i / 100, path="/", body=body) for i, body in enumerate((b"slow", b"cut", b"bad", b"fine"))]
    with served(trouble) as url:
        slow, cut, bad, fine = replay(url, calls, timeout_s=0.3, connections=8)
    assert (slow.status, slow.error) == (0, "no whole answer within 0.3 s")
    assert slow.time_s == pytest.approx(0.3, abs=0.1)
    assert (cut.status, cut.body) == (0, b"")
    assert "ClientPayloadError" in cut.error
    assert (bad.status, bool(bad.error)) == (0, True)
    assert (fine.status, fine.body, fine.error) == (200, b"fine", "")
    [down] = replay(url, calls[:1], timeout_s=1, connections=1)
    assert (down.status, "Connect" in down.error) == (0, True)


def test_an_impossible_replay_is_refused():
    """No HTTP URL, calls out of order or before 0, and limits that let nothing through."""
    one, two = Call(at_s=1, path="/"), Call(at_s=2, path="/")
    with pytest.raises(UsageError, match="begin it with http"):
        replay("127.0.0.1:8000", [one])
    for calls in ([two, one], [Call(at_s=-1, path="/")]):
        with pytest.raises(UsageError, match="order of their arrival"):
            replay("http://127.0.0.1:1", calls)
    with pytest.raises(UsageError, match="at least one connection"):
        replay("http://127.0.0.1:1", [one], timeout_s=1, connections=0)
