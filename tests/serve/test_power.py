"""The power limit in the hands of a controller: two simulated packages and a real lease on them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from negawatt.core.errors import HardwareError
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.hardware.lease import Lease
from negawatt.serve import turning as turning_module
from negawatt.serve.power import PowerHand
from negawatt.serve.turning import Pace, Turning
from negawatt.testing.powercap import SimulatedPowercap
from serve.servers import URLS, Payer, request, run, until


class Machine:
    """Two packages, found limited to 125 W each, and the lease on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tree = SimulatedPowercap(root=folder / "powercap", packages=2)

    @property
    def files(self) -> list[Path]:
        return sorted(self.tree.root.glob("intel-rapl:?/constraint_0_power_limit_uw"))

    @property
    def limits_w(self) -> list[float]:
        return [int(file.read_text() or 0) * 1e-6 for file in self.files]

    def hand(self) -> PowerHand:
        return PowerHand(
            Lease.take([f"rapl:{file}" for file in self.files], owner="test", folder=self.folder / "state")
        )


def limited(machine: Machine, fraction: float = 0.5, pace: Pace | None = None) -> Turning:
    """A controller whose safe setting has a power limit."""
    options = ServingOptions(upstreams=URLS[:1], setting=ServingSetting(limit_fraction=fraction), p99_s=1.0)
    return Turning(
        options, Payer(), joules=time.monotonic, power=machine.hand(), pace=pace or Pace(look_s=0.01, window_s=0.1)
    )


def test_the_power_limit_is_set_in_part_and_put_back(tmp_path: Path) -> None:
    """Half of the way from the limit as found to the lowest; as found after it, also when closed twice."""
    machine = Machine(tmp_path)

    async def test() -> None:
        turning = limited(machine)
        lowest_w = turning._power.lowest_fraction * 125.0
        turning.start()
        half_w = (125.0 + lowest_w) / 2
        await until(lambda: turning.told()["power_limit"]["limit_w"] < 250.0)
        assert machine.limits_w == pytest.approx([half_w] * 2, abs=0.5)
        told = turning.told()["power_limit"]
        assert told == {"scopes": ["cpu:0", "cpu:1"], "limit_w": pytest.approx(2 * half_w)}
        assert any("power limit at 0%" in name for name in turning.told()["levels"])
        await turning.close()
        await turning.close()
        assert machine.limits_w == [125.0, 125.0]

    run(test)


def test_a_limit_that_is_held_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand notices that somebody else has changed it: then it is theirs, and turned no more."""
    monkeypatch.setattr(turning_module, "RENEW_S", 0.05)
    machine = Machine(tmp_path)

    async def test() -> None:
        turning = limited(machine)
        turning.start()
        await until(lambda: machine.limits_w[0] < 125.0)
        machine.files[0].write_text("99000000\n")
        await until(lambda: "the power limit could not be set" in turning.told()["note"])
        assert turning.told()["power_limit"] is None
        assert not any("power limit at" in name for name in turning.told()["levels"])
        await turning.close()
        assert machine.limits_w == [99.0, 125.0]

    run(test)


def test_a_device_that_hangs_is_doubted_and_put_back_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The safe setting holds meanwhile; what was on its way to the device comes before the putting back."""
    monkeypatch.setattr(turning_module, "_WRITE_S", 0.1)
    machine, stuck = Machine(tmp_path), threading.Event()

    async def test() -> None:
        turning = limited(machine)
        lease = turning._power._hand
        really = lease.set

        def hangs(address: str, value: float) -> float:
            stuck.wait(10.0)
            return really(address, value)

        monkeypatch.setattr(lease, "set", hangs)
        turning.start()
        await until(lambda: any("not put back yet" in note for note in turning.told()["notes"]), within_s=2.0)
        assert "has not answered for 0.1 s" in turning.told()["note"]
        assert (turning.told()["power_limit"], turning.told()["level"]) == (None, 0)
        assert machine.limits_w == [125.0, 125.0]
        stuck.set()
        await until(turning._writing.done)
        assert machine.limits_w == [125.0, 125.0]
        await turning.close()

    run(test)


def test_a_limit_at_its_lowest_leaves_nothing_to_turn(tmp_path: Path) -> None:
    """It is said, and nothing is held."""
    machine = Machine(tmp_path)
    for file in machine.files:
        file.write_text("1000000\n")
    with pytest.raises(HardwareError, match="the lowest that they take"):
        machine.hand()
    with pytest.raises(HardwareError, match="the lowest that they take"):
        machine.hand()  # not held by the first one


_GATEWAY = """
import asyncio, sys, time
from pathlib import Path
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.hardware.lease import Lease
from negawatt.serve.power import PowerHand
from negawatt.serve.turning import Turning
async def main():
    hand = PowerHand(Lease.take(sys.argv[2:], owner="gateway", folder=Path(sys.argv[1])))
    options = ServingOptions(upstreams=("http://a",), setting=ServingSetting(limit_fraction=0.0), p99_s=1.0)
    turning = Turning(options, None, joules=time.monotonic, power=hand)
    turning.start()
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_a_gateway_that_is_killed_leaves_the_limits_as_found(tmp_path: Path) -> None:
    """SIGKILL has no handlers: the watchdog puts them back."""
    machine = Machine(tmp_path)
    argv = [sys.executable, "-c", _GATEWAY, str(tmp_path / "state"), *(f"rapl:{file}" for file in machine.files)]

    async def test() -> None:
        with subprocess.Popen(argv) as process:
            try:
                await until(lambda: max(machine.limits_w) < 125.0, within_s=20.0)
            finally:
                os.kill(process.pid, signal.SIGKILL)
        await until(lambda: machine.limits_w == [125.0, 125.0], within_s=5.0)

    run(test)


@pytest.mark.slow
def test_the_power_limit_follows_the_load(tmp_path: Path) -> None:
    """With little load the limit goes down to the lowest; energy falls, and requests take a little longer."""
    machine = Machine(tmp_path)
    fast, energy_j, read_s = 5.0, 0.0, time.monotonic()

    def clock() -> float:
        return time.monotonic() * fast

    batch = 1

    def joules() -> float:
        nonlocal energy_j, read_s
        now_s = time.monotonic()
        saved = {1: 1.0, 8: 0.9, 32: 0.8}[batch]
        energy_j += saved * sum(machine.limits_w) * (now_s - read_s) * fast
        read_s = now_s
        return energy_j

    async def test() -> None:
        nonlocal batch
        options = ServingOptions(upstreams=URLS[:1], p99_s=4.0, control=True)
        pace = Pace(look_s=0.25 / fast, window_s=1.0)
        turning = Turning(options, Payer(), joules=joules, power=machine.hand(), pace=pace, clock=clock)
        turning.start()
        begin_s = time.monotonic()
        while machine.limits_w[0] > turning_lowest(machine):
            assert time.monotonic() - begin_s < 30.0, turning.told()
            batch = turning.setting().max_batch
            exchange = request()
            exchange.received_s = clock()
            turning.traffic.begin(exchange)
            await asyncio.sleep(0.005)
            turning.traffic.end(exchange, 200)
        await turning.close()
        assert machine.limits_w == [125.0, 125.0]

    run(test)


def turning_lowest(machine: Machine) -> float:
    """The lowest limit that a package takes [W]."""
    return machine.tree.design_w * 0.3
