"""The controller's hands: levels, traffic, and what holds when something fails. Small plants in real time."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.errors import HardwareError, SensorError, UsageError
from negawatt.core.reading import Source
from negawatt.core.serving import Cost, Outcome, ServingOptions, ServingSetting
from negawatt.hardware.lease import Lease
from negawatt.serve import turning as turning_module
from negawatt.serve.exchange import Exchange
from negawatt.serve.levels import MOST, MOST_WAIT, rungs
from negawatt.serve.pool import Pool
from negawatt.serve.power import PowerHand
from negawatt.serve.replicas import State
from negawatt.serve.traffic import Traffic, p99
from negawatt.serve.turning import Pace, Turning
from negawatt.testing.powercap import SimulatedPowercap
from serve.servers import Worker, request, until

URLS = tuple(f"http://{name}" for name in "abcdef")


class Payer:
    """Accounts that write down who was begun and ended."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[tuple[str, int]] = []

    def begin(self, exchange: Exchange) -> None:
        self.begun.append(exchange.id)

    def so_far(self, exchange: Exchange) -> Cost:
        return Cost(energy_j=1.0, energy_sd_j=0.1, source=Source.COUNTER)

    def end(self, exchange: Exchange, status: int) -> None:
        self.ended.append((exchange.id, status))


# --------------------------------------------------------------------------------------------------------------- levels


@settings(max_examples=50)
@given(
    replicas=st.integers(1, 6),
    safe=st.builds(
        ServingSetting,
        window_s=st.sampled_from([0.0, 0.01, 0.1]),
        max_batch=st.sampled_from([1, 16, 64]),
        replicas=st.integers(0, 6),
        limit_fraction=st.sampled_from([0.6, 1.0]),
    ),
    lowest=st.one_of(st.none(), st.floats(0.1, 0.95)),
)
def test_levels_are_few_and_each_is_expected_to_draw_less(
    replicas: int, safe: ServingSetting, lowest: float | None
) -> None:
    """The safe setting is the first, untouched; none turns more than it may, nor can break the promise by itself."""
    found = rungs(ServingOptions(upstreams=URLS[:replicas], setting=safe, p99_s=0.5), lowest_fraction=lowest)
    assert 1 <= len(found) <= MOST
    assert found[0].setting == safe
    efforts = [rung.level.effort for rung in found]
    assert efforts == sorted(efforts, reverse=True)
    assert len({rung.setting for rung in found}) == len({rung.level.name for rung in found}) == len(found)
    for rung in found:
        assert safe.window_s <= rung.setting.window_s <= MOST_WAIT * 0.5
        assert 1 <= rung.level.awake <= min(safe.replicas or replicas, replicas)
        assert rung.setting.limit_fraction <= safe.limit_fraction
        assert lowest is not None or rung.setting.limit_fraction == safe.limit_fraction
        assert rung.setting.replicas or rung.level.awake == replicas
    assert found[-1].level.awake == 1


@pytest.mark.parametrize(("p99_s", "window_s"), [(None, 0.0), (0.0, 0.0), (0.1, 0.06)])
def test_control_takes_a_promise_that_can_be_kept(p99_s: float | None, window_s: float) -> None:
    """Without one, or with a window that uses it up, there is nothing to hold on to."""
    with pytest.raises(UsageError, match="p99"):
        rungs(ServingOptions(upstreams=URLS[:1], setting=ServingSetting(window_s=window_s), p99_s=p99_s))


# -------------------------------------------------------------------------------------------------------------- traffic


