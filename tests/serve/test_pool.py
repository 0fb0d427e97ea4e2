"""The pool: who gets a request, who sleeps, and that nothing is lost on the way."""

from __future__ import annotations

import asyncio
import logging
import time
from itertools import pairwise

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.serving import ServingSetting
from negawatt.serve import pool as pool_module
from negawatt.serve.exchange import Answer, UpstreamError
from negawatt.serve.pool import Pool
from negawatt.serve.replicas import Server, SleepError, State
from negawatt.serve.upstream import UnreachableError
from serve.servers import Worker, request, run, until


class Bench:
    """A pool of some workers with a setting that can be changed."""

    def __init__(self, *workers: Worker, **setting: int) -> None:
        self.workers = workers
        self.setting = ServingSetting(**setting)
        self.pool = Pool(workers, lambda: self.setting)

    def set(self, **setting: int) -> None:
        self.setting = ServingSetting(**setting)

    async def ask(self) -> str:
        answer = await self.pool(request())
        assert isinstance(answer.body, bytes)
        return answer.body.decode()

    @property
    def states(self) -> list[State]:
        return [one.state for one in self.pool.stats.replicas]


class Diary:
    """A sleeper that writes down what it is asked for; each takes a moment, and may fail."""

    answers_asleep = True

    def __init__(self, workers: tuple[Worker, ...], time_s: float = 0.0, fails: int = 0) -> None:
        self.lines: list[str] = []
        self.workers, self.time_s, self.fails = workers, time_s, fails

    async def sleep(self, server: Server, index: int) -> None:
        assert self.workers[index].busy == 0, "a replica was put to sleep with a call in flight"
        await asyncio.sleep(self.time_s)
        self.lines.append(f"sleep {index}")

    async def wake(self, server: Server, index: int) -> None:
        await asyncio.sleep(self.time_s)
        self.lines.append(f"wake {index}")
        if self.fails:
            self.fails -= 1
            raise SleepError(f"replica {index} sleeps on", "it does not serve", "shake it")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_LOOK_S", 0.02)
    monkeypatch.setattr(pool_module, "_ASIDE_S", 0.05)


# ------------------------------------------------------------------------------------------------------- who gets what


def test_requests_go_where_the_fewest_are() -> None:
    """Of 30 at once each of three replicas gets 10."""

    async def test() -> None:
        bench = Bench(Worker("a"), Worker("b"), Worker("c"))
        told = await asyncio.gather(*(bench.ask() for _ in range(30)))
        assert sorted(told) == ["a"] * 10 + ["b"] * 10 + ["c"] * 10
        assert all(one.in_flight == 0 for one in bench.pool.stats.replicas)

    run(test)


def test_more_than_the_limit_wait_in_their_order() -> None:
    """Two replicas with two calls each: never more, and first come, first served."""

    async def test() -> None:
        a, b = Worker("a"), Worker("b")
        bench = Bench(a, b, concurrency=2)
        ended: list[int] = []

        async def one(number: int) -> None:
            await bench.ask()
            ended.append(number)

        await asyncio.gather(*(one(number) for number in range(20)))
        assert (a.most_busy, b.most_busy) == (2, 2)
        assert [number // 4 for number in ended] == [number // 4 for number in range(20)]
        assert bench.pool.stats.waiting == 0

    run(test)


def test_a_limit_that_is_lifted_lets_those_who_wait_go() -> None:
    """They need not wait for a call to end, only for the next look at the setting."""

    async def test() -> None:
        a = Worker("a", time_s=0.2)
        bench = Bench(a, concurrency=1)
        bench.pool.start()
        asked = [asyncio.create_task(bench.ask()) for _ in range(4)]
        await until(lambda: bench.pool.stats.waiting == 3)
        bench.set()
        await until(lambda: a.busy == 4, within_s=0.15)
        await asyncio.gather(*asked)
        await bench.pool.close()

    run(test)


def test_too_many_and_too_long_are_told_to_come_back() -> None:
    """503 at once beyond the bound of those who wait, and for one that has waited for too long."""

    async def test() -> None:
        a = Worker("a", time_s=0.3)
        pool = Pool([a], lambda: ServingSetting(concurrency=1), waiting=2, wait_s=0.1)
        first = asyncio.create_task(pool(request()))
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(pool(request())) for _ in range(2)]
        await asyncio.sleep(0.01)
        begin_s = time.monotonic()
        with pytest.raises(UpstreamError, match="2 requests wait") as refused:
            await pool(request())
        assert refused.value.status == 503
        assert time.monotonic() - begin_s < 0.05
        for told in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(told, UpstreamError)
            assert (told.status, "no replica was free" in told.got) == (503, True)
        assert (await first).status == 200
        assert (a.seen, pool.stats.waiting) == (1, 0)

    run(test)


