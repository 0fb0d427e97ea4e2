"""Serving faults: ten minutes of whatever goes wrong between clients, gateway and inference server, under load.

A real `negawatt gateway` with batching, cache and ledger stands before a server that misbehaves on request
(`serving_faults_upstream.py`), and that is killed and started again once a minute. Clients send good requests and all
kinds of bad ones. Judged is: whatever the server answered whole reached its client, unless that had gone away; every
fault got a status that says what it was; memory and open files stay flat; the joules of requests, idle time and
failures are told; no credential is kept; and the gateway ends cleanly.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import psutil
from serving_faults_upstream import vector

import negawatt

SECONDS = 600.0
RATE = 60.0  # requests per second, floods not counted
FLOOD = 1500  # connections at once
HUGE = 17 << 20
EXPECTED = {  # fault -> statuses that tell the truth about it; 0: the connection ends without a whole answer
    "": {200},
    "shared": {200},  # may be joined with others, or come from the cache
    "slow": {200},
    "stream": {200, 0},  # 0: the server was killed in the middle of it
    "big": {200},
    "injected": {200},
    "refused": {429},
    "malformed": {400},
    "huge": {413},
    "close": {502},
    "garbage": {502},
    "cut": {502, 0},
    "cut-stream": {0, 502},
    "head": {502},
    "bad-header": {502},
    "gone": {0},
    "wrong-type": {200},
    "no-http": {400, 0},
    "half-body": {0, 408},
}
WEIGHTS = {"": 25, "shared": 25, "stream": 8, "slow": 4, "big": 1, "huge": 0.3}  # others: 2
DOWN = {502, 503}  # may come instead while the server is down, or the gateway full


class Clients:
    """Send requests and keep what came."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)
        self.random = random.Random(seed)
        self.sent: dict[int, str] = {}
        self.whole: set[int] = set()
        self.statuses: dict[str, Counter[int]] = {fault: Counter() for fault in [*EXPECTED, "flood"]}
        self.wrong: list[str] = []
        self.session: aiohttp.ClientSession | None = None

    async def one(self, number: int, fault: str) -> None:
        """One request of one kind."""
        self.sent[number] = fault
        raw: dict[str, Callable[[int], Awaitable[int]]] = {
            "no-http": self._no_http, "half-body": self._half_body, "gone": self._gone,
        }  # fmt: skip
        try:
            status = await (raw[fault](number) if fault in raw else self._asked(number, fault))
        except (aiohttp.ClientError, ConnectionError, asyncio.IncompleteReadError, EOFError):
            status = 0
        self.statuses[fault][status] += 1

    async def _asked(self, number: int, fault: str) -> int:
        headers = {"content-type": "application/json", "authorization": f"Bearer secret-{number}"}
        path = "/v1/chat/completions" if "stream" in fault else "/v1/embeddings"
        body = json.dumps({"id": number, "fault": fault, "input": f"text {number % 500}"}).encode()
        if fault == "malformed":
            body = b'{"input": '
        elif fault == "shared":
            text = f"text {number % 997}"
            body = json.dumps({"model": "m", "input": text}).encode()
            headers["authorization"] = "Bearer secret-shared"
        elif fault == "huge":
            body = b'{"input": "' + b"x" * HUGE + b'"}'
        elif fault == "wrong-type":
            headers["content-type"] = "text/plain"
            body = json.dumps({"id": number}).encode()
        assert self.session is not None
        async with self.session.post(self.url + path, data=body, headers=headers) as answer:
            got = await answer.read()
            if answer.status == 200:
                self._check(number, fault, got, answer.headers)
            return answer.status

    def _check(self, number: int, fault: str, got: bytes, headers: object) -> None:
        self.whole.add(number)
        if fault == "stream":
            good = b"data: [DONE]\n\n" in got[-300:]
        elif fault == "big":
            good = len(got) > 4 << 20
        elif fault == "shared":
            good = json.loads(got)["data"] == [{"index": 0, "embedding": vector(f"text {number % 997}")}]
        else:
            good = json.loads(got).get("id") == number
        if not good:
            self.wrong.append(f"request {number} ({fault or 'good'}) got {got[:80]!r}")
        if "set-cookie" in headers:  # type: ignore[operator]
            self.wrong.append(f"request {number} ({fault}) got an injected header")

    async def _no_http(self, _number: int) -> int:
        return await self._raw(b"\x16\x03\x01\x02\x00 no http\r\n\r\n")

    async def _half_body(self, number: int) -> int:
        return await self._raw(self._head(number, 1000) + b'{"id": ', wait_s=0.5)

    async def _gone(self, number: int) -> int:
        body = json.dumps({"id": number, "fault": "gone"}).encode()
        return await self._raw(self._head(number, len(body)) + body, wait_s=0.2)

    def _head(self, _number: int, length: int) -> bytes:
        return (
            f"POST /v1/embeddings HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
            f"content-length: {length}\r\n\r\n"
        ).encode()

    async def _raw(self, sent: bytes, wait_s: float = 5.0) -> int:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(sent)
            await writer.drain()
            line = await asyncio.wait_for(reader.readline(), wait_s)
            return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
        except TimeoutError:
            return 0  # this client goes away
        finally:
            writer.transport.abort()

    async def flood(self, first: int) -> None:
        """Many connections at the same moment."""

        async def one(number: int) -> None:
            self.sent[number] = "flood"
            body = json.dumps({"id": number}).encode()
            reader = writer = None
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                reader, writer = await asyncio.open_connection(self.host, self.port)
                writer.write(self._head(number, len(body)) + body)
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
                status = int(head.split()[1])
                length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
                await reader.readexactly(length)
                if status == 200:
                    self.whole.add(number)
                self.statuses["flood"][status] += 1
            if writer is not None:
                writer.transport.abort()

        await asyncio.gather(*(one(number) for number in range(first, first + FLOOD)))


