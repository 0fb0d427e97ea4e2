"""The gateway as a process: ready line, graceful stop, sums to the joule, what is in the ledger and what is not."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from sockets import answer, chunk, origin, says

from negawatt.core.errors import UsageError
from negawatt.serve.server import listen

GATEWAY = [sys.executable, "-m", "negawatt", "gateway", "--listen", "127.0.0.1:0", "--sensor", "cpu-model"]


@contextmanager
def server(script):
    """A raw server in a thread, as its URL."""
    ready, stop, url = threading.Event(), None, ""

    async def main():
        nonlocal stop, url
        stop = asyncio.Event()
        async with origin(script) as url:
            ready.set()
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait(5)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()


@contextmanager
def started(*options):
    """A gateway as a process, with its URL; what it says on stderr is gathered in `lines`."""
    process = subprocess.Popen([*GATEWAY, *options], stderr=subprocess.PIPE, text=True)
    lines, url = [], ""
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.match(r"listening on (http://\S+)", line):
                url = found[1]
                break
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        reader.start()
        yield process, url, lines
        process.wait(10)
        reader.join(5)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def get(url, body=None, **headers):
    """Status, headers and body."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as said:
            return said.status, said.headers, said.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def appears(path):
    """Wait until a file is there."""
    until_s = time.monotonic() + 15
    while not path.exists():
        assert time.monotonic() < until_s, path
        time.sleep(0.01)


@pytest.mark.slow
def test_the_whole_way():
    """Through a process: headers, settled rows, metrics, the summary, exit code 0, a ledger without secrets."""
    usage = b'{"usage": {"prompt_tokens": 12, "total_tokens": 12}}'
    with server(says(answer(usage))) as upstream, started("--upstream", upstream) as (process, url, lines):
        body = b'{"model": "tiny", "input": "my private text"}'
        for _ in range(5):
            status, headers, said = get(f"{url}/v1/embeddings?key=s3cret", body, authorization="Bearer s3cret")
            assert (status, said) == (200, usage)
        time.sleep(0.3)
        _, _, settled = get(f"{url}/negawatt/requests/{headers['negawatt-request-id']}")
        row = json.loads(settled)
        assert (row["model"], row["tokens_in"], row["outcome"], row["path"]) == (
            "tiny", 12, "answered", "/v1/embeddings",
        )  # fmt: skip
        assert row["low_j"] <= row["cost"]["energy_j"] <= row["high_j"]
        page = get(f"{url}/metrics")[2].decode()
        assert "negawatt_energy_joules_total{" in page
        assert json.loads(get(f"{url}/negawatt/settings")[2])["setting"]["max_batch"] == 1
        assert get(f"{url}/negawatt/health")[0] == 200
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0, lines
    said = "".join(lines)
    assert "5\xa0answered" in said or "5 answered" in said
    assert "per request" in said
    assert "per token" in said
    assert "Traceback" not in said
    with sqlite3.connect(os.environ["NEGAWATT_LEDGER"]) as ledger:
        kept = "\n".join(ledger.iterdump())
    ledger.close()
    assert "/v1/embeddings" in kept
    assert "s3cret" not in kept + said
    assert "private text" not in kept + said


@pytest.mark.slow
def test_a_stop_lets_calls_end():
    """SIGTERM during a call: it gets its answer, new connections are refused, the exit code is 0."""

    async def script(head, reader, writer):
        await asyncio.sleep(1.0)
        writer.write(answer(b'"done"'))

    with server(script) as upstream, started("--upstream", upstream) as (process, url, lines):
        got = []
        call = threading.Thread(target=lambda: got.append(get(f"{url}/slow")))
        call.start()
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(urllib.error.URLError, match="refused"):
            get(f"{url}/late")
        call.join(5)
    assert got[0][2] == b'"done"'
    assert process.returncode == 0
    assert "1\xa0answered" in "".join(lines) or "1 answered" in "".join(lines)


