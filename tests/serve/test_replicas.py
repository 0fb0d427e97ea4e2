"""Ways to put replicas to sleep: real commands, real processes, vLLM's own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.serving import ServingSetting
from negawatt.serve.exchange import Answer
from negawatt.serve.pool import Pool
from negawatt.serve.replicas import Commands, SleepError, State, VllmSleep, sleeper_of
from negawatt.serve.upstream import Upstream
from serve.servers import Worker, request, run, server_process, until


def stopped(pid: int) -> bool:
    """Whether the kernel has stopped a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the kernel's process states")
def test_real_processes_are_stopped_and_woken(tmp_path: Path) -> None:
    """The second of two small servers sleeps while it is not wanted, serves again after it, and is left awake."""

    async def test() -> None:
        with server_process() as (first, first_url), server_process() as (second, second_url):
            for index, process in enumerate((first, second)):
                (tmp_path / str(index)).write_text(str(process.pid))
            kill = f"""sh -c 'kill -%s $(cat "{tmp_path}/$1")' sh {{index}} {{url}}"""
            sleeper = Commands(sleep=kill % "STOP", wake=kill % "CONT")
            upstreams = [Upstream(first_url), Upstream(second_url)]
            setting = ServingSetting(replicas=1)
            pool = Pool(upstreams, lambda: setting, sleeper=sleeper)
            pool.start()
            await until(lambda: stopped(second.pid))
            assert not stopped(first.pid)
            assert (await pool(request())).body == b"fine"
            setting = ServingSetting(replicas=2)
            await until(lambda: pool.stats.replicas[1].state is State.AWAKE)
            assert not stopped(second.pid)
            for told in await asyncio.gather(*(pool(request()) for _ in range(6))):
                assert told.body == b"fine"
            setting = ServingSetting(replicas=1)
            await until(lambda: stopped(second.pid))
            await pool.close()
            assert not stopped(second.pid)
            for upstream in upstreams:
                await upstream.close()

    run(test)


def test_a_command_that_fails_says_how() -> None:
    """Its exit code, or that there is none such."""

    async def test() -> None:
        with pytest.raises(SleepError, match="false: it ended with 1"):
            await Commands(sleep="false", wake="true").sleep(Worker(), 0)
        with pytest.raises(SleepError, match="no-such-thing 3: No such file"):
            await Commands(sleep="true", wake="no-such-thing {index}").wake(Worker(), 3)

    run(test)


def test_a_command_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it has started."""
    monkeypatch.setattr("negawatt.serve.replicas.HOOK_S", 0.1)

    async def test() -> None:
        begin_s = time.monotonic()
        with pytest.raises(SleepError, match="did not end within"):
            await Commands(sleep="sh -c 'sleep 60; true'", wake="true").sleep(Worker(), 0)
        assert time.monotonic() - begin_s < 2.0

    run(test)


def test_a_command_that_was_begun_ends_though_nobody_waits_any_more(tmp_path: Path) -> None:
    """A gateway that is told to stop, even twice, does not leave half a wake behind; the probe it was for is over."""
    done = tmp_path / "done"
    commands = Commands(sleep="true", wake=f"sh -c 'sleep 0.4; echo > {done}'")

    async def test() -> None:
        waking = asyncio.create_task(commands.wake(Worker(), 0))
        for _ in range(2):
            await asyncio.sleep(0.1)
            waking.cancel()
        assert isinstance((await asyncio.gather(waking, return_exceptions=True))[0], asyncio.CancelledError)
        assert done.exists()

    run(test)


def test_a_replica_is_put_to_sleep_only_when_the_wake_before_has_ended(tmp_path: Path) -> None:
    """A request gets through while the probe's command still runs, and then fewer replicas are wanted."""
    diary = tmp_path / "diary"
    hook = f"""sh -c 'echo $0 $1 >> {diary}; sleep 0.2; echo $0 $1 done >> {diary}' %s {{index}}"""

    async def test() -> None:
        workers = Worker("a"), Worker("b")
        setting = ServingSetting()
        pool = Pool(workers, lambda: setting, sleeper=Commands(sleep=hook % "sleep", wake=hook % "wake"))
        pool.start()
        await until(lambda: all(one.state is State.AWAKE for one in pool.stats.replicas))
        diary.write_text("")
        second = pool._replicas[1]
        second.must_wake = True
        pool._failed(second, "for this test")
        await until(lambda: "wake 1" in diary.read_text())
        pool._recovered(second)
        setting = ServingSetting(replicas=1)
        await until(lambda: pool.stats.replicas[1].state is State.ASLEEP)
        assert diary.read_text().splitlines() == ["wake 1", "wake 1 done", "sleep 1", "sleep 1 done"]
        await pool.close()
        assert diary.read_text().splitlines()[4:] == ["wake 1", "wake 1 done"]

    run(test)


@pytest.mark.parametrize(("wake", "sleep"), [("", "true"), ("true", ""), ("true", "echo 'open")])
def test_commands_come_in_pairs_that_can_be_taken_apart(wake: str, sleep: str) -> None:
    """Half of a pair would put replicas to sleep for good."""
    with pytest.raises(UsageError, match=r"--(wake|sleep)"):
        Commands(wake=wake, sleep=sleep)


def test_options_name_the_way_to_sleep() -> None:
    """Nothing, vLLM's own, or commands."""
    assert sleeper_of(wake="", sleep="") is None
    assert isinstance(sleeper_of(wake="vllm", sleep="vllm"), VllmSleep)
    assert isinstance(sleeper_of(wake="start {index}", sleep="stop {index}"), Commands)
    with pytest.raises(UsageError, match="--sleep"):
        sleeper_of(wake="start {index}", sleep="")


def test_vllm_is_asked_by_its_own_api() -> None:
    """POST /sleep?level=1 and /wake_up; a server without them is told apart."""

    async def test() -> None:
        seen: list[tuple[str, bytes]] = []

        class Vllm(Worker):
            async def __call__(self, exchange: object) -> Answer:
                seen.append((exchange.method, exchange.target))
                return Answer(status=self.health, headers=(), body=b"")

        server = Vllm()
        await VllmSleep().sleep(server, 0)
        await VllmSleep().wake(server, 0)
        assert seen == [("POST", b"/sleep?level=1"), ("POST", b"/wake_up")]
        server.health = 404
        with pytest.raises(SleepError, match="gave 404"):
            await VllmSleep().sleep(server, 0)
        await VllmSleep().wake(server, 0)  # what cannot sleep is awake
        server.health = 500
        with pytest.raises(SleepError, match="gave 500"):
            await VllmSleep().wake(server, 0)

    run(test)
