"""Pool: routes each request to one of the awake replicas, and keeps as many awake as the setting says.

Among those that are awake a request goes to the one with the fewest calls in flight. Consolidation is not a matter of
routing: a setting with fewer replicas lets the others end their calls and sleep, and those that stay work fuller.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.serving import ServingSetting
from negawatt.serve.exchange import Answer, Exchange, UpstreamError, closed
from negawatt.serve.replicas import PoolStats, Replica, ReplicaStats, Server, Sleeper, State, status_of
from negawatt.serve.upstream import UnreachableError

_LOG = logging.getLogger(__name__)

WAITING = 1024
"""Requests that may wait for a replica at a time."""
WAIT_S = 30.0
"""A request waits no longer for a replica [s]."""
_LOOK_S = 0.2
"""How often the setting and the replicas that were put aside are looked at without a request [s]."""
_ASIDE_S, _MOST_ASIDE_S = 0.5, 30.0
"""A replica that cannot be connected to is probed after this long, twice as long after each further failure [s]."""
_PROBE_S = 5.0
"""A replica that does not answer a probe within this is not ready [s]."""
_READY_S = 600.0
"""A replica that was woken must be ready within this [s]: large models take minutes to load."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiter:
    """A request that waits. Its future becomes a replica, with a call to it counted; or None: no use to wait."""

    tried: tuple[Replica, ...]
    future: asyncio.Future[Replica | None]