class Watched:
    """Memory and open files of a process, once a second."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.rss_mb: list[float] = []
        self.files: list[int] = []

    async def go_on(self) -> None:
        """Until cancelled."""
        while True:
            self.rss_mb.append(self.process.memory_info().rss / 1e6)
            self.files.append(self.process.num_fds())
            await asyncio.sleep(1.0)

    def growth_mb(self) -> float:
        """Median of the last fifth above that of the second: what comes up at the start is not counted [MB]."""
        fifth = max(1, len(self.rss_mb) // 5)
        return statistics.median(self.rss_mb[-fifth:]) - statistics.median(self.rss_mb[fifth : 2 * fifth])


def start_upstream(port: int, log: Path) -> subprocess.Popen:
    """The misbehaving server, ready."""
    script = Path(__file__).with_name("serving_faults_upstream.py")
    process = subprocess.Popen([sys.executable, str(script), str(port), str(log)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def start_gateway(upstream: str, folder: Path) -> tuple[subprocess.Popen, str]:
    """The gateway and its URL."""
    command = [
        sys.executable, "-m", "negawatt", "gateway", "--upstream", upstream, "--listen", "127.0.0.1:0",
        "--window", "2ms", "--max-batch", "8", "--cache", "16MB", "--p99", "500ms",
    ]  # fmt: skip
    log = (folder / "gateway.log").open("wb")
    environ = {**os.environ, "NEGAWATT_LEDGER": str(folder / "ledger.sqlite")}
    process = subprocess.Popen(command, stderr=log, stdout=log, env=environ)
    for _ in range(600):
        found = re.search(r"listening on (http://\S+)", (folder / "gateway.log").read_text())
        if found:
            return process, found[1]
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit((folder / "gateway.log").read_text())


async def load(clients: Clients, seconds: float, restart: Callable[[], None]) -> None:
    """Send for so long; the server is killed and restarted once a minute, and floods come twice a minute."""
    kinds = list(EXPECTED)
    weights = [WEIGHTS.get(kind, 2) for kind in kinds]
    begin_s, number, tasks = time.monotonic(), 0, set()
    next_flood_s, next_kill_s = 15.0, 40.0
    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        clients.session = session
        while (now_s := time.monotonic() - begin_s) < seconds:
            number += 1
            fault = clients.random.choices(kinds, weights)[0]
            tasks.add(task := asyncio.create_task(clients.one(number, fault)))
            task.add_done_callback(tasks.discard)
            if now_s > next_flood_s:
                next_flood_s += 30.0
                tasks.add(task := asyncio.create_task(clients.flood(number + 1)))
                task.add_done_callback(tasks.discard)
                number += FLOOD
            if now_s > next_kill_s:
                next_kill_s += 60.0
                await asyncio.to_thread(restart)
            await asyncio.sleep(clients.random.expovariate(RATE))
        if tasks:
            await asyncio.wait(tasks, timeout=120)


def joules(text: str) -> dict[str, float]:
    """Of the metrics page, by kind."""
    return {
        kind: float(value)
        for kind, value in re.findall(r'negawatt_energy_joules_total\{[^}]*kind="(\w+)"[^}]*\} (\S+)', text)
    }


async def fetched(url: str) -> str:
    """A page."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return await answer.text()