def test_a_client_that_goes_away_while_it_waits_is_taken_out() -> None:
    """Also at the very moment at which its turn comes: the place goes to the next one, and none is lost."""

    async def test() -> None:
        a = Worker("a", time_s=0.03)
        bench = Bench(a, concurrency=1)
        asked = [asyncio.create_task(bench.ask()) for _ in range(5)]
        await asyncio.sleep(0.01)
        asked[1].cancel()
        asked[3].cancel()
        await asked[0]
        asked[2].cancel()  # it has just been given its place
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in told] == [False, True, True, True, False]
        assert a.seen <= 3
        assert [one.in_flight for one in bench.pool.stats.replicas] == [0]

    run(test)


def test_a_stream_counts_until_it_ends() -> None:
    """Whether it is read to its end, breaks off or is closed."""

    async def test() -> None:
        a = Worker("a", time_s=0.001)
        a.pieces = 3
        bench = Bench(a)

        async def answer() -> Answer:
            told = await bench.pool(request())
            assert bench.pool.stats.replicas[0].in_flight == 1
            return told

        assert [piece async for piece in (await answer()).body] == [b"0", b"1", b"2"]
        assert bench.pool.stats.replicas[0].in_flight == 0
        closed = (await answer()).body
        assert await anext(closed) == b"0"
        await closed.aclose()
        await closed.aclose()
        assert bench.pool.stats.replicas[0].in_flight == 0

    run(test)


# ------------------------------------------------------------------------------------------------------- who is there


def test_no_request_is_lost_when_a_replica_cannot_be_connected_to() -> None:
    """It goes to another one; the one that failed gets no more until it answers a probe."""

    async def test() -> None:
        a, b = Worker("a"), Worker("b")
        bench = Bench(a, b)
        bench.pool.start()
        a.down = True
        assert await asyncio.gather(*(bench.ask() for _ in range(20))) == ["b"] * 20
        assert [one.reachable for one in bench.pool.stats.replicas] == [False, True]
        a.down = False
        await until(lambda: bench.pool.stats.replicas[0].reachable)
        assert a.probed >= 1
        assert await bench.ask() == "a"
        assert any("put aside" in note for note in bench.pool.stats.notes)
        await bench.pool.close()

    run(test)


def test_probes_of_a_dead_replica_grow_rare() -> None:
    """After each the next one comes twice as late, so a host that is gone costs next to nothing."""

    async def test() -> None:
        class Gone(Worker):
            async def __call__(self, exchange: object) -> Answer:
                self.probed += 1
                raise UnreachableError(502, "gone", "the request did not reach it", "start it")

        a, b = Gone("a"), Worker("b")
        bench = Bench(a, b)
        bench.pool.start()
        await asyncio.gather(*(bench.ask() for _ in range(4)))
        first = a.probed
        await asyncio.sleep(0.5)  # at 0.05, 0.15, 0.35
        assert 2 <= a.probed - first <= 4
        await bench.pool.close()

    run(test)


