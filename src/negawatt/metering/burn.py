"""Burn: keep this host's CPUs busy for a part of the time, to see what they draw at that load."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PERIOD_S = 0.05
"""Work and rest take turns in this time: short against any power meter's window, long against the scheduler's."""


@contextmanager
def burning(load_fraction: float, cpus: int) -> Iterator[None]:
    """Keep so many logical CPUs busy for this part of the time, until the block ends; nothing runs at 0."""
    command = [sys.executable, "-m", "negawatt.metering.burn", str(load_fraction)]
    workers = [subprocess.Popen(command) for _ in range(cpus if load_fraction > 0 else 0)]
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()


def burn(load_fraction: float) -> None:
    """Keep one CPU busy for this part of the time, until the process that asked for it is gone."""
    parent = os.getppid()
    while os.getppid() == parent:
        begin_s = time.perf_counter()
        while time.perf_counter() - begin_s < load_fraction * PERIOD_S:
            pass
        time.sleep(max(0.0, PERIOD_S - (time.perf_counter() - begin_s)))


if __name__ == "__main__":
    burn(float(sys.argv[1]))
