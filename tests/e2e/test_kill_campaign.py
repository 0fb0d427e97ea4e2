"""Hundreds of SIGKILLs at random points of tuning: the limits of the machine end up as found, each time, at once.

Children take a lease on a simulated GPU and a simulated processor package, set limits and give the lease back, over and
over, as a tuning job does. Each is killed at a random point of that: while it takes, sets, releases, or in between. In
a part of the cases its watchdog is killed with it, and the next `repair` has to do it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from negawatt.testing.nvml import SimulatedGpu, SimulatedNvml
from negawatt.testing.powercap import SimulatedPowercap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no controls on this system")
BAR_S = 2.0
LANES = 4
"""Children at a time, each with devices of its own."""
FOUND_W, CPU_FOUND_W = 250.0, 125.0
# Arguments: the folder of powercap and records, kills, seed. It forks, so that a child is there at once; what is killed
# is a process that has a lease of its own and starts watchdogs of its own all the same.
_CAMPAIGN = """
import json, os, random, signal, sys, time
import pynvml
from pathlib import Path
from negawatt.hardware import records
from negawatt.hardware.controls import open_controls
from negawatt.hardware.lease import Lease, repair

folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
lanes = [json.loads(line) for line in sys.argv[4:]]
home, dice = folder / "state", random.Random(seed)
watched = [open_controls(lane) for lane in lanes]
gpus = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{lane}") for lane in range(len(lanes))]
def state(lane):
    # NVML tells of no clock lock: an idle simulated GPU runs at its highest clock, or that of the lock.
    return [control.read() for control in watched[lane]] + [pynvml.nvmlDeviceGetClockInfo(gpus[lane], 0)]
found = [state(lane) for lane in range(len(lanes))]
scopes = [{control.info.scope for control in controls} for controls in watched]

def tune(lane, dice):
    while True:
        with Lease.take(lanes[lane], owner=f"lane {lane}", folder=home) as lease:
            for _ in range(dice.randrange(60)):
                address = dice.choice(lanes[lane])
                info = lease.infos[address]
                top = lease.found[address] or info.highest
                values = [value for value in info.values if value <= top]
                lease.set(address, dice.choice(values) if values else dice.uniform(info.lowest, top))
                time.sleep(dice.uniform(0.0, 0.01))

def start(lane):
    child, luck = os.fork(), dice.random()
    if child:
        return child
    try:
        tune(lane, random.Random(luck))
    finally:
        os.write(2, b"a child ended by itself\\n")
        os._exit(9)

def watchdogs(child):
    return [int(pid) for thread in os.listdir(f"/proc/{child}/task")
            for pid in Path(f"/proc/{child}/task/{thread}/children").read_text().split()]

def changed(lane):
    return state(lane) != found[lane]

def settled(lane):
    # As found, without a record, and nobody has the locks: nobody will write any more.
    if changed(lane) or scopes[lane] & set(records.scopes(home)):
        return False
    locks = [records.lock(home, scope) for scope in scopes[lane]]
    for lock in locks:
        if lock is not None:
            records.unlock(lock)
    return None not in locks

def kill(lane, child):
    both = dice.random() < 0.2
    if both:
        os.kill(child, signal.SIGSTOP)
        for pid in watchdogs(child):
            os.kill(pid, signal.SIGKILL)
    dirty = changed(lane)
    os.kill(child, signal.SIGKILL)
    at_s = time.monotonic()
    os.waitpid(child, 0)
    outcomes = []
    if both:
        at_s = time.monotonic()
        outcomes = [str(one.outcome) for one in repair(home) if one.scope in scopes[lane]]
    found_s = at_s
    while not settled(lane) and time.monotonic() < at_s + 30.0:
        if changed(lane):
            found_s = time.monotonic()
        time.sleep(0.002)
    return {"both": both, "dirty": dirty, "repaired": outcomes, "settled": settled(lane),
            "after_s": found_s - at_s, "settled_s": time.monotonic() - at_s}

def fate():
    return time.monotonic() + dice.choice((dice.uniform(0.0, 0.5), dice.uniform(0.4, 1.2)))

alive = {lane: (start(lane), fate()) for lane in range(len(lanes))}
for number in range(kills):
    lane, (child, due_s) = min(alive.items(), key=lambda item: item[1][1])
    time.sleep(max(0.0, due_s - time.monotonic()))
    print(json.dumps(kill(lane, child)), flush=True)
    alive[lane] = (start(lane), fate())
for lane, (child, _) in alive.items():
    print(json.dumps(kill(lane, child)), flush=True)
"""


def campaign(folder: Path, kills: int, seed: int) -> list[dict[str, object]]:
    """What came of so many kills."""
    powercap = SimulatedPowercap(root=folder / "powercap", packages=LANES, limit_w=CPU_FOUND_W)
    gpus = [SimulatedGpu(uuid=f"GPU-{lane}", limit_w=FOUND_W) for lane in range(LANES)]
    with SimulatedNvml(gpus) as nvml:
        lanes = [
            json.dumps(
                [
                    f"nvidia:GPU-{lane}:power-limit",
                    f"nvidia:GPU-{lane}:clock-limit",
                    f"rapl:{powercap.root}/intel-rapl:{lane}/constraint_0_power_limit_uw",
                ]
            )
            for lane in range(LANES)
        ]
        done = subprocess.run(
            [sys.executable, "-c", _CAMPAIGN, str(folder), str(kills), str(seed), *lanes],
            env={**os.environ, **nvml.environ},
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        limits = [(gpu.limit_w, gpu.clocks_mhz) for gpu in nvml.settings]
        assert limits == [(FOUND_W, None)] * LANES
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(fates: list[dict[str, object]], kills: int) -> None:
    """Every kill ended as found, in time; and the campaign was one: many met limits that were changed."""
    assert len(fates) == kills + LANES
    assert [fate for fate in fates if not fate["settled"]] == []
    assert all("failed" not in fate["repaired"] and "left" not in fate["repaired"] for fate in fates)
    assert max(fate["after_s"] for fate in fates if not fate["both"]) < BAR_S  # else somebody has to call `repair`
    assert any(fate["dirty"] for fate in fates if not fate["both"])
    assert any("restored" in fate["repaired"] for fate in fates if fate["both"])


def test_kills_end_as_found(tmp_path: Path) -> None:
    """Twenty children are killed, some with their watchdogs; all limits are as found."""
    check(campaign(tmp_path, 20, seed=4), 20)


@pytest.mark.slow
def test_five_hundred_kills_end_as_found(tmp_path: Path) -> None:
    """Five hundred children are killed; the worst time until all is as found is within the bar."""
    fates = campaign(tmp_path, 500, seed=2)
    for both in (False, True):
        mine = [fate for fate in fates if fate["both"] is both]
        as_found_s, settled_s = (max(fate[when] for fate in mine) for when in ("after_s", "settled_s"))
        dirty = sum(bool(fate["dirty"]) for fate in mine)
        print(
            f"watchdog killed, too: {both}: {len(mine)} kills, {dirty} met changed limits; "
            f"at the latest as found after {as_found_s:.3f} s, device free after {settled_s:.3f} s"
        )
    check(fates, 500)
