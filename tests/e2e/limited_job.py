"""A job on the first simulated GPU whose steps take longer under a lower power limit.

Usage: limited_job.py STEPS [WAY]. WAY is how it tells them: "lines" of JSON, "torch" (an optimizer steps) or "silent".
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pynvml

DEMAND_W, STEP_S = 240.0, 0.01


def slowdown(limit_w: float) -> float:
    """How much longer a step takes under a limit."""
    lack = max(0.0, 1.0 - limit_w / DEMAND_W)
    return 1.0 + 0.2 * lack + 2.0 * lack**3


def steps(count: int, way: str) -> None:
    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    if way == "torch":
        import torch

        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1)
    progress = Path(os.environ.get("NEGAWATT_PROGRESS", os.devnull))
    until_s = time.perf_counter()
    for _ in range(count):
        limit_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3
        until_s = max(until_s, time.perf_counter() - STEP_S) + STEP_S * slowdown(limit_w)
        time.sleep(max(0.0, until_s - time.perf_counter()))
        if way == "lines":
            with progress.open("a", encoding="ascii") as file:
                file.write('{"work": 1}\n')
        elif way == "torch":
            optimizer.step()


if __name__ == "__main__":
    steps(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "lines")
