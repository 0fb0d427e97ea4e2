"""Small inference servers as stages, and requests to them."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from negawatt.serve.exchange import Answer, Exchange, UpstreamError

T = TypeVar("T")

JSON = (b"content-type", b"application/json")


def post(path: str, body: object, *headers: tuple[bytes, bytes], **more: Any) -> Exchange:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Exchange(
        id="0" * 32,
        method=more.pop("method", "POST"),
        target=path.encode(),
        headers=(JSON, (b"content-length", b"%d" % len(raw)), *headers),
        body=raw,
        received_s=0.0,
        **more,
    )


def embed(given: object, *headers: tuple[bytes, bytes], model: str = "m", **more: Any) -> Exchange:
    return post("/v1/embeddings", {"input": given, "model": model, **more}, *headers)


def reply(body: object, status: int = 200, *headers: tuple[bytes, bytes]) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status=status, headers=(JSON, (b"content-length", b"%d" % len(raw)), *headers), body=raw)


def content(answer: Answer) -> Any:
    assert isinstance(answer.body, bytes)
    assert (b"content-length", b"%d" % len(answer.body)) in answer.headers
    return json.loads(answer.body)


def in_pieces(answer: Answer, size: int = 100, breaks_after: int | None = None) -> Answer:
    raw = answer.body
    assert isinstance(raw, bytes)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(raw), size):
            if breaks_after is not None and at >= breaks_after:
                raise broken()
            yield raw[at : at + size]

    headers = tuple(pair for pair in answer.headers if pair[0] != b"content-length")
    return Answer(status=answer.status, headers=headers, body=pieces())


def broken(status: int = 502) -> UpstreamError:
    return UpstreamError(status, "upstream broke off", "there is no answer", "ask again")


def vector(item: object) -> list[float]:
    seed = zlib.crc32(json.dumps(item).encode())
    return [((seed >> shift) % 1000) / 1e3 - 0.5 for shift in (0, 5, 10)]


def tokens(item: Any) -> int:
    return len(item) if isinstance(item, list) else len(item) // 4 + 2


class Embedder:
    """OpenAI's embeddings for any items; "bad" among them is refused; results come in reverse order if asked."""

    def __init__(
        self, time_s: float = 0.0, most: int = 10_000, *, backwards: bool = False, pieces: bool = False
    ) -> None:
        self.time_s, self.most, self.backwards, self.pieces = time_s, most, backwards, pieces
        self.calls: list[Exchange] = []
        self.cancelled = 0
        self.now = self.peak = 0
        self.fail: Callable[[Exchange], Answer | None] = lambda _: None

    @property
    def asked(self) -> list[Any]:
        return [json.loads(call.body)["input"] for call in self.calls]

    async def __call__(self, exchange: Exchange) -> Answer:
        self.calls.append(exchange)
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            await asyncio.sleep(self.time_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now -= 1
        return self.fail(exchange) or self.answer(json.loads(exchange.body))

    def answer(self, body: dict[str, Any]) -> Answer:
        given = body["input"]
        items = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        if len(items) > self.most:
            return reply({"error": "too many"}, 413)
        if "bad" in items:
            return reply({"error": f"item {items.index('bad')} is bad"}, 400)
        data = [{"object": "embedding", "index": i, "embedding": vector(item)} for i, item in enumerate(items)]
        total = sum(map(tokens, items))
        usage = {"prompt_tokens": total, "total_tokens": total, "prompt_tokens_details": None}
        made = {"object": "list", "data": data[:: -1 if self.backwards else 1], "model": body["model"], "usage": usage}
        answer = reply(made, 200, (b"x-server", b"1"))
        return in_pieces(answer) if self.pieces else answer


def vectors(answer: Answer) -> list[list[float]]:
    data = sorted(content(answer)["data"], key=lambda element: element["index"])
    assert [element["index"] for element in data] == list(range(len(data)))
    return [element["embedding"] for element in data]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; no task may be left over."""

    async def all_of_it() -> T:
        made = await asyncio.wait_for(work, 20)
        await asyncio.sleep(0.001)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return made

    return asyncio.run(all_of_it())
