"""Lists: answers taken apart, however long they are."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from standins import embed, reply

from negawatt.serve.exchange import Answer
from negawatt.serve.lists import Asked, asked, taken_apart


class Watched(bytes):
    """Bytes that note how much of them is copied, and on which thread."""

    copied = 0
    threads: set[int]

    def __getitem__(self, place: Any) -> Any:
        made = super().__getitem__(place)
        if isinstance(made, bytes):
            self.copied += len(made)
            self.threads.add(threading.get_ident())
        return made


def answered(items: int, numbers: int) -> tuple[Answer, Asked, Watched]:
    data = [{"embedding": [0.25] * numbers, "index": i} for i in range(items)]
    made = reply({"data": data})
    assert isinstance(made.body, bytes)
    body = Watched(made.body)
    body.threads = set()
    request = asked(embed(["text"] * items))
    assert request is not None
    return Answer(status=200, headers=made.headers, body=body), request, body


def test_the_work_grows_with_the_length_only() -> None:
    """Of an answer to many items each byte is copied a few times at most, not once for each item."""
    answer, request, body = answered(200, 20)
    parts = asyncio.run(taken_apart(answer, request, request.weights))
    assert parts is not None
    assert len(parts.results) == 200
    assert body.copied < 3 * len(body)


def test_a_long_answer_does_not_hold_up_the_loop() -> None:
    """Above a megabyte it is taken apart on another thread, with the same parts."""
    for numbers, here in ((10, True), (20_000, False)):
        answer, request, body = answered(10, numbers)
        parts = asyncio.run(taken_apart(answer, request, request.weights))
        assert parts is not None
        assert [result.head.count(b"0.25") for result in parts.results] == [numbers] * 10
        assert (body.threads == {threading.get_ident()}) is here
        assert len(body.threads) == 1