def test_traffic_counts_what_had_work_done_and_passes_all_on() -> None:
    """Cached and refused requests do not count, a failed one does, and one that was given up late was late."""
    payer, now = Payer(), [100.0]
    traffic = Traffic(payer, p99_s=0.5, clock=lambda: now[0])
    ends = [
        (Outcome.ANSWERED, 200, 0.1),
        (Outcome.ANSWERED, 404, 0.6),
        (Outcome.ANSWERED, 503, 0.1),
        (Outcome.CACHED, 200, 0.0),
        (Outcome.REFUSED, 413, 0.0),
        (Outcome.FAILED, 502, 0.1),
        (Outcome.CANCELLED, 0, 0.2),
        (Outcome.CANCELLED, 0, 0.7),
    ]
    asked = [request() for _ in range(len(ends) + 1)]
    for exchange in asked:
        exchange.received_s = now[0]
        traffic.begin(exchange)
    for exchange, (outcome, status, time_s) in zip(asked, ends, strict=False):
        now[0] = 100.0 + time_s
        exchange.outcome = outcome
        traffic.end(exchange, status)
    window = traffic.cut(2)
    assert (window.arrived, window.finished, window.late, window.failed, window.in_flight) == (7, 5, 2, 2, 1)
    assert (traffic.arrived, traffic.p99_s) == (7, pytest.approx(0.7))
    assert traffic.so_far(asked[-1]).energy_j == 1.0
    assert payer.begun == [exchange.id for exchange in asked]
    assert payer.ended == [(exchange.id, status) for exchange, (_, status, _) in zip(asked, ends, strict=False)]
    now[0] += 61.0
    assert traffic.p99_s is None
    assert traffic.cut(2).level == 2


@given(st.lists(st.floats(0.0, 1e3), min_size=1))
def test_p99_is_the_least_time_within_which_99_of_100_end(times_s: list[float]) -> None:
    """By definition of the nearest rank."""
    found = p99(times_s)
    assert found in times_s
    assert sum(time_s <= found for time_s in times_s) >= 0.99 * len(times_s)
    assert sum(time_s < found for time_s in times_s) < 0.99 * len(times_s)
    assert p99([]) is None


# --------------------------------------------------------------------------------------------------------------- plants


