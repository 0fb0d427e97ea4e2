"""Store and Flights: bounded memory, and one fetch for many."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins import run

from negawatt.serve.store import Flights, Store

STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 40), st.integers(1, 9)), max_size=40)


@given(STEPS, st.integers(1, 100), st.integers(1, 100))
def test_the_store_is_within_its_bytes_and_drops_the_least_recently_used(
    steps: list[tuple[bool, int, int, int]], most: int, largest: int
) -> None:
    """At any time: no more than its bytes, what it has is what was put last, and the oldest use goes first."""
    store: Store[int] = Store(most, largest)
    model: OrderedDict[bytes, tuple[int, int, float]] = OrderedDict()
    for now, (put, name, size, lives) in enumerate(steps):
        key = b"%d" % name
        if put:
            store.put(key, now, size=size, until_s=now + lives)
            model.pop(key, None)
            if size <= min(largest, most):
                model[key] = (now, size, now + lives)
                while sum(kept[1] for kept in model.values()) > most:
                    model.popitem(last=False)
        else:
            expected = model.get(key)
            if expected is not None and expected[2] <= now:
                expected = model.pop(key) and None
            if expected is not None:
                model.move_to_end(key)
            assert store.get(key, now) == (expected and expected[0])
        assert store.size == sum(kept[1] for kept in model.values()) <= most
        assert len(store) == len(model)


def test_what_fails_is_raised_in_the_leader_only() -> None:
    """The others get None: they are to fetch for themselves."""

    async def nothing(_: int) -> None: ...

    async def fetch() -> int:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    async def work() -> None:
        flights: Flights[int] = Flights(nothing)
        leader = asyncio.ensure_future(flights.share(b"k", fetch))
        await asyncio.sleep(0)
        assert await flights.share(b"k", fetch) == (None, False)
        with pytest.raises(ValueError, match="no"):
            await leader
        assert len(flights) == 0

    run(work())


def test_a_leader_that_goes_away_leaves_the_value_to_the_others() -> None:
    """The fetch goes on while somebody waits; what nobody can use any more is discarded."""
    discarded: list[int] = []
    cancelled: list[int] = []

    async def discard(value: int) -> None:
        discarded.append(value)

    async def fetch() -> int:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return 7

    async def work() -> None:
        flights: Flights[int] = Flights(discard)
        going = [asyncio.ensure_future(flights.share(b"k", fetch)) for _ in range(3)]
        await asyncio.sleep(0.001)
        going[0].cancel()
        assert await going[1] == await going[2] == (7, False)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert discarded == [7]
        going = [asyncio.ensure_future(flights.share(b"k", fetch)) for _ in range(2)]
        await asyncio.sleep(0.001)
        for task in going:
            task.cancel()
        await asyncio.sleep(0)
        assert await flights.share(b"k", fetch) == (7, True)
        assert cancelled == [1]
        assert len(flights) == 0

    run(work())
