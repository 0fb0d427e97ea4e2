"""Bodies: pieces made whole, within bounds that hold for all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from standins import JSON, in_pieces, reply, run

from negawatt.serve import bodies
from negawatt.serve.bodies import gathered
from negawatt.serve.exchange import Answer, UpstreamError, closed


def test_answers_that_are_gathered_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it large ones keep coming in pieces, whole; small ones are gathered still; nothing stays counted."""
    monkeypatch.setattr(bodies, "_MOST_HELD_BYTES", 400_000)
    monkeypatch.setattr(bodies, "_SMALL_BYTES", 1000)
    text = b"x" * 90_000
    gate = asyncio.Event()

    async def waits() -> AsyncIterator[bytes]:
        yield text
        await gate.wait()
        yield text

    async def work() -> None:
        going = [
            asyncio.ensure_future(gathered(Answer(status=200, headers=(JSON,), body=waits()), 1 << 20))
            for _ in range(6)
        ]
        await asyncio.sleep(0.01)
        assert [task.done() for task in going] == [False] * 4 + [True] * 2
        assert isinstance((await gathered(in_pieces(reply(b"y" * 900)), 1 << 20)).body, bytes)
        gate.set()
        answers = await asyncio.gather(*going)
        for answer in answers:
            body = answer.body
            assert (body if isinstance(body, bytes) else b"".join([piece async for piece in body])) == 2 * text

    run(work())
    assert bodies._Held.together == 0


def test_what_nobody_reads_to_its_end_is_not_held() -> None:
    """Neither an answer that breaks off nor one that is closed before a piece was taken; the call upstream ends."""
    ended = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1000
        finally:
            ended.append(True)

    async def work() -> None:
        answer = await gathered(Answer(status=200, headers=(JSON,), body=endless()), 5000)
        assert not isinstance(answer.body, bytes)
        await closed(answer.body)
        assert ended == [True]
        with pytest.raises(UpstreamError, match="broke off"):
            await gathered(in_pieces(reply(b"y" * 900), breaks_after=500), 5000)

    run(work())
    assert bodies._Held.together == 0
