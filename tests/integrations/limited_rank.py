"""One rank of a data-parallel job on simulated GPUs whose steps take longer under a lower limit.

Usage: limited_rank.py RANK WORLD RENDEZVOUS STEPS. Prints what was tuned, and the limit after each step, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

rank, world, rendezvous, count = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
os.environ["CUDA_VISIBLE_DEVICES"] = str(rank)

import pynvml  # noqa: E402 -- the rank's GPU is chosen first
import torch  # noqa: E402
from torch import distributed  # noqa: E402

import negawatt  # noqa: E402
from negawatt.core.codec import to_json  # noqa: E402
from negawatt.integrations.limits import tune_limits  # noqa: E402
from negawatt.tuning.online import Pace  # noqa: E402

PACE = Pace(warmup_s=0.2, settle_s=0.3, part_s=0.3, parts=4, most_parts=6, precision_fraction=0.02, hold_part_s=0.5)

if world > 1:
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
pynvml.nvmlInit()
gpu = pynvml.nvmlDeviceGetHandleByIndex(rank)
weight = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.1)
limits = []
with negawatt.meter("rank"), tune_limits(optimizer, max_slowdown=0.1, pace=PACE) as tuning:
    for _ in range(count):
        limit_w = pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1e3
        lack = max(0.0, 1.0 - limit_w / 240.0)
        time.sleep(0.01 * (1.0 + 0.2 * lack + 2.0 * lack**3))
        if world > 1:
            distributed.all_reduce(torch.ones(1))
        optimizer.step()
        limits.append(limit_w)
after_w = pynvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1e3
tuned = to_json(tuning.tuned) if tuning.tuned else None
print(json.dumps({"tuned": tuned, "reason": tuning.reason, "limits": limits, "after_w": after_w}))
