"""Store: what is kept for later, the least recently used first to go. Flights: what several want, fetched once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, final

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Kept(Generic[T]):
    value: T
    size: int  # bytes
    until_s: float


@final
class Store(Generic[T]):
    """Values by key, within a bound of bytes.

    Args:
        most_bytes: of all values together, by the sizes that are told.
        largest_bytes: of one; a larger one is not kept.
    """

    def __init__(self, most_bytes: int, largest_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.largest_bytes = min(largest_bytes, most_bytes)
        self.size = 0
        self._kept: OrderedDict[bytes, _Kept[T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, now_s: float) -> T | None:
        """The value, which is now the most recently used; None: there is none, or its time is over."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until_s <= now_s:
            self.drop(key)
            return None
        self._kept.move_to_end(key)
        return kept.value

    def put(self, key: bytes, value: T, *, size: int, until_s: float) -> None:
        """Keep a value until then; others may have to go for it.

        Args:
            key: a value that is there already is replaced.
            value: what is kept.
            size: what it takes, its key and overhead included [bytes].
            until_s: on the clock of `get` [s].
        """
        self.drop(key)
        if size > self.largest_bytes:
            return
        self._kept[key] = _Kept(value, size, until_s)
        self.size += size
        while self.size > self.most_bytes:
            _, gone = self._kept.popitem(last=False)
            self.size -= gone.size

    def drop(self, key: bytes) -> None:
        """Keep it no longer."""
        gone = self._kept.pop(key, None)
        if gone is not None:
            self.size -= gone.size

    def clear(self) -> None:
        """Keep nothing of it."""
        self._kept.clear()
        self.size = 0


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


@final
class Flights(Generic[T]):
    """Fetches what several want at the same time once. It goes on as long as one of them waits.

    Args:
        discard: called with a value that came when its leader was gone.
    """

    def __init__(self, discard: Callable[[T], Awaitable[None]]) -> None:
        self._discard = discard
        self._open: dict[bytes, _Flight[T]] = {}
        self._discarding: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def share(self, key: bytes, fetch: Callable[[], Awaitable[T]]) -> tuple[T | None, bool]:
        """The value, and whether this caller is the leader, whose `fetch` it was.

        What `fetch` raises is raised in the leader; the others get None and are to fetch for themselves.
        """
        flight = self._open.get(key)
        led = flight is None
        if flight is None:
            flight = self._open[key] = _Flight(asyncio.ensure_future(self._run(key, fetch)))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), led
        except asyncio.CancelledError:
            if led:
                flight.task.add_done_callback(self._unwanted)
            raise
        except Exception:
            if led:
                raise  # it tells the reason
            return None, False
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                if self._open.get(key) is flight:
                    del self._open[key]  # whoever comes now begins anew
                flight.task.cancel()

    async def _run(self, key: bytes, fetch: Callable[[], Awaitable[T]]) -> T:
        me = asyncio.current_task()
        try:
            return await fetch()
        finally:
            flight = self._open.get(key)
            if flight is not None and flight.task is me:
                del self._open[key]

    def _unwanted(self, task: asyncio.Task[T]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        discarding = asyncio.get_running_loop().create_task(self._throw_away(task.result()))
        self._discarding.add(discarding)
        discarding.add_done_callback(self._discarding.discard)

    async def _throw_away(self, value: T) -> None:
        await self._discard(value)
