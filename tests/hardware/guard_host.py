"""A host with a simulated powercap tree and a real guard process, and users of it. Used by the guard's tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from negawatt.testing.powercap import SimulatedPowercap

FOUND_W = 125.0
LISTED, GROUPED, UNLISTED = 4242, 4243, 4244
"""Users; nobody of these numbers is on this host. GROUPED is in the group of that number, which the policy lists."""
POLICY = f"""
[[allow]]
users = [{LISTED}]
groups = [{GROUPED}]
devices = ["cpu:0", "cpu:1"]
knobs = ["power-limit"]
lowest = 80
"""
# Arguments: the folder of all its files, how long a client may be silent, and at which size its files are full.
_SERVER = """
import resource, signal, sys
from pathlib import Path
from negawatt.hardware.controls import rapl
from negawatt.hardware.guard.audit import AuditLog
from negawatt.hardware.guard.server import Guard
from negawatt.hardware.guard.session import Terms
home = Path(sys.argv[1])
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
guard = Guard(home / "guard.sock", Terms(
    policy=home / "guard.toml", audit=AuditLog(home / "guard.jsonl"), find=lambda: rapl.found(home / "powercap"),
    folder=home / "state", silence_s=float(sys.argv[2])))
signal.signal(signal.SIGTERM, lambda *_: guard.stop())
guard.serve(lambda: print("ready", flush=True))
"""
# Modules are imported before the user changes: they may lie where only root gets.
_USER = """
import json, os, random, signal, socket, sys, time
from pathlib import Path
import negawatt.core.codec, negawatt.core.errors, encodings.idna
from negawatt.hardware.guard.client import Connection, GuardHand, guard_available
uid, path, zone = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
def say(*words):
    print(*words, flush=True)
"""


class GuardHost:
    """`packages` packages in `home`/powercap, all as found at 125 W, and a guard that allows users by `POLICY`."""

    def __init__(self, home: Path, *, packages: int = 3, silence_s: float = 5.0, file_bytes: int | None = None) -> None:
        home.chmod(0o755)
        self.home = home
        self.socket = home / "guard.sock"
        self.policy = home / "guard.toml"
        self.audit = home / "guard.jsonl"
        self.policy.write_text(POLICY)
        SimulatedPowercap(root=home / "powercap", packages=packages, limit_w=FOUND_W)
        self.children: list[subprocess.Popen[str]] = []
        self.arguments = [str(home), str(silence_s), *([str(file_bytes)] if file_bytes else [])]
        self.server = self.start()

    def start(self) -> subprocess.Popen[str]:
        """A guard that is ready."""
        server = self._popen(_SERVER, *self.arguments)
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n", (self.home / "stderr").read_text()
        return server

    def user(self, uid: int, code: str, package: int = 0) -> subprocess.Popen[str]:
        """A process of a user that runs some code with `path`, `zone`, `say` and the client's classes."""
        return self._popen(_USER + code, str(uid), str(self.socket), self.address(package))

    def address(self, package: int = 0) -> str:
        return f"rapl:{self._file(package)}"

    def limit_w(self, package: int = 0) -> float:
        while not (text := self._file(package).read_text()):
            pass  # a plain file is empty for a moment when it is written, as a file of the kernel's never is
        return int(text) * 1e-6

    def limits_w(self) -> list[float]:
        return [self.limit_w(package) for package in range(len(list((self.home / "powercap").glob("intel-rapl:?"))))]

    def as_found_within(self, time_s: float) -> float:
        """Wait for all limits to be as found; how long it took [s]."""
        begun_s = time.monotonic()
        wait_for(lambda: set(self.limits_w()) == {FOUND_W}, time_s)
        return time.monotonic() - begun_s

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM if child is self.server else signal.SIGKILL)
            child.wait(20)
            for stream in (child.stdin, child.stdout):
                if stream:
                    stream.close()

    def _file(self, package: int) -> Path:
        return self.home / "powercap" / f"intel-rapl:{package}" / "constraint_0_power_limit_uw"

    def _popen(self, code: str, *arguments: str) -> subprocess.Popen[str]:
        with (self.home / "stderr").open("a") as errors:
            child = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            )
        self.children.append(child)
        return child


def wait_for(true: Callable[[], bool], time_s: float) -> None:
    """Return as soon as something is true; fail if it is not within that time."""
    until_s = time.monotonic() + time_s
    while not true():
        assert time.monotonic() < until_s, f"not within {time_s} s"
        time.sleep(0.005)


def heard(child: subprocess.Popen[str]) -> str:
    """The next line that a child says."""
    assert child.stdout is not None
    return child.stdout.readline().strip()