@pytest.mark.slow
def test_a_second_signal_cuts_calls_off_and_accounts_them():
    """Two SIGINTs: the call is cancelled and counted as failed, and the exit code is still 0."""

    async def script(head, reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(chunk(b"data: 1\n\n"))
        await asyncio.sleep(60)

    with server(script) as upstream, started("--upstream", upstream) as (process, url, lines):
        stream = urllib.request.urlopen(f"{url}/stream", timeout=10)
        assert stream.readline() == b"data: 1\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
        process.wait(10)
        stream.close()
    assert process.returncode == 0, lines
    said = "".join(lines)
    assert "1 failed" in said or "1\xa0failed" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_signal_cuts_off_what_is_put_back(number, tmp_path):
    """Signals while a replica is woken again are answered with a line, and the waking ends."""
    begun, done, wake = tmp_path / "begun", tmp_path / "done", tmp_path / "wake.sh"
    wake.write_text(f"touch {begun}\nsleep 1.5\ntouch {done}\n")
    options = ["--replicas", "1", "--wake", f"sh {wake}", "--sleep", f"touch {tmp_path}/asleep"]
    with (
        server(says(answer())) as upstream,
        server(says(answer())) as another,
        started("--upstream", upstream, "--upstream", another, *options) as (process, _, lines),
    ):
        appears(tmp_path / "asleep")
        begun.unlink(missing_ok=True)  # replicas are woken at the beginning, too
        done.unlink(missing_ok=True)
        process.send_signal(number)
        appears(begun)
        for _ in range(2):
            process.send_signal(number)
            time.sleep(0.2)
        assert not done.exists()
    assert done.exists()
    assert process.returncode == 0, lines
    assert "putting back" in "".join(lines)


@pytest.mark.slow
def test_an_upstream_that_is_down_at_the_start_is_a_warning():
    """The gateway goes on, says so, and answers 502 until upstream is there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        upstream = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with started("--upstream", upstream) as (process, url, lines):
        status, headers, said = get(f"{url}/v1/embeddings", b"{}")
        assert status == 502
        assert headers["negawatt-outcome"] == "failed"
        assert json.loads(said)["error"]["code"] == "upstream_error"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert "cannot be reached yet" in "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (["--cache", "1MB", "--cascade", "{url}"], {"cache", "cascade"}),
        (["--control", "--p99", "200ms", "--limit-power"], {"batcher", "pool"}),
        (["--cache", "1MB", "--semantic", "0.9", "--semantic-url", "{url}/v1/embeddings"], {"cache", "semantic"}),
        (["--max-batch", "4", "--window", "2ms", "--concurrency", "2"], {"batcher", "pool"}),
        (
            ["--upstream", "{url}/v1", "--replicas", "1", "--wake", "true {{url}}", "--sleep", "true {{index}}"],
            {"pool"},
        ),
    ],
)
def test_every_lever_has_its_place_in_the_chain(options, stages):
    """What the command line asks for is in the chain, nothing else is, and requests pass through it."""
    body = b'{"data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}'
    with (
        server(says(answer(body))) as upstream,
        started("--upstream", upstream, *(word.format(url=upstream) for word in options)) as (process, url, lines),
    ):
        for _ in range(2):
            status, _, said = get(f"{url}/v1/embeddings", b'{"model": "tiny", "input": "a"}')
            assert (status, json.loads(said)["data"][0]["embedding"]) == (200, [0.5])
        told = json.loads(get(f"{url}/negawatt/settings")[2])
        process.send_signal(signal.SIGTERM)
    assert set(told["stages"]) == stages
    assert ("level" in told) == ("--control" in options)
    assert process.returncode == 0, lines
    assert "Traceback" not in "".join(lines)


def test_a_taken_port_says_what_to_type():
    """Two gateways cannot listen at one address."""
    with listen("127.0.0.1", 0) as sock, pytest.raises(UsageError, match="Address already in use"):
        listen("127.0.0.1", sock.getsockname()[1])


def test_an_address_of_another_machine_says_what_to_type():
    """An address that is not this host's, and a name that nobody knows."""
    with pytest.raises(UsageError, match="assign requested address"):
        listen("192.0.2.1", 0)
    with pytest.raises(UsageError, match=r"--listen no\.such\.name\.invalid:0"):
        listen("no.such.name.invalid", 0)