@final
class Pool:
    """A stage in front of the replicas of one inference server.

    A request that no connection could be made for goes to another replica: the one that failed has not seen it. It is
    put aside and probed, at growing intervals, until it answers. A request that a replica has seen is never repeated.
    Fewer replicas: the last ones get no new calls, end those that they have, and are put to sleep, once all that are
    to stay are awake. More: they are woken, and get calls once they answer a GET of `health`. While one of those that
    are to be awake cannot be reached, the next one takes its place.

    Call `start` on the event loop, and `close` in the end: it wakes what was put to sleep. If the gateway is killed,
    replicas that sleep go on sleeping until a gateway with the same options starts: `start` wakes all that are wanted.

    Args:
        upstreams: the replicas, the first to stay awake in front.
        setting: what holds now; `concurrency` and `replicas` of it are looked at.
        sleeper: puts replicas to sleep; None: those that are not wanted only get no calls.
        health: path that is asked to see whether a replica is ready: any status below 500 says so.
        waiting: how many requests may wait for a replica at a time.
        wait_s: how long a request may wait for one [s].

    Raises:
        UsageError: without replicas.
    """

    def __init__(
        self,
        upstreams: Sequence[Server],
        setting: Callable[[], ServingSetting],
        *,
        sleeper: Sleeper | None = None,
        health: str = "/health",
        waiting: int = WAITING,
        wait_s: float = WAIT_S,
    ) -> None:
        if not upstreams:
            raise UsageError("a pool without replicas", "nobody could answer", "give at least one --upstream")
        self._replicas = [Replica(server=server, index=index) for index, server in enumerate(upstreams)]
        self._setting = setting
        self._sleeper = sleeper
        self._health = health
        self._most_waiting, self._wait_s = waiting, wait_s
        self._waiting: deque[_Waiter] = deque()
        self._seen = setting()
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False
        self._notes: deque[str] = deque(maxlen=16)

    def start(self) -> None:
        """Begin to look after the replicas. Call it on the event loop."""
        if self._sleeper is not None:  # a gateway that was killed may have left some asleep
            for one in self._wanted():
                one.must_wake = True
                self._begin(one, State.WAKING, partial(self._wake, one))
        self.adjust()
        self._keeper = asyncio.create_task(self._keep(), name="negawatt-pool")

    async def close(self) -> None:
        """Wake what sleeps and look after nothing any more; what fails in that is logged."""
        self._closing = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        for one in self._replicas:
            if one.task is not None and one.state is State.AWAKE:  # a probe; what sleeps or wakes is not cut off
                one.task.cancel()
        await asyncio.gather(*(one.task for one in self._replicas if one.task is not None), return_exceptions=True)
        asleep = [one for one in self._replicas if one.must_wake]
        await asyncio.gather(*(self._rouse(one) for one in asleep))
        for one in self._replicas:
            one.state, one.task = State.AWAKE, None

    @property
    def stats(self) -> PoolStats:
        """What it does now."""
        replicas = tuple(
            ReplicaStats(url=one.server.url, state=one.state, reachable=not one.failures, in_flight=one.in_flight)
            for one in self._replicas
        )
        return PoolStats(replicas=replicas, waiting=len(self._waiting), notes=tuple(self._notes))

    async def __call__(self, exchange: Exchange) -> Answer:
        """The answer of a replica.

        Raises:
            UnreachableError: if none can be connected to.
            UpstreamError: 503 if too many wait, or this one has waited for too long; or as the replica's stage says.
        """
        if self._setting() is not self._seen:
            self.adjust()
        tried: tuple[Replica, ...] = ()
        failure: UnreachableError | None = None
        while (one := await self._seat(tried)) is not None:
            try:
                answer = await one.server(exchange)
            except UnreachableError as error:
                self._failed(one, error.got)
                self._leave(one)
                tried, failure = (*tried, one), error
                continue
            except BaseException:
                self._leave(one)
                raise
            if one.failures:
                self._recovered(one)
            if isinstance(answer.body, bytes):
                self._leave(one)
                return answer
            return replace(answer, body=_Pieces(answer.body, one, self._leave))
        raise failure or _busy("no replica is awake, and none could be woken")

    # ---------------------------------------------------------------------------------------------------- who gets what

    def _pick(self, tried: tuple[Replica, ...] = ()) -> Replica | None:
        """The replica that a request may go to now, or None. Those put aside only if no other is there or coming."""
        most = self._setting().concurrency
        awake = [one for one in self._replicas if one.state is State.AWAKE and one not in tried]
        fine = [one for one in awake if not one.failures] or (awake if not self._coming() else [])
        free = [one for one in fine if not most or one.in_flight < most]
        return min(free, key=lambda one: (one.failures, one.in_flight), default=None)

    def _hope(self, tried: tuple[Replica, ...]) -> bool:
        """Whether there is a replica to wait for."""
        there = [one for one in self._replicas if one.state is State.AWAKE]
        return any(one not in tried for one in (*there, *self._coming()))

    def _coming(self) -> list[Replica]:
        """The replicas that will be awake before long: one that falls asleep while it is wanted is woken after it."""
        falling = [one for one in self._wanted() if one.state is State.FALLING]
        return falling + [one for one in self._replicas if one.state is State.WAKING]

    async def _seat(self, tried: tuple[Replica, ...]) -> Replica | None:
        """A replica, with a call to it counted, first come, first served; None: there is none to be had."""
        if not self._waiting and (one := self._pick(tried)) is not None:
            one.in_flight += 1
            return one
        if not self._hope(tried):
            return None
        if len(self._waiting) >= self._most_waiting:
            raise _busy(f"{len(self._waiting)} requests wait for a replica")
        waiter = _Waiter(tried=tried, future=asyncio.get_running_loop().create_future())
        if tried:
            self._waiting.appendleft(waiter)  # it has had its turn
        else:
            self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._wait_s):
                return await waiter.future
        except BaseException as error:
            if waiter.future.done() and not waiter.future.cancelled():
                if (one := waiter.future.result()) is not None:  # it came at the same moment
                    self._leave(one)
            else:
                self._waiting.remove(waiter)
            if isinstance(error, TimeoutError):
                raise _busy(f"no replica was free for {self._wait_s:g} s") from None
            raise

    def _dispatch(self) -> None:
        """Let those go that can, in their order."""
        for waiter in tuple(self._waiting) if self._waiting else ():
            if waiter.future.done():
                continue  # cancelled at this moment
            one = self._pick(waiter.tried)
            if one is None and self._hope(waiter.tried):
                if waiter.tried:
                    continue  # those behind need not wait for what this one has tried already
                return
            self._waiting.remove(waiter)
            if one is not None:
                one.in_flight += 1
            waiter.future.set_result(one)

    def _leave(self, one: Replica) -> None:
        """A call has ended."""
        one.in_flight -= 1
        if one.state is State.DRAINING and not one.in_flight:
            self._fall(one)
        if self._waiting:
            self._dispatch()

    def _failed(self, one: Replica, reason: str) -> None:
        """No connection to it could be made."""
        loop_s = asyncio.get_running_loop().time()
        if not one.failures:
            self._note(f"replica {one.index} is put aside: {reason}")
        elif loop_s < one.aside_until_s:
            return  # one of several calls that met the same failure
        one.failures += 1
        one.aside_until_s = loop_s + min(_MOST_ASIDE_S, _ASIDE_S * 2.0 ** min(one.failures - 1, 16))
        self.adjust()

    def _recovered(self, one: Replica) -> None:
        one.failures = 0
        self._note(f"replica {one.index} answers again")
        self.adjust()

    # ---------------------------------------------------------------------------------------------------- who is awake

    def _wanted(self) -> list[Replica]:
        """The replicas that are to be awake: the first ones that can be reached."""
        number = self._setting().replicas or len(self._replicas)
        return [one for one in self._replicas if not one.failures][:number] or self._replicas[:number]

    def adjust(self) -> None:
        """Bring the replicas to what the setting says. Cheap; called again when something has come of it."""
        self._seen = self._setting()
        if self._closing:
            return
        wanted = self._wanted()
        for one in wanted:
            if one.state is State.DRAINING:
                one.state = State.AWAKE
            elif one.state is State.ASLEEP:
                self._begin(one, State.WAKING, partial(self._wake, one))
        if all(one.state is State.AWAKE for one in wanted):
            for one in self._replicas:
                if one.state is State.AWAKE and not one.failures and one not in wanted:
                    one.state = State.DRAINING
                    if not one.in_flight:
                        self._fall(one)
        self._dispatch()

    def _begin(self, one: Replica, state: State, work: Callable[[], Awaitable[None]]) -> None:
        async def alone(probe: asyncio.Task[None] | None) -> None:
            if probe is not None:
                await asyncio.wait((probe,))  # a command that it has begun ends first
            await work()

        if one.task is not None:  # a probe: a replica that is woken or put to sleep is not probed
            one.task.cancel()
        one.state, one.task = state, asyncio.create_task(alone(one.task), name=f"negawatt-replica-{one.index}")

    def _fall(self, one: Replica) -> None:
        if self._closing:
            one.state = State.AWAKE
        elif self._sleeper is None:
            one.state, one.failures = State.ASLEEP, 0
        else:
            self._begin(one, State.FALLING, partial(self._sleep, one, self._sleeper))

    async def _sleep(self, one: Replica, sleeper: Sleeper) -> None:
        one.must_wake = True
        if reason := await _tried(sleeper.sleep(one.server, one.index)):
            self._note(f"replica {one.index} gets no calls, but does not sleep: {reason}")
        one.state, one.task, one.failures = State.ASLEEP, None, 0
        self.adjust()

    async def _wake(self, one: Replica) -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        ready = await self._rouse(one)
        while ready and self._sleeper is not None and not await self._answers(one):
            ready = not self._closing and loop.time() < begin_s + _READY_S
            await asyncio.sleep(min(1.0, 0.02 + 0.1 * (loop.time() - begin_s)))
        one.state, one.task = State.AWAKE, None
        if ready:
            one.failures = 0
            self.adjust()
        elif not self._closing:
            self._failed(one, "it was woken, and is not ready")

    async def _rouse(self, one: Replica) -> bool:
        """Wake it if it was put to sleep; whether it is awake. A command may fail because it is awake already."""
        if self._sleeper is None or not one.must_wake:
            return True
        if reason := await _tried(self._sleeper.wake(one.server, one.index)):
            if self._sleeper.answers_asleep or not await self._answers(one):
                self._note(f"replica {one.index} was not woken: {reason}")
                return False
            self._note(f"replica {one.index} answers, though its waking failed: {reason}")
        one.must_wake = False
        return True

    async def _answers(self, one: Replica) -> bool:
        try:
            async with asyncio.timeout(_PROBE_S):
                return await status_of(one.server, "GET", self._health) < 500
        except (UpstreamError, TimeoutError):
            return False

    async def _probe(self, one: Replica) -> None:
        fine = await self._rouse(one) and await self._answers(one)
        one.task = None
        if not fine:
            self._failed(one, "it does not answer")
        elif one.failures:
            self._recovered(one)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_S)
            self.adjust()
            for one in self._replicas:
                if one.failures and one.state is State.AWAKE and one.task is None and loop.time() >= one.aside_until_s:
                    one.task = asyncio.create_task(self._probe(one), name=f"negawatt-probe-{one.index}")

    def _note(self, text: str) -> None:
        self._notes.append(text)
        _LOG.warning("%s", text)


@final
class _Pieces(AsyncIterator[bytes]):
    """An answer's body in pieces; its call ends when they end."""

    def __init__(self, pieces: AsyncIterator[bytes], one: Replica, leave: Callable[[Replica], None]) -> None:
        self._pieces = pieces
        self._one: Replica | None = one
        self._leave = leave

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._pieces)
        except BaseException:  # the end of them, too
            self._over()
            raise

    async def aclose(self) -> None:
        """End the call upstream at once."""
        try:
            await closed(self._pieces)
        finally:
            self._over()

    def _over(self) -> None:
        one, self._one = self._one, None
        if one is not None:
            self._leave(one)


async def _tried(work: Awaitable[None]) -> str:
    """Why some work of a sleeper's failed, or ""."""
    try:
        await work
    except NegawattError as error:
        return error.reason
    except Exception as error:  # noqa: BLE001 -- the service goes on; the reason is noted and logged
        return f"{type(error).__name__}: {error}"
    return ""


def _busy(got: str) -> UpstreamError:
    return UpstreamError(
        503,
        got,
        "upstream takes no more for now",
        "ask again later, or give the gateway more --upstream or --concurrency",
    )
