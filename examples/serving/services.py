"""The server and the gateway as processes of their own, stopped whatever happens, and a metered replay against them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import negawatt
from negawatt.core.measurement import Latency, Measurement
from negawatt.core.workload import Call
from negawatt.search.arrivals import Replied, replay

HERE = Path(__file__).parent
READY_S = 180.0
"""Longest wait for a server: the first start exports the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How the server is started: see `server.py --help`."""

    runtime: str = "onnx"
    precision: str = "fp32"
    threads: int = 1
    max_batch: int = 1


@contextmanager
def server(how: Serving) -> Iterator[str]:
    """Start `server.py` on a free port, yield its base URL once it answers, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = [f"--port={port}", f"--runtime={how.runtime}", f"--precision={how.precision}"]
    options += [f"--threads={how.threads}", f"--max-batch={how.max_batch}"]
    with process([sys.executable, str(HERE / "server.py"), *options]) as running:
        end_s = time.monotonic() + READY_S
        while not answers(f"{url}/health"):
            if running.poll() is not None or time.monotonic() > end_s:
                raise SystemExit(f"the server did not start: exit code {running.poll()}")
            time.sleep(0.1)
        yield url


@contextmanager
def gateway(upstreams: Sequence[str], options: Sequence[str]) -> Iterator[str]:
    """Start `negawatt gateway` on a free port, its ledger apart from the user's, yield its base URL, and stop it."""
    command = [sys.executable, "-m", "negawatt", "gateway", "--listen", "127.0.0.1:0", *options]
    command += [f"--upstream={url}" for url in upstreams]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        log = Path(folder) / "log"
        env = {**os.environ, "NEGAWATT_LEDGER": f"{folder}/ledger.sqlite"}
        output = stack.enter_context(log.open("wb"))
        running = stack.enter_context(process(command, stderr=output, env=env))
        end_s = time.monotonic() + READY_S
        while "listening on " not in (said := log.read_text()):
            if running.poll() is not None or time.monotonic() > end_s:
                raise SystemExit(f"the gateway did not start:\n{said}")
            time.sleep(0.05)
        yield said.split("listening on ", 1)[1].split()[0]


@contextmanager
def process(command: list[str], **more) -> Iterator[subprocess.Popen]:
    """A process that is over when the block is."""
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **more)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def answers(url: str) -> bool:
    """Whether a URL can be had."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def metered(url: str, calls: Sequence[Call]) -> tuple[Measurement, list[Replied]]:
    """Replay calls under the host's meter; work is requests. Stops if one was not answered."""
    with negawatt.meter("replay") as run:
        replied = answered(replay(url, calls))
    measurement = Measurement(readings=run.readings, time_s=run.time_s, work_units=len(calls), latency=latency(replied))
    return measurement, replied


def answered(replied: list[Replied]) -> list[Replied]:
    """The same, if all were answered with 200: a saving on what was lost is none."""
    bad = [reply for reply in replied if reply.status != 200]
    if bad:
        raise SystemExit(f"{len(bad)} of {len(replied)} calls failed, such as: {bad[0].error or bad[0].body[:200]!r}")
    return replied


def latency(replied: Sequence[Replied]) -> Latency:
    """Quantiles from the scheduled arrival to the last byte."""
    times_s = [reply.time_s for reply in replied]
    return Latency(p50_s=within_s(times_s, 50), p95_s=within_s(times_s, 95), p99_s=within_s(times_s, 99))


def within_s(times_s: Sequence[float], percent: int) -> float:
    """The least time that so many of 100 were within."""
    return sorted(times_s)[-(-len(times_s) * percent // 100) - 1]
