"""Semantic: the answer to a text that means nearly the same, and only where nothing else differs."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from standins import content, in_pieces, post, reply, run

from negawatt.core.serving import Outcome
from negawatt.serve.exchange import Answer, Exchange
from negawatt.serve.semantic import HttpEmbed, Semantic

MB = 1 << 20
ANGLES = {"hello": 0.0, "hi": 0.1, "bye": 2.0}  # radians


async def angle(text: str) -> list[float] | None:
    """Texts lie on a circle; the cosine of two is that of the angle between them."""
    if text == "unknown":
        return None
    at = ANGLES.get(text) if text in ANGLES else float(text)
    return [10 * math.cos(at), 10 * math.sin(at)] if at is not None else None


class Chat:
    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.headers = headers
        self.calls = 0

    async def __call__(self, exchange: Exchange) -> Answer:
        self.calls += 1
        return reply({"call": self.calls}, 200, *self.headers)


def chat(
    text: Any, *headers: tuple[bytes, bytes], system: str = "be kind", role: str = "user", **more: Any
) -> Exchange:
    messages = [{"role": "system", "content": system}, {"role": role, "content": text}]
    body = {"model": "m", "temperature": 0, "messages": messages, **more}
    return post("/v1/chat/completions", body, *headers, stream=bool(more.get("stream")))


def calls(stage: Semantic, *exchanges: Exchange) -> list[int]:
    async def work() -> list[int]:
        return [content(await stage(exchange))["call"] for exchange in exchanges]

    return run(work())


def test_a_near_text_gets_the_kept_answer() -> None:
    """The answer says how near it was, and the exchange that it was cached."""
    stage = Semantic(Chat(), angle, 0.99, MB)

    async def work() -> Answer:
        await stage(chat("hello"))
        return await stage(near)

    near = chat("hi")
    answer = run(work())
    assert content(answer) == {"call": 1}
    assert (b"negawatt-cosine", b"0.9950") in answer.headers
    assert near.outcome == Outcome.CACHED
    assert (stage.stats.hits, stage.stats.misses) == (1, 1)


def test_the_nearest_answer_is_given() -> None:
    """Among several kept ones, that with the largest cosine."""
    assert calls(Semantic(Chat(), angle, 0.99, MB), *map(chat, ("hello", "bye", "2.05", "-0.05"))) == [1, 2, 2, 1]


@pytest.mark.parametrize(
    "other",
    [
        chat("bye"),
        chat("hi", system="be rude"),
        chat("hi", (b"authorization", b"Bearer other")),
        chat("hi", temperature=0.5),
        chat("hi", temperature=None),
        chat("hi", max_tokens=5),
        chat("hi", model="n"),
        chat("hi", stream=True),
        chat("hi", (b"cache-control", b"no-cache")),
        chat("hi", role="assistant"),
        chat([{"type": "text", "text": "hi"}]),
        chat("unknown"),
        post("/v1/completions", {"model": "m", "temperature": 0, "prompt": "hi"}),
        post("/v1/chat/completions", b"{"),
    ],
)
def test_nothing_else_may_differ(other: Exchange) -> None:
    """Context, credentials, options; and what cannot be embedded or read goes straight through."""
    assert calls(Semantic(Chat(), angle, 0.99, MB), chat("hello"), other) == [1, 2]


def test_completions_are_compared_by_their_prompt() -> None:
    """OpenAI's older API has no messages."""
    asked = [post("/v1/completions", {"model": "m", "temperature": 0, "prompt": text}) for text in ("hello", "hi")]
    assert calls(Semantic(Chat(), angle, 0.99, MB), *asked) == [1, 1]


@pytest.mark.parametrize("header", [(b"cache-control", b"no-store"), (b"set-cookie", b"a=b"), (b"vary", b"*")])
def test_what_upstream_forbids_is_not_kept(header: tuple[bytes, bytes]) -> None:
    """The rules of the exact cache hold here too."""
    assert calls(Semantic(Chat(header), angle, 0.99, MB), chat("hello"), chat("hello")) == [1, 2]


def test_an_answer_goes_when_its_time_is_over() -> None:
    """A day by default."""
    now_s = [0.0]
    stage = Semantic(Chat(), angle, 0.99, MB, max_age_s=10.0, clock=lambda: now_s[0])
    assert calls(stage, chat("hello"), chat("hi")) == [1, 1]
    now_s[0] = 11.0
    assert calls(stage, chat("hi")) == [2]


def test_memory_is_bounded() -> None:
    """Neither many texts of one kind nor many kinds take more than they may."""
    stage = Semantic(Chat(), angle, 0.9999999, 200_000)
    made = calls(stage, *(chat(str(i / 500), system=f"kind {i % 3}") for i in range(2000)))
    assert made == list(range(1, 2001))
    assert 0 < stage._kinds.size <= 200_000
    large = Semantic(Chat(), angle, 0.9999999, 100 * MB)
    calls(large, *(chat(str(i / 500)) for i in range(1100)))
    kind = next(iter(large._kinds._kept.values())).value
    assert len(kind.answers) == len(kind.vectors) == 1024
    assert kind.size == sum(len(answer.body) + 1000 for answer, _ in kind.answers)


def test_the_embedding_comes_over_http(caplog: pytest.LogCaptureFixture) -> None:
    """From a real server; whatever is wrong with it, requests go on, and the reason is logged once."""
    from aiohttp import web

    answers: list[Any] = [
        {"data": [{"embedding": [1, 0.5]}]},
        {"data": []},
        {"data": [{"embedding": ["x"]}]},
        "slow",
        500,
    ]
    seen = []

    async def serve(request: web.Request) -> web.Response:
        seen.append((await request.json(), dict(request.headers)))
        made = answers[len(seen) - 1]
        if made == "slow":
            await asyncio.sleep(1)
        return web.Response(status=500) if made in ("slow", 500) else web.json_response(made)

    async def work() -> list[Any]:
        app = web.Application()
        app.router.add_post("/v1/embeddings", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        embed = HttpEmbed(f"http://127.0.0.1:{port}/v1/embeddings", model="e", timeout_s=0.2)
        try:
            return [await embed("text") for _ in answers]
        finally:
            await embed.close()
            await runner.cleanup()

    assert asyncio.run(work()) == [[1, 0.5], None, None, None, None]
    assert seen[0][0] == {"input": "text", "model": "e"}
    assert len(caplog.records) == 1
    assert "no embedding from" in caplog.text

    async def nobody() -> object:
        embed = HttpEmbed("http://127.0.0.1:9/v1/embeddings")
        try:
            return await embed("text")
        finally:
            await embed.close()

    assert asyncio.run(nobody()) is None


def test_an_answer_in_pieces_is_made_whole() -> None:
    """Answers that upstream sends in pieces are kept as well."""
    made = 0

    async def upstream(exchange: Exchange) -> Answer:
        nonlocal made
        made += 1
        return in_pieces(reply({"call": made, "text": "x" * 1000}))

    assert calls(Semantic(upstream, angle, 0.99, MB), chat("hello"), chat("hi")) == [1, 1]