def test_the_only_replica_is_asked_though_it_was_down() -> None:
    """Its clients hear that it is down as long as it is, and are served from the moment at which it is back."""

    async def test() -> None:
        a = Worker("a")
        bench = Bench(a)
        a.down = True
        for _ in range(3):
            with pytest.raises(UnreachableError, match="refused"):
                await bench.ask()
        a.down = False
        assert await bench.ask() == "a"
        assert bench.pool.stats.replicas[0].reachable

    run(test)


# ----------------------------------------------------------------------------------------------------- who is awake


def test_a_replica_ends_its_calls_before_it_sleeps_and_is_ready_before_it_is_asked() -> None:
    """Shrinking loses no call; growing waits for the health check."""

    async def test() -> None:
        a, b = workers = Worker("a", time_s=0.05), Worker("b", time_s=0.05)
        bench, diary = Bench(a, b), Diary(workers)
        bench.pool = Pool(workers, lambda: bench.setting, sleeper=diary)
        bench.pool.start()
        await until(lambda: bench.states == [State.AWAKE, State.AWAKE])
        assert diary.lines == ["wake 0", "wake 1"]  # a gateway that was killed may have left them asleep
        asked = [asyncio.create_task(bench.ask()) for _ in range(4)]
        await asyncio.sleep(0.01)
        bench.set(replicas=1)
        assert await bench.ask() == "a"
        assert sorted(await asyncio.gather(*asked)) == ["a", "a", "b", "b"]
        await until(lambda: bench.states == [State.AWAKE, State.ASLEEP])
        b.health = 503
        bench.set(replicas=2)
        await until(lambda: "wake 1" in diary.lines[2:])
        await asyncio.sleep(0.1)
        assert await asyncio.gather(*(bench.ask() for _ in range(4))) == ["a"] * 4
        b.health = 200
        await until(lambda: bench.states[1] is State.AWAKE)
        assert sorted(await asyncio.gather(*(bench.ask() for _ in range(2)))) == ["a", "b"]
        await bench.pool.close()
        assert diary.lines[2:] == ["sleep 1", "wake 1"]

    run(test)


def test_another_replica_takes_the_place_of_one_that_fails() -> None:
    """With one of two asleep: the request that finds the first one down waits until the second is awake."""

    async def test() -> None:
        a, b = workers = Worker("a"), Worker("b")
        bench, diary = Bench(a, b, replicas=1), Diary(workers, time_s=0.05)
        bench.pool = Pool(workers, lambda: bench.setting, sleeper=diary)
        bench.pool.start()
        await until(lambda: bench.states == [State.AWAKE, State.ASLEEP])
        a.down = True
        assert await asyncio.gather(*(bench.ask() for _ in range(8))) == ["b"] * 8
        a.down = False
        await until(lambda: bench.states == [State.AWAKE, State.ASLEEP])  # as before
        assert await bench.ask() == "a"
        await bench.pool.close()
        assert bench.states == [State.AWAKE, State.AWAKE]
        assert diary.lines[-1] == "wake 1"

    run(test)


def test_a_setting_that_flaps_ends_where_it_should() -> None:
    """Whatever goes on at the time, replicas follow the latest setting, and each sleep is followed by a wake."""

    async def test() -> None:
        workers = tuple(Worker(name, time_s=0.004) for name in "abc")
        bench, diary = Bench(*workers), Diary(workers, time_s=0.007)
        bench.pool = Pool(workers, lambda: bench.setting, sleeper=diary)
        bench.pool.start()
        asked = []
        for number in range(60):
            bench.set(replicas=1 + (number * 7) % 3)
            asked += [asyncio.create_task(bench.ask()) for _ in range(3)]
            await asyncio.sleep(0.003)
        assert len(await asyncio.gather(*asked)) == 180
        bench.set(replicas=2)
        await until(lambda: bench.states == [State.AWAKE, State.AWAKE, State.ASLEEP])
        await bench.pool.close()
        assert "sleep 0" not in diary.lines
        for index in "12":  # a wake where it may have been left asleep, then by turns, and awake in the end
            lines = [line.split()[0] for line in diary.lines if line.endswith(index)]
            assert lines[-1] == "wake"
            assert all(one != next_ for one, next_ in pairwise(lines))

    run(test)


