"""A workload that is a server: it embeds texts as numbers, at a fixed cost of CPU time per call.

Run as a program with a port, a cost in seconds and a bias it is the server; imported, it has the object `workload`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from negawatt import Knob, Phase, Split
from negawatt.core.serving import Cascade
from negawatt.core.workload import Call

CALLS = int(os.environ.get("SERVED_CALLS", "30"))
COSTS_S = {"slow": "0.008", "quick": "0.0005", "wrong": "0.0005"}


class Handler(BaseHTTPRequestHandler):
    """Answers POST /v1/embeddings and GET /health."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cost_s, bias = 0.0, 0.0

    def do_GET(self):
        self.answer({"ok": True})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        if asked == "fail":
            self.send_error(500)
            return
        end_s = time.thread_time() + self.cost_s
        while time.thread_time() < end_s:
            pass
        texts = [asked] if isinstance(asked, str) else asked
        data = [{"index": i, "embedding": [len(text) + self.bias]} for i, text in enumerate(texts)]
        self.answer({"data": data, "sure": 0.97, "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)}})

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def server(cost_s: str, bias: float = 0.0):
    """The server in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, __file__, str(port), cost_s, str(bias)])
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{url}/health"):
                break
            time.sleep(0.01)
        yield url
    finally:
        process.kill()
        process.wait()


class Served:
    """Texts of one to nine letters, each asked for three times."""

    name, unit, quality = "served", "request", "exactness"
    replicas = 2
    cascade = Cascade(upstream="", field="sure", audit_fraction=0.0)
    knobs = (
        Knob(
            name="runtime", phase=Phase.INFER, default="slow", choices=("slow", "quick", "wrong"), competent=("slow",)
        ),
    )

    def served(self, params, state):
        return server(COSTS_S[params["runtime"]], bias=float(params["runtime"] == "wrong"))

    def small(self, params, state):
        return server("0.0001", bias=1.0)

    def texts(self, split):
        return [chr(97 + i // 3 % 26) * (1 + i // 3 % 9) for i in range(CALLS)]

    def calls(self, split: Split):
        bodies = [json.dumps({"model": "letters", "input": text}).encode() for text in self.texts(split)]
        return [Call(at_s=i / 50, path="/v1/embeddings", body=body) for i, body in enumerate(bodies)]

    def judge(self, split: Split, bodies):
        given = [json.loads(body)["data"][0]["embedding"][0] for body in bodies]
        return sum(a == len(t) for a, t in zip(given, self.texts(split), strict=True)) / len(given)


workload = Served()

if __name__ == "__main__":
    Handler.cost_s, Handler.bias = float(sys.argv[2]), float(sys.argv[3])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
