"""What the gateway itself costs: CPU time per request and added latency, beside nginx as a reverse proxy, in one run.

The same upstream (another nginx, which gives a file of 8 kB to any POST) behind both proxies; requests of 8 kB at a
fixed rate, open loop: they leave by the clock, and each is timed from the moment it was due, so that a stall of proxy
or client counts in full. Rounds take turns (ABBA). The gateway runs as users run it: accounts, ledger, metrics, the
meter of this host. CPU time is user and system time of the gateway's process, all threads; nginx' that of its worker.

    .venv/bin/python benchmarks/gateway.py [--json] [--quick] [--rounds N] [--seconds S] [--rate R]

Needs nginx (`--nginx PATH`). `--quick` leaves nginx out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

BODY = 8_000
CONNECTIONS = 32
CONFIG = """
daemon off; worker_processes 1; pid {folder}/{name}.pid; error_log {folder}/{name}.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; default_type application/json; keepalive_requests 100000000; client_body_buffer_size 64k;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  {inside}
}}
"""
UPSTREAM = (
    "server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ root {folder}/www; error_page 405 =200 $uri; }} }}"
)
PROXY = (
    "upstream origin {{ server 127.0.0.1:{origin}; keepalive 256; keepalive_requests 100000000; }} "
    "server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://origin; "
    'proxy_http_version 1.1; proxy_set_header Connection ""; }} }}'
)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@contextmanager
def nginx(binary: str, folder: Path, name: str, inside: str, port: int) -> Iterator[int]:
    """An nginx of its own; its worker's process id."""
    path = folder / f"{name}.conf"
    path.write_text(CONFIG.format(folder=folder, name=name, inside=inside))
    process = subprocess.Popen([binary, "-c", str(path), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
        yield int(children[0])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextmanager
def gateway(folder: Path, origin: int, lines: list[str]) -> Iterator[tuple[int, int]]:
    """A gateway with a ledger of its own: its process id and port; what it says in the end goes to `lines`."""
    environ = {**os.environ, "NEGAWATT_LEDGER": str(folder / "ledger.sqlite"), "NEGAWATT_BOARD": str(folder / "board")}
    argv = [sys.executable, "-m", "negawatt", "gateway", "--upstream", f"http://127.0.0.1:{origin}"]
    with subprocess.Popen(
        [*argv, "--listen", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True, env=environ
    ) as process:
        try:
            line = process.stderr.readline()
            yield process.pid, int(re.match(r"listening on http://127\.0\.0\.1:(\d+)", line)[1])
        finally:
            process.send_signal(signal.SIGTERM)
            lines += process.stderr.read().splitlines()


def wait_for(port: int) -> None:
    """Wait until something listens."""
    for _ in range(200):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit(f"nothing listens at port {port}")


def cpu_s(pid: int) -> float:
    """User and system time of a process [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Client(asyncio.Protocol):
    """A client's connection, as cheap as can be: it knows the answer's length by its content-length."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiting: asyncio.Future | None = None
        self.buffer = b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Connected."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """A part of an answer."""
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self.buffer.lower().find(b"content-length:", 0, head)
        length = int(self.buffer[at + 15 : self.buffer.find(b"\r\n", at)])
        if len(self.buffer) >= head + 4 + length and self.waiting is not None:
            status, self.buffer = self.buffer[9:12], b""
            self.waiting.set_result(status)

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone."""
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(exc or ConnectionResetError("closed"))


async def load(port: int, rate: float, seconds: float) -> list[float]:
    """Latencies of requests that leave by the clock [s]; those that fail raise."""
    loop = asyncio.get_running_loop()
    body = json.dumps({"model": "bench", "input": "x" * (BODY - 40)}).encode()
    request = (
        b"POST /v1/embeddings HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer none\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    free = [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(CONNECTIONS)]
    every, times = list(free), []

    async def one(due_s: float) -> None:
        if not free:
            _, made = await loop.create_connection(Client, "127.0.0.1", port)
            every.append(made)
            free.append(made)
        client = free.pop()
        client.waiting = loop.create_future()
        client.transport.write(request)
        status = await client.waiting
        if status != b"200":
            raise RuntimeError(f"status {status!r}")
        times.append(time.perf_counter() - due_s)
        free.append(client)

    begin_s, calls = time.perf_counter() + 0.05, set()
    for index in range(round(rate * seconds)):
        due_s = begin_s + index / rate
        if (wait_s := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        calls.add(asyncio.create_task(one(due_s)))
    await asyncio.gather(*calls)
    for client in every:
        client.transport.close()
    return times


def measured(port: int, pid: int, rate: float, seconds: float) -> dict[str, float]:
    """One round: CPU per request and latencies."""
    import uvloop

    begin_s = cpu_s(pid)
    times = sorted(uvloop.run(load(port, rate, seconds)))
    return {
        "cpu_ms_per_request": (cpu_s(pid) - begin_s) / len(times) * 1e3,
        "p50_ms": times[len(times) // 2] * 1e3,
        "p99_ms": times[int(len(times) * 0.99)] * 1e3,
    }


def sum_error(port: int) -> tuple[float, float]:
    """What requests, idle and failed leave of the meter's joules, as a fraction of them; and these joules."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    found = {}
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith(
            ("negawatt_energy_joules_total", "negawatt_energy_open_joules", "negawatt_meter_joules_total")
        ):
            found[name] = float(value)
    meter_j = found.pop("negawatt_meter_joules_total")
    return abs(sum(found.values()) - meter_j) / meter_j, meter_j


def report(options: argparse.Namespace) -> dict:
    """The whole benchmark."""
    load_before = os.getloadavg()[0]
    rounds: dict[str, list[dict[str, float]]] = {"gateway": [], "nginx": []}
    lines: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)  # the worker of an nginx that root starts is nobody
        (folder / "www" / "v1").mkdir(parents=True)
        answer = {"data": [{"embedding": [0.012345] * 790}], "usage": {"prompt_tokens": 12, "total_tokens": 12}}
        (folder / "www" / "v1" / "embeddings").write_text(json.dumps(answer))
        origin, proxy = free_port(), free_port()
        inside = UPSTREAM.format(port=origin, folder=folder)
        stack.enter_context(nginx(options.nginx, folder, "origin", inside, origin))
        pid, port = stack.enter_context(gateway(folder, origin, lines))
        arms = {"gateway": (port, pid)}
        if not options.quick:
            inside = PROXY.format(port=proxy, origin=origin)
            arms["nginx"] = (proxy, stack.enter_context(nginx(options.nginx, folder, "proxy", inside, proxy)))
        for warm_port, warm_pid in arms.values():
            measured(warm_port, warm_pid, options.rate, 2.0)
        for turn in range(options.rounds):
            names = list(arms) if turn % 2 == 0 else list(arms)[::-1]
            for name in names:
                rounds[name].append(measured(*arms[name], options.rate, options.seconds))
        time.sleep(0.3)
        error_fraction, meter_j = sum_error(port)
    table = [{"proxy": name, **row} for name, rows in rounds.items() for row in rows]
    mean = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for name, rows in rounds.items()
        if rows
    }
    ours, theirs = mean["gateway"], mean.get("nginx")
    metrics = {**ours, "energy_sum_error_fraction": error_fraction, "meter_j": meter_j}
    if theirs:
        metrics |= {f"nginx_{key}": value for key, value in theirs.items()}
        metrics["nginx_p99_ratio"] = ours["p99_ms"] / theirs["p99_ms"]
        metrics["p99_allowed_ms"] = 3 * theirs["p99_ms"] + 1
    return {
        "benchmark": "gateway",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "load": {"before": load_before, "after": os.getloadavg()[0]},
        "versions": {
            "python": platform.python_version(),
            "uvicorn": version("uvicorn"),
            "nginx": subprocess.run([options.nginx, "-v"], capture_output=True, text=True, check=True).stderr.strip(),
        },
        "metrics": metrics,
        "table": table,
        "summary": lines,
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="leave nginx as a proxy out")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of each proxy")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a round")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    parser.add_argument("--nginx", default=found, help="the nginx program")
    options = parser.parse_args()
    if not options.nginx:
        raise SystemExit("nginx is not installed: apt install nginx, or --nginx PATH")
    result = report(options)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for row in result["table"]:
        print("  ".join(f"{value:>10.3f} {key}" if key != "proxy" else f"{value:<8}" for key, value in row.items()))
    for key, value in result["metrics"].items():
        print(f"{key:<28}{value:.6g}")
    print(*result["summary"], sep="\n")


if __name__ == "__main__":
    main()
