"""A simulated machine whose power limits are leased, and processes that hold them. Used by the tests of leases."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from negawatt.hardware import records
from negawatt.hardware.lease import Lease
from negawatt.testing.powercap import SimulatedPowercap

FOUND_W = 125.0
BAR_S = 2.0
"""So soon after a SIGKILL everything is to be as found [s]."""
# Arguments: seconds between signs of life, the state folder, addresses. `take` makes a lease on these.
_HOLDER = """
import os, random, signal, subprocess, sys, threading, time
from pathlib import Path
from typing import Self
from negawatt.core.errors import HardwareError, HeldError, NegawattError, UsageError
from negawatt.hardware import keeper
from negawatt.hardware.lease import Lease, held, repair
keeper.BEAT_S, home, addresses = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
def take():
    return Lease.take(addresses, owner="child", folder=home)
def say(*words):
    print(*words, flush=True)
def heard():
    return sys.stdin.readline().strip()
"""


class Machine:
    """`packages` packages in `folder`/powercap, all as found at 125 W, and `folder`/state for the records."""

    def __init__(self, folder: Path, packages: int = 2) -> None:
        self.state = folder / "state"
        self.powercap = SimulatedPowercap(root=folder / "powercap", packages=packages)

    def file(self, package: int = 0) -> Path:
        return self.powercap.root / f"intel-rapl:{package}/constraint_0_power_limit_uw"

    def address(self, package: int = 0) -> str:
        return f"rapl:{self.file(package)}"

    def limit_w(self, package: int = 0) -> float:
        return int(self.file(package).read_text() or 0) * 1e-6  # empty for a moment while it is written

    def administrator_sets(self, limit_w: float, package: int = 0) -> None:
        self.file(package).write_text(f"{round(limit_w * 1e6)}\n")

    def take(self, *packages: int, owner: str = "test") -> Lease:
        return Lease.take([self.address(one) for one in packages or (0,)], owner=owner, folder=self.state)

    def record(self, package: int = 0) -> records.Record:
        record = records.load(self.state, f"cpu:{package}")
        assert record is not None
        return record

    def free(self, package: int = 0) -> bool:
        """Whether the package is as found, without a record, and nobody has its lock."""
        if self.limit_w(package) != FOUND_W or f"cpu:{package}" in records.scopes(self.state):
            return False
        lock = records.lock(self.state, f"cpu:{package}")
        if lock is None:
            return False
        records.unlock(lock)
        return True

    @contextmanager
    def holder(self, script: str, *packages: int, beat_s: float = 1.0) -> Iterator[Holder]:
        """A process in a group of its own that runs a script."""
        with Holder(script, self.state, [self.address(one) for one in packages or (0,)], beat_s=beat_s) as holder:
            yield holder


class Holder:
    """A process that runs a script; see `_HOLDER` for what it can use. Killed at the end of the with block."""

    def __init__(
        self,
        script: str,
        state: Path,
        addresses: Sequence[str],
        *,
        beat_s: float = 1.0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _HOLDER + script, str(beat_s), str(state), *addresses],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            env={**os.environ, **(environ or {})},
        )
        self.pid = self.process.pid

    def says(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        """Write it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        self.process.kill()
        self.process.communicate()


def within(seconds: float, condition: Callable[[], bool]) -> float:
    """How long it takes until a condition holds [s]. Fails if that is longer."""
    begin_s = time.monotonic()
    while not condition():
        assert time.monotonic() - begin_s < seconds, f"not within {seconds} s"
        time.sleep(0.002)
    return time.monotonic() - begin_s
