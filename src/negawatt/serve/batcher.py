"""Batcher: requests that arrive shortly after one another go upstream as one, and each client gets its part.

A model that answers 32 texts at a time takes far fewer joules for each than one that answers them one by one. What it
costs is waiting, so a request is held up only

- while upstream is busy, each replica with a call, until one ends; or
- if others can be expected: requests of its kind have lately come less than a window apart, and holding one up has
  not been in vain. After a window that ended with one request alone the next 2 lone ones are not held up, then the next
  4, and so on up to 256, so that a client that waits for each answer before it asks again is left in peace;

and never longer than the window. Only requests that agree in path, query, all other members of the body and all
headers that may make a difference (credentials!) are joined; requests that cannot be joined go straight through.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, final

from negawatt.core.serving import ServingSetting
from negawatt.serve.bodies import digest, gathered, told, with_body
from negawatt.serve.exchange import Answer, Exchange, Stage, UpstreamError, closed
from negawatt.serve.lists import KNOWN, Asked, ListApi, asked, put_together, taken_apart

T = TypeVar("T")

_MOST_KINDS = 256
"""Kinds of requests whose habits are remembered."""
_MOST_LONE = 256
"""Of so many lone requests one is held up, to see: below 1 of 100, so that the 99th percentile does not feel it."""
_FULL = 64
"""After so many full batches upstream may take larger ones again: the next ones try it."""
_AT_ONCE = 8
"""Requests of failed batches that are sent alone at a time."""
_FOR_ALL = frozenset((401, 403, 429, 503))
"""What upstream answers to all alike: the credentials are the same, and so is its hurry."""


@final
class _Habit:
    """What is known of one kind of requests: whether others can be expected, and how many upstream takes at a time.

    The latter is 0 until upstream has refused a batch. Then it is half of that batch, and an eighth more after every 64
    full ones: what upstream refuses may have been too long, not too many.
    """

    __slots__ = ("full", "gap_s", "last_s", "most_items", "to_pass", "vain")

    def __init__(self) -> None:
        self.last_s: float | None = None
        self.gap_s: float | None = None  # between arrivals, about the last eight
        self.vain = 1
        self.to_pass = 0
        self.most_items = 0
        self.full = 0

    def arrived(self, now_s: float) -> None:
        if self.last_s is not None:
            gap_s = now_s - self.last_s
            self.gap_s = gap_s if self.gap_s is None else self.gap_s + (min(gap_s, 60.0) - self.gap_s) / 8
        self.last_s = now_s

    def expects(self, window_s: float) -> bool:
        return not self.to_pass and self.gap_s is not None and self.gap_s < window_s

    def passed(self) -> None:
        self.to_pass = max(0, self.to_pass - 1)

    def held(self, together: int) -> None:
        self.vain = 1 if together > 1 else min(2 * self.vain, _MOST_LONE)
        self.to_pass = 0 if together > 1 else self.vain

    def filled(self) -> None:
        """A batch was as large as upstream is known to take."""
        self.full = (self.full + 1) % _FULL
        if self.most_items and not self.full:
            self.most_items += 1 + self.most_items // 8

    def refused(self, items: int) -> None:
        """So many were too many."""
        self.most_items, self.full = max(1, items // 2), 0


@dataclass(slots=True, kw_only=True, eq=False)
class _Part:
    """A request that waits. Its future becomes the answer, or None: it is to go alone."""

    exchange: Exchange
    asked: Asked
    future: asyncio.Future[Answer | None]
    batch: _Batch | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class _Batch:
    """Requests that go upstream as one."""

    parts: list[_Part]
    habit: _Habit
    task: asyncio.Task[None] | None = None
    refused: bool = False
    fine: int = 0

    @property
    def items(self) -> int:
        return sum(len(part.asked.items) for part in self.parts)

    def fine_alone(self) -> None:
        """One of those that were refused together was answered alone: if all are, they were too many."""
        self.fine += 1
        if self.refused and self.fine == len(self.parts):
            self.habit.refused(self.items)


@dataclass(slots=True, kw_only=True, eq=False)
class _Waiting:
    """Requests of one kind that wait for others."""

    habit: _Habit
    window_s: float
    parts: list[_Part] = field(default_factory=list)
    items: int = 0
    size: int = 0  # bytes
    timer: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatcherStats:
    """What came of a batcher so far, in numbers of requests.

    Attributes:
        straight: that went straight through: they could not be joined, or were not to be.
        alone: that could have been joined, and went alone.
        joined: that were answered together with others.
        calls: upstream, for those.
        split: that had to go alone after all, as upstream refused them together.
    """

    straight: int = 0
    alone: int = 0
    joined: int = 0
    calls: int = 0
    split: int = 0


@final
class Batcher:
    """Joins requests.

    Args:
        onward: the next stage.
        setting: what holds now: its window and its largest batch. A window of 0 or a batch of 1 joins nothing.
        replicas: of upstream: so many calls at a time do not wait for one another.
        apis: that take lists.
        most_items: of one call upstream. OpenAI's API takes 2,048. A server that takes fewer refuses; the batcher then
            sends each request alone, and remembers.
        most_bytes: of a joined body, and of one request that is joined; its answer may be 16 times as large [bytes].
    """

    def __init__(
        self,
        onward: Stage,
        setting: Callable[[], ServingSetting],
        *,
        replicas: int = 1,
        apis: Sequence[ListApi] = KNOWN,
        most_items: int = 2048,
        most_bytes: int = 4 << 20,
    ) -> None:
        self._onward = onward
        self._setting = setting
        self._replicas = replicas
        self._apis = tuple(apis)
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._habits: OrderedDict[bytes, _Habit] = OrderedDict()
        self._waiting: dict[bytes, _Waiting] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._few = asyncio.Semaphore(_AT_ONCE)
        self._calls = 0
        self._counts: Counter[str] = Counter()

    @property
    def stats(self) -> BatcherStats:
        """What came of it so far."""
        return BatcherStats(**self._counts)

    async def __call__(self, exchange: Exchange) -> Answer:
        """The answer, as it would have been alone. Raises UpstreamError."""
        setting = self._setting()
        exchange.shared = 1
        request = None
        if setting.max_batch > 1 and setting.window_s and len(exchange.body) <= self._most_bytes:
            request = asked(exchange, self._apis)
        if request is None:
            self._count(straight=1)
            return await self._onward(exchange)
        kind = digest(exchange.target, told(exchange.headers), request.rest, b"t" if request.tokens else b"")
        habit = self._habit(kind)
        habit.arrived(asyncio.get_running_loop().time())
        if self._calls < self._lanes(setting) and kind not in self._waiting and not habit.expects(setting.window_s):
            habit.passed()
            return await self._alone(exchange)
        part = _Part(exchange=exchange, asked=request, future=asyncio.get_running_loop().create_future())
        self._wait(kind, habit, part, setting)
        return await self._answer(kind, part)

    async def _answer(self, kind: bytes, part: _Part) -> Answer:
        try:
            answer = await part.future
        except asyncio.CancelledError:
            self._withdraw(kind, part)
            if part.future.done() and not part.future.cancelled():
                part.future.exception()  # it came too late: nobody is left to hear of it
            raise
        if answer is not None:
            return answer
        if part.batch is None or len(part.batch.parts) == 1:
            return await self._alone(part.exchange)
        self._count(split=1)
        async with self._few:
            answer = await self._alone(part.exchange)
        if answer.status < 400:
            part.batch.fine_alone()
        return answer

    async def _alone(self, exchange: Exchange) -> Answer:
        exchange.shared = 1
        self._count(alone=1)
        return await self._called(self._onward(exchange))

    def _lanes(self, setting: ServingSetting) -> int:
        return min(setting.replicas or self._replicas, self._replicas)

    async def _called(self, call: Awaitable[T]) -> T:
        self._calls += 1
        try:
            return await call
        finally:
            self._calls -= 1
            if self._waiting and self._calls < self._lanes(self._setting()):  # who waited only for that goes
                for kind, waiting in list(self._waiting.items()):
                    if not waiting.habit.expects(waiting.window_s):
                        self._leave(kind)

    def _wait(self, kind: bytes, habit: _Habit, part: _Part, setting: ServingSetting) -> None:
        items, size = len(part.asked.items), len(part.exchange.body)
        most_items = min(habit.most_items or self._most_items, self._most_items)
        waiting = self._waiting.get(kind)
        if waiting and (waiting.items + items > most_items or waiting.size + size > self._most_bytes):
            if waiting.items + items > most_items:
                habit.filled()
            self._leave(kind)
            waiting = None
        if waiting is None:
            waiting = self._waiting[kind] = _Waiting(habit=habit, window_s=setting.window_s)
            waiting.timer = asyncio.get_running_loop().call_later(setting.window_s, self._over, kind)
        waiting.parts.append(part)
        waiting.items += items
        waiting.size += size
        if waiting.items >= most_items:
            habit.filled()
        if len(waiting.parts) >= setting.max_batch or waiting.items >= most_items:
            self._over(kind)

    def _over(self, kind: bytes) -> None:
        """The window is over, or the batch is full."""
        waiting = self._waiting[kind]
        waiting.habit.held(len(waiting.parts))
        self._leave(kind)

    def _leave(self, kind: bytes) -> None:
        waiting = self._waiting.pop(kind)
        if waiting.timer is not None:
            waiting.timer.cancel()
        batch = _Batch(parts=waiting.parts, habit=waiting.habit)
        for part in batch.parts:
            part.batch = batch
        if len(batch.parts) == 1:
            _settle(batch.parts[0], None)
            return
        batch.task = asyncio.get_running_loop().create_task(self._send(batch))
        self._tasks.add(batch.task)
        batch.task.add_done_callback(self._tasks.discard)

    def _withdraw(self, kind: bytes, part: _Part) -> None:
        """Its client has gone away."""
        batch = part.batch
        if batch is None:
            waiting = self._waiting[kind]
            waiting.parts.remove(part)
            waiting.items -= len(part.asked.items)
            waiting.size -= len(part.exchange.body)
            if not waiting.parts:
                if waiting.timer is not None:
                    waiting.timer.cancel()
                del self._waiting[kind]
        elif batch.task is not None and all(part.future.done() for part in batch.parts):
            batch.task.cancel()

    async def _send(self, batch: _Batch) -> None:
        parts = batch.parts = [part for part in batch.parts if not part.future.done()]
        try:
            joined = await self._called(self._joined(batch)) if len(parts) > 1 else None
        except BaseException as error:
            for part in parts:
                _fail(part, error)
            if not isinstance(error, Exception):
                raise
            return  # each client's own request raises it
        answers: Sequence[Answer | None] = [None] * len(parts) if joined is None else joined
        for part, answer in zip(parts, answers, strict=True):
            _settle(part, answer)

    async def _joined(self, batch: _Batch) -> list[Answer] | None:
        """The part of each; None if upstream did not answer them together.

        Raises:
            UpstreamError: if upstream is too busy or too slow: to ask for each alone would make it worse.
        """
        parts = batch.parts
        first = parts[0]
        whole = with_body(first.exchange, first.asked.body(item for part in parts for item in part.asked.items))
        whole.shared = len(parts)
        try:
            answer = await gathered(await self._onward(whole), 16 * self._most_bytes)
        except UpstreamError as error:
            if error.status in _FOR_ALL or error.status == 504:
                raise
            return None
        await closed(answer.body)
        if answer.status in _FOR_ALL and isinstance(answer.body, bytes):
            return [replace(answer) for _ in parts]
        found = await taken_apart(answer, first.asked, [weight for part in parts for weight in part.asked.weights])
        if found is None:
            batch.refused = 400 <= answer.status < 500
            return None
        self._count(joined=len(parts), calls=1)
        answers, at = [], 0
        for part in parts:
            own = found.results[at : at + len(part.asked.items)]
            at += len(own)
            part.exchange.shared = len(parts)
            answers.append(put_together(answer, found.frame, own))
        return answers

    def _habit(self, kind: bytes) -> _Habit:
        habit = self._habits.pop(kind, None) or _Habit()
        self._habits[kind] = habit
        if len(self._habits) > _MOST_KINDS:
            self._habits.popitem(last=False)
        return habit

    def _count(self, **more: int) -> None:
        for name, n in more.items():
            self._counts[name] += n


def _settle(part: _Part, answer: Answer | None) -> None:
    if not part.future.done():
        part.future.set_result(answer)


def _fail(part: _Part, error: BaseException) -> None:
    if part.future.done():
        return
    if isinstance(error, asyncio.CancelledError):
        part.future.cancel()
    else:
        part.future.set_exception(error)