def test_a_replica_that_does_not_wake_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """The others serve meanwhile, and the reason is told."""

    async def test() -> None:
        a, b = workers = Worker("a"), Worker("b")
        bench, diary = Bench(a, b, replicas=1), Diary(workers)
        bench.pool = Pool(workers, lambda: bench.setting, sleeper=diary)
        bench.pool.start()
        await until(lambda: bench.states == [State.AWAKE, State.ASLEEP])
        diary.fails = 2
        bench.set(replicas=2)
        await until(lambda: bench.states[1] is State.AWAKE)
        assert await asyncio.gather(*(bench.ask() for _ in range(3))) == ["a"] * 3
        await until(lambda: bench.pool.stats.replicas[1].reachable)
        assert diary.lines.count("wake 1") == 3
        await bench.pool.close()

    with caplog.at_level(logging.WARNING):
        run(test)
    assert "replica 1 was not woken: replica 1 sleeps on; shake it" in caplog.text


def test_a_wake_that_fails_takes_nobody_out_who_answers() -> None:
    """A command may fail because there is nothing to wake: at the start, or after somebody did it by hand."""

    async def test() -> None:
        a, b = workers = Worker("a"), Worker("b")
        bench, diary = Bench(a, b), Diary(workers, fails=2)
        diary.answers_asleep = False
        bench.pool = Pool(workers, lambda: bench.setting, sleeper=diary)
        bench.pool.start()
        await until(lambda: bench.states == [State.AWAKE, State.AWAKE])
        assert all(one.reachable for one in bench.pool.stats.replicas)
        assert sorted(await asyncio.gather(*(bench.ask() for _ in range(4)))) == ["a", "a", "b", "b"]
        assert "replica 1 answers, though its waking failed" in " ".join(bench.pool.stats.notes)
        await bench.pool.close()
        assert diary.lines == ["wake 0", "wake 1"]  # and nothing is left to wake

    run(test)


def test_a_request_waits_for_the_replacement_that_falls_asleep() -> None:
    """When the only one awake fails at that moment: the other is woken again, and the request is served by it."""

    async def test() -> None:
        a, b = workers = Worker("a"), Worker("b")
        bench, diary = Bench(a, b), Diary(workers, time_s=0.05)
        bench.pool = Pool(workers, lambda: bench.setting, sleeper=diary)
        bench.pool.start()
        await until(lambda: bench.states == [State.AWAKE, State.AWAKE])
        bench.set(replicas=1)
        bench.pool.adjust()
        assert bench.states == [State.AWAKE, State.FALLING]
        a.down = True
        assert await asyncio.gather(*(bench.ask() for _ in range(4))) == ["b"] * 4
        await bench.pool.close()

    run(test)


def test_without_a_sleeper_replicas_only_rest() -> None:
    """They get no calls, and do at once when they are wanted again."""

    async def test() -> None:
        bench = Bench(Worker("a"), Worker("b"), replicas=1)
        bench.pool.start()
        assert bench.states == [State.AWAKE, State.ASLEEP]
        assert await asyncio.gather(*(bench.ask() for _ in range(2))) == ["a", "a"]
        bench.set(replicas=0)
        await until(lambda: bench.states[1] is State.AWAKE)
        assert sorted(await asyncio.gather(*(bench.ask() for _ in range(2)))) == ["a", "b"]
        await bench.pool.close()

    run(test)


def test_a_pool_needs_a_replica() -> None:
    """Without one nobody could answer."""
    with pytest.raises(UsageError, match="without replicas"):
        Pool([], ServingSetting)