def report(seconds: float, seed: int) -> dict:
    """Run, and judge."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        upstream = [start_upstream(port, folder / "answered.log")]
        gateway, url = start_gateway(f"http://127.0.0.1:{port}", folder)
        clients, watched = Clients(url, seed), Watched(gateway.pid)

        def restart() -> None:
            upstream[0].kill()
            upstream[0].wait()
            time.sleep(1.0)
            upstream[0] = start_upstream(port, folder / "answered.log")

        async def go() -> str:
            watching = asyncio.create_task(watched.go_on())
            await load(clients, seconds, restart)
            watching.cancel()
            await asyncio.sleep(2.0)
            return await fetched(f"{url}/metrics")

        try:
            metrics = asyncio.run(go())
            gateway.send_signal(signal.SIGTERM)
            code = gateway.wait(60)
        finally:
            gateway.kill()
            upstream[0].kill()
        answered = {int(line) for line in (folder / "answered.log").read_text().split()}
        secrets = [p.name for p in folder.rglob("*") if p.is_file() and b"secret-" in p.read_bytes()]
        return judged(clients, watched, answered, secrets, metrics, code) | {
            "log": (folder / "gateway.log").read_text()
        }


def judged(clients: Clients, watched: Watched, answered: set[int], secrets: list[str], metrics: str, code: int) -> dict:
    """The report."""
    stays = {n for n in answered if clients.sent.get(n, "gone") not in ("gone", "malformed", "refused", "half-body")}
    lost = sorted(n for n in stays if n not in clients.whole)
    wrong = Counter()
    for fault, statuses in clients.statuses.items():
        for status, count in statuses.items():
            if fault != "flood" and status not in EXPECTED[fault] | DOWN:
                wrong[f"{fault or 'good'}: {status}"] += count
    energy = joules(metrics)
    return {
        "benchmark": "serving_faults",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()},
        "load": os.getloadavg(),
        "versions": {
            "negawatt": negawatt.__version__,
            "python": platform.python_version(),
            "aiohttp": aiohttp.__version__,
        },
        "metrics": {
            "requests": len(clients.sent),
            "answered_upstream": len(stays),
            "lost": len(lost),
            "wrong_status": sum(wrong.values()),
            "wrong_content": len(clients.wrong),
            "memory_growth_mb": round(watched.growth_mb(), 2),
            "memory_mb": round(statistics.median(watched.rss_mb), 1),
            "memory_max_mb": round(max(watched.rss_mb), 1),
            "files_start": watched.files[0],
            "files_end": watched.files[-1],
            "secrets_kept": len(secrets),
            "exit_code": code,
        }
        | {f"{kind}_j": round(value, 3) for kind, value in energy.items()},
        "table": [
            {"fault": f or "none", **{str(s): c for s, c in sorted(k.items())}} for f, k in clients.statuses.items()
        ],
        "lost": [f"{n} ({clients.sent[n]})" for n in lost[:20]],
        "wrong": [*(f"{what} x{count}" for what, count in wrong.items()), *clients.wrong[:20]],
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long; fewer is another benchmark")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = report(options.seconds, options.seed)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for key in ("metrics", "lost", "wrong"):
        print(f"{key}: {result[key]}")
    for line in result["table"]:
        print(line)
    print(result["log"][-2000:])


if __name__ == "__main__":
    main()
