"""The controller's hands: levels, traffic, and what holds when something fails. Small plants in real time."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from negawatt.core.errors import SensorError
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.serve.pool import Pool
from negawatt.serve.replicas import State
from negawatt.serve.times import Times
from negawatt.serve.turning import Pace, Turning
from serve.servers import URLS, Payer, Worker, request, run


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
        self.stuck: threading.Event | None = None
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
        if self.stuck:
            self.stuck.wait()
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
            plant.turning.traffic._minute = Times()
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


def test_a_meter_that_hangs_holds_up_nothing() -> None:
    """Arrivals are looked at all the same, and before long the safe setting holds."""

    async def test() -> None:
        plant = Plant(fast=40.0)
        async with plant.running():
            await plant.load(5.0, lambda: plant.turning.told()["level"] > 0)
            plant.stuck = threading.Event()
            await plant.load(5.0, lambda: plant.turning.told()["level"] == 0, within_s=15.0)
            assert "no answer for more than 5 s" in plant.turning.told()["note"]
            plant.stuck.set()
            plant.stuck = None
            await plant.load(5.0, lambda: plant.turning.told()["level"] > 0, within_s=120.0)

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
