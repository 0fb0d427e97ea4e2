"""Replicas: the servers behind a pool, and the ways to put them to sleep and wake them.

A replica that sleeps gets no requests. What that saves is up to the way: a command of the operator's (pause a
container, suspend a machine) or vLLM's sleep mode; without any, it only stays idle, and the others work fuller.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, final

from negawatt.core.errors import NegawattError, UsageError
from negawatt.serve.exchange import Exchange, Stage, closed

HOOK_S = 300.0
"""A command that puts a replica to sleep or wakes it is ended after this long [s]: large models load for minutes."""


class Server(Stage, Protocol):
    """A stage that is one inference server."""

    @property
    def url(self) -> str:
        """Its base URL."""


class Sleeper(Protocol):
    """A way to put replicas to sleep and wake them. Doing either to one that is so already does nothing."""

    @property
    def answers_asleep(self) -> bool:
        """Whether a replica that sleeps answers health checks: then only a wake that went well tells it is awake."""

    async def sleep(self, server: Server, index: int) -> None:
        """Put it to sleep; it has no calls in flight. Raises NegawattError if that fails."""

    async def wake(self, server: Server, index: int) -> None:
        """Wake it; whether it can serve yet is found out elsewhere. Raises NegawattError if that fails."""


class SleepError(NegawattError):
    """A replica could not be put to sleep or woken."""


class State(StrEnum):
    """Of a replica."""

    AWAKE = "awake"
    """it gets requests, unless it was put aside because no connection could be made"""
    DRAINING = "draining"
    """it gets no new ones, and goes to sleep when the last of its calls has ended"""
    FALLING = "falling asleep"
    ASLEEP = "asleep"
    WAKING = "waking"


@dataclass(slots=True, kw_only=True, eq=False)
class Replica:
    """One server of a pool.

    Attributes:
        server: that is called.
        index: its place among them, from 0.
        state: whether it is awake.
        in_flight: calls to it that have not ended.
        failures: connections in a row that could not be made; while there are any, it is put aside.
        aside_until_s: it is not probed before, on the loop's clock [s].
        must_wake: whether it has been put to sleep, or its last waking failed.
        task: the sleeping, waking or probing that goes on.
    """

    server: Server
    index: int
    state: State = State.AWAKE
    in_flight: int = 0
    failures: int = 0
    aside_until_s: float = 0.0
    must_wake: bool = False
    task: asyncio.Task[None] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """One replica now.

    Attributes:
        url: of the server.
        state: whether it is awake.
        reachable: False: it was put aside, as no connection could be made.
        in_flight: calls to it that have not ended.
    """

    url: str
    state: State
    reachable: bool
    in_flight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """A pool now.

    Attributes:
        replicas: in their order.
        waiting: requests that wait for one.
        notes: what went wrong lately, latest last.
    """

    replicas: tuple[ReplicaStats, ...]
    waiting: int
    notes: tuple[str, ...]


def own_request(method: str, target: str) -> Exchange:
    """A request of the gateway's own."""
    return Exchange(
        id=os.urandom(16).hex(),
        method=method,
        target=target.encode("ascii"),
        headers=((b"accept", b"*/*"), (b"user-agent", b"negawatt")),
        body=b"",
        received_s=time.monotonic(),
    )


async def status_of(server: Server, method: str, target: str) -> int:
    """The status of a server's answer to a request of the gateway's own. Raises UpstreamError."""
    answer = await server(own_request(method, target))
    await closed(answer.body)
    return answer.status


@final
class Commands:
    """The operator's commands, run without a shell. {url} and {index} in them stand for the replica's.

    A replica that answers its health check is awake, whatever the command that wakes it said.

    Args:
        wake: wakes one, and ends with 0 when it is done.
        sleep: puts one to sleep.

    Raises:
        UsageError: on a command that cannot be taken apart, or one without the other.
    """

    answers_asleep = False

    def __init__(self, *, wake: str, sleep: str) -> None:
        self._wake, self._sleep = _words("--wake", wake), _words("--sleep", sleep)

    async def sleep(self, server: Server, index: int) -> None:
        """Run the command that puts it to sleep."""
        await _run(self._sleep, server.url, index)

    async def wake(self, server: Server, index: int) -> None:
        """Run the command that wakes it."""
        await _run(self._wake, server.url, index)


def _words(option: str, command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        words, reason = [], str(error)
    else:
        reason = "it is empty"
    if not words:
        raise UsageError(
            f"{option} {command!r}: {reason}",
            "replicas that are put to sleep must be woken again, which takes a command for each",
            "give both, e.g. --sleep 'docker stop model-{index}' --wake 'docker start model-{index}'",
        )
    return words


async def _run(words: Sequence[str], url: str, index: int) -> None:
    argv = [word.replace("{url}", url).replace("{index}", str(index)) for word in words]
    null = asyncio.subprocess.DEVNULL
    try:
        # What it says goes to the gateway's stderr, which a server that it starts may keep. In a session of its own:
        # Ctrl-C is for the gateway, which wakes its replicas then.
        process = await asyncio.create_subprocess_exec(*argv, stdin=null, stdout=null, start_new_session=True)
    except OSError as error:
        raise _failed(shlex.join(argv), error.strerror or type(error).__name__) from error
    until_s = asyncio.get_running_loop().time() + HOOK_S
    cancelled: asyncio.CancelledError | None = None
    while process.returncode is None:
        try:
            async with asyncio.timeout_at(until_s):
                await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise _failed(shlex.join(argv), f"it did not end within {HOOK_S:g} s") from None
        except asyncio.CancelledError as error:  # half a wake is worse than a late end
            cancelled = error
    if cancelled is not None:
        raise cancelled
    if process.returncode:
        raise _failed(shlex.join(argv), f"it ended with {process.returncode}")


def _failed(what: str, reason: str) -> SleepError:
    return SleepError(
        f"{what}: {reason}", "a replica is not in the state that it should be in", "run it by hand to see what is wrong"
    )


@final
class VllmSleep:
    """vLLM's sleep mode: its weights go to the host's memory, and the GPU's is freed.

    It takes a server started with `--enable-sleep-mode` and VLLM_SERVER_DEV_MODE=1, given without a path in its URL.
    The endpoints are POST /sleep?level=1 and POST /wake_up: vLLM's documentation, "Sleep Mode"
    (https://docs.vllm.ai/en/latest/features/sleep_mode/), and vllm/entrypoints/serve/sleep/api_router.py of 0.14.
    A request to one that sleeps may crash it (https://github.com/vllm-project/vllm/issues/14311, 2025).
    """

    answers_asleep = True

    async def sleep(self, server: Server, index: int) -> None:
        """Level 1: woken again, it has the same weights; the key-value cache is gone."""
        await self._post(server, index, "/sleep?level=1")

    async def wake(self, server: Server, index: int) -> None:
        """Load the weights back. A server without this endpoint has no sleep mode, so it is awake."""
        await self._post(server, index, "/wake_up", 404)

    async def _post(self, server: Server, index: int, target: str, *fine: int) -> None:
        status = await status_of(server, "POST", target)
        if status not in (200, *fine):
            raise SleepError(
                f"replica {index}, {server.url}: POST {target} gave {status}",
                "it is not in the state that it should be in",
                "start vLLM with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1, or give --wake and --sleep commands",
            )


def sleeper_of(*, wake: str, sleep: str) -> Sleeper | None:
    """What --wake and --sleep ask for: "vllm" for both, a command for each, or nothing. Raises UsageError on a half."""
    if not wake and not sleep:
        return None
    if wake == sleep == "vllm":
        return VllmSleep()
    return Commands(wake=wake, sleep=sleep)