class Plant:
    """Three workers behind a pool and a controller, on a clock that runs `fast` times as fast as ours.

    Its meter counts 20 W, 50 W for each replica that is awake, and 10 W for each request that is worked on; all that a
    fifth less where up to 32 go together, and a tenth less where up to 8 do.
    """

    def __init__(self, *, fast: float = 20.0, p99_s: float = 4.0, time_s: float = 0.002, at_once: int = 4) -> None:
        self.fast, self.p99_s = fast, p99_s
        self.workers = [Worker(name, time_s=time_s, at_once=at_once) for name in "abc"]
        self.energy_j, self.read_s = 0.0, self.clock()
        self.fault: Exception | None = None
        self.still = False
        options = ServingOptions(upstreams=URLS[:3], p99_s=p99_s, control=True)
        pace = Pace(look_s=0.25 / fast, window_s=1.0)
        self.turning = Turning(options, Payer(), joules=self.joules, pace=pace, clock=self.clock)
        self.pool = Pool(self.workers, self.turning.setting)
        self.answers = 0

    def clock(self) -> float:
        return time.monotonic() * self.fast

    def joules(self) -> float:
        if self.fault:
            raise self.fault
        now_s = self.clock()
        awake = sum(one.state is not State.ASLEEP for one in self.pool.stats.replicas)
        power_w = 20.0 + 50.0 * awake + 10.0 * sum(worker.busy for worker in self.workers)
        power_w *= {1: 1.0, 8: 0.9, 32: 0.8}[self.turning.setting().max_batch]
        self.energy_j += 0.0 if self.still else power_w * (now_s - self.read_s)
        self.read_s = now_s
        return self.energy_j

    async def ask(self) -> None:
        exchange = request()
        exchange.received_s = self.clock()
        traffic = self.turning.traffic
        traffic.begin(exchange)
        answer = await self.pool(exchange)
        traffic.end(exchange, answer.status)
        self.answers += 1

    async def load(self, rate_per_s: float, until_: Callable[[], bool], within_s: float = 60.0) -> float:
        """Requests at a rate, until a condition holds; how long that takes, as the plant's clock goes [s]."""
        begin_s, asked, tasks = self.clock(), 0, set()
        while not until_():
            due = int((self.clock() - begin_s) * rate_per_s)
            for _ in range(due - asked):
                task = asyncio.create_task(self.ask())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            asked = due
            assert self.clock() - begin_s < within_s, f"not within {within_s} s: {self.turning.told()}"
            await asyncio.sleep(0.001)
        self.unanswered = tasks
        return self.clock() - begin_s

    @asynccontextmanager
    async def running(self) -> Iterator[None]:
        self.pool.start()
        self.turning.start()
        try:
            yield
        finally:
            await asyncio.gather(*getattr(self, "unanswered", ()))
            await self.turning.close()
            await self.pool.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a test on an event loop, which must end without any task left."""

    async def alone() -> None:
        await test()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks that were left: {left}"

    asyncio.run(alone())


@pytest.mark.slow
def test_little_load_is_served_by_one_replica_and_a_tenfold_step_is_met_within_seconds() -> None:
    """From safe, level by level, to the one that draws least; with 10 times the load back, and the promise holds."""

    async def test() -> None:
        plant = Plant(fast=4.0, p99_s=2.0, time_s=0.01, at_once=3)  # each replica takes 75 requests a second
        async with plant.running():

            def lowest() -> bool:
                return [one.state for one in plant.pool.stats.replicas][1:] == [State.ASLEEP] * 2

            await plant.load(20.0, lowest, within_s=120.0)
            assert plant.turning.setting().replicas == 1
            took_s = await plant.load(200.0, lambda: not plant.turning.setting().replicas, within_s=5.0)
            assert took_s < 3.0
            begin_s = plant.clock()
            await plant.load(200.0, lambda: plant.clock() - begin_s > 4.0)
            plant.turning.traffic._lately.clear()  # what follows is to be judged by itself
            begin_s = plant.clock()
            await plant.load(200.0, lambda: plant.clock() - begin_s > 8.0)
            seen_s = plant.turning.traffic.p99_s
            assert seen_s is not None
            assert seen_s < 2.0
            told = plant.turning.told()
            assert "of a sudden" in " ".join(change["note"] for change in told["history"])
            assert told["promise_p99_s"] == 2.0
        assert plant.turning.setting() == ServingSetting()

    run(test)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SensorError("rapl is gone", "no joules", "look at it"), "the meter fails: rapl is gone; look at it"),
        (ZeroDivisionError("of the sensor's own"), "ZeroDivisionError: of the sensor's own"),
    ],
)
def test_whatever_fails_the_safe_setting_holds_and_requests_go_on(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, however often it fails, and told; when it is over the controller learns again."""

    async def test() -> None:
        plant = Plant()
        async with plant.running():
            await plant.load(5.0, lambda: plant.turning.told()["level"] > 0)
            plant.fault = error
            await plant.load(5.0, lambda: plant.turning.told()["level"] == 0, within_s=10.0)
            answers, begin_s = plant.answers, plant.clock()
            await plant.load(5.0, lambda: plant.clock() - begin_s > 5.0)
            assert plant.answers > answers
            assert plant.turning.setting() == ServingSetting()
            assert plant.turning.told()["notes"] == [reason]
            assert reason in plant.turning.told()["note"]
            plant.fault = None
            await plant.load(5.0, lambda: plant.turning.told()["level"] > 0, within_s=120.0)

    with caplog.at_level(logging.WARNING):
        run(test)
    assert [record.message for record in caplog.records if reason in record.message] == [
        f"the safe setting holds for a while: {reason}"
    ]


def test_a_meter_that_stands_still_is_no_meter() -> None:
    """Its last number is not taken for one of now."""

    async def test() -> None:
        plant = Plant(fast=40.0)
        async with plant.running():
            await plant.load(5.0, lambda: plant.turning.told()["level"] > 0)
            plant.still = True
            await plant.load(5.0, lambda: bool(plant.turning.told()["notes"]), within_s=15.0)
            assert "for more than 5 s" in plant.turning.told()["notes"][0]
            assert plant.turning.told()["level"] == 0

    run(test)


def test_failing_requests_bring_the_safe_setting_back() -> None:
    """Upstream may not like what was turned: 5 of 100 answers of 503 are enough."""

    async def test() -> None:
        plant = Plant()
        async with plant.running():
            await plant.load(20.0, lambda: plant.turning.told()["level"] > 0)
            for _ in range(5):
                exchange = request()
                exchange.received_s = plant.clock()
                plant.turning.traffic.begin(exchange)
                plant.turning.traffic.end(exchange, 503)
            await plant.load(20.0, lambda: plant.turning.told()["level"] == 0, within_s=10.0)
            assert "failed" in plant.turning.told()["note"]

    run(test)


# ---------------------------------------------------------------------------------------------------------- power limit


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
