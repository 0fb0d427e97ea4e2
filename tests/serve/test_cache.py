"""Cache: the same answer for the same request, to the same client only."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins import Embedder, broken, content, embed, in_pieces, post, reply, run, tokens, vector, vectors

from negawatt.core.serving import Outcome, ServingSetting
from negawatt.serve.batcher import Batcher
from negawatt.serve.cache import Cache
from negawatt.serve.exchange import Answer, Exchange, UpstreamError

MB = 1 << 20


class Chat:
    """Answers with a number that counts its calls."""

    def __init__(self, *headers: tuple[bytes, bytes], status: int = 200, time_s: float = 0.0) -> None:
        self.headers, self.status, self.time_s = headers, status, time_s
        self.calls = 0
        self.cancelled = 0

    async def __call__(self, exchange: Exchange) -> Answer:
        self.calls += 1
        number = self.calls
        exchange.shared = 1
        try:
            await asyncio.sleep(self.time_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return reply({"call": number}, self.status, *self.headers)


def chat(*headers: tuple[bytes, bytes], path: str = "/v1/chat/completions", **more: Any) -> Exchange:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0, **more}
    return post(path, body, *headers, stream=bool(more.get("stream")))


async def one_by_one(stage: Cache, *exchanges: Exchange) -> list[Any]:
    return [content(await stage(exchange)) for exchange in exchanges]


def test_a_chat_at_temperature_0_is_answered_once() -> None:
    """The second answer is the first, marked as cached, and upstream is not asked."""
    server = Chat()
    first, second = chat(), chat()
    assert run(one_by_one(Cache(server, MB), first, second)) == [{"call": 1}, {"call": 1}]
    assert (first.outcome, first.shared) == (Outcome.ANSWERED, 1)
    assert (second.outcome, second.shared) == (Outcome.CACHED, 0)


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.1},
        {"temperature": None},
        {"temperature": False},
        {"temperature": "0"},
        {"n": 2},
        {"best_of": 3},
        {"stream": True},
        {"store": True},
        {"web_search_options": {}},
        {"seed": 1, "temperature": 1},
        {"path": "/v1/responses"},
        {"path": "/v1/images/generations"},
    ],
)
def test_what_may_come_out_differently_is_asked_again(more: dict[str, Any]) -> None:
    """Only a request that cannot draw at random is kept."""
    assert run(one_by_one(Cache(Chat(), MB), chat(**more), chat(**more))) == [{"call": 1}, {"call": 2}]


def test_a_get_is_never_kept() -> None:
    """GETs tell how things are now."""
    asked = [post("/v1/score", {"a": 1}, method="GET") for _ in range(2)]
    assert run(one_by_one(Cache(Chat(), MB), *asked)) == [{"call": 1}, {"call": 2}]


def test_json_that_means_the_same_is_the_same() -> None:
    """Order of members and white space do not matter; 1 and 1.0 do, as some servers tell them apart."""
    bodies = [
        b'{"query": "q", "texts": ["a"], "k": 1}',
        b'{"k":1,"texts":["a"],"query":"\\u0071"}',
        b'{"query":"q","texts":["a"],"k":1.0}',
    ]
    asked = [post("/rerank", body) for body in bodies]
    assert run(one_by_one(Cache(Chat(), MB), *asked)) == [{"call": 1}, {"call": 1}, {"call": 2}]


@pytest.mark.parametrize(
    ("header", "same"),
    [
        ((b"authorization", b"Bearer other"), False),
        ((b"api-key", b"other"), False),
        ((b"x-api-key", b"other"), False),
        ((b"cookie", b"session=1"), False),
        ((b"x-tenant", b"7"), False),
        ((b"accept", b"text/plain"), False),
        ((b"accept-encoding", b"gzip"), False),
        ((b"user-agent", b"curl"), True),
        ((b"traceparent", b"00-1"), True),
        ((b"x-request-id", b"1"), True),
    ],
)
def test_other_credentials_never_see_a_kept_answer(header: tuple[bytes, bytes], same: bool) -> None:
    """Every header that may make a difference is part of the key, of whole answers and of items."""
    assert run(one_by_one(Cache(Chat(), MB), chat(), chat(header))) == [{"call": 1}, {"call": 1 if same else 2}]
    server = Embedder()
    run(one_by_one(Cache(server, MB), embed("a"), embed("a", header)))
    assert len(server.calls) == (1 if same or header[0] == b"accept-encoding" else 2)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"cache-control", b"no-store")],
        [(b"cache-control", b"private, max-age=60")],
        [(b"cache-control", b"No-Cache")],
        [(b"cache-control", b"max-age=0")],
        [(b"cache-control", b"max-age=soon")],
        [(b"vary", b"*")],
        [(b"vary", b"accept, user-agent")],
        [(b"set-cookie", b"a=b")],
        [(b"content-range", b"bytes 0-1/2")],
    ],
)
def test_an_answer_that_is_not_for_all_is_not_kept(headers: list[tuple[bytes, bytes]]) -> None:
    """Upstream may forbid it, and a cookie is for one client."""
    assert run(one_by_one(Cache(Chat(*headers), MB), chat(), chat())) == [{"call": 1}, {"call": 2}]


def test_an_answer_may_vary_by_what_is_in_the_key() -> None:
    """Vary: Origin needs no more than the key has."""
    server = Chat((b"vary", b"Origin, Accept-Encoding"), (b"cache-control", b"public, max-age=60"))
    asked = [chat(), chat(), chat((b"origin", b"there"))]
    assert run(one_by_one(Cache(server, MB), *asked)) == [{"call": 1}, {"call": 1}, {"call": 2}]


def test_an_age_that_is_no_number_is_none() -> None:
    """A superscript two is a digit to Unicode, and no number: the answer is not kept."""
    server = Chat((b"cache-control", b"max-age=\xb2"))
    assert run(one_by_one(Cache(server, MB), chat(), chat())) == [{"call": 1}, {"call": 2}]


@pytest.mark.parametrize("status", [201, 204, 400, 404, 429, 500])
def test_only_status_200_is_kept(status: int) -> None:
    """A refusal may be gone the next time."""
    assert run(one_by_one(Cache(Chat(status=status), MB), chat(), chat())) == [{"call": 1}, {"call": 2}]


def test_the_client_may_ask_for_a_fresh_answer() -> None:
    """no-cache asks upstream and keeps its answer; no-store leaves no trace."""
    fresh, untraced = chat((b"cache-control", b"no-cache")), chat((b"cache-control", b"no-store"))
    asked = [chat(), fresh, chat(), untraced, chat()]
    assert [made["call"] for made in run(one_by_one(Cache(Chat(), MB), *asked))] == [1, 2, 2, 3, 2]


def test_what_is_too_old_is_asked_again() -> None:
    """Kept for as long as upstream says, but no longer than the cache's own bound; the answer tells its age."""
    now_s = [0.0]

    async def work() -> list[int]:
        made = []
        for longest_s, headers in ((100.0, [(b"cache-control", b"max-age=60")]), (100.0, [])):
            stage = Cache(Chat(*headers), MB, max_age_s=longest_s, clock=lambda: now_s[0])
            for later_s in (0, 50, 20, 20, 20):
                now_s[0] += later_s
                answer = await stage(chat())
                made.append(content(answer)["call"])
                assert later_s != 50 or (b"age", b"50") in answer.headers
        return made

    assert run(work()) == [1, 1, 2, 2, 2, 1, 1, 1, 1, 2]


def test_equal_requests_at_the_same_time_go_upstream_once() -> None:
    """One leads, the others wait for its answer, and it comes from the cache for them."""
    server = Chat(time_s=0.01)
    asked = [chat() for _ in range(5)]

    async def work() -> list[Any]:
        stage = Cache(server, MB)
        made = [content(answer) for answer in await asyncio.gather(*map(stage, asked))]
        assert (stage.stats.hits, stage.stats.together, stage.stats.misses) == (4, 4, 1)
        return made

    assert run(work()) == [{"call": 1}] * 5
    assert sorted(exchange.outcome for exchange in asked) == [Outcome.ANSWERED] + [Outcome.CACHED] * 4


def test_a_leader_that_fails_or_goes_away_fails_nobody_else() -> None:
    """Whoever waited for it asks for itself if it failed, and gets the answer if only its client is gone."""
    server = Chat(time_s=0.01)
    calls = 0

    async def fails_first(exchange: Exchange) -> Answer:
        nonlocal calls
        calls += 1
        mine = calls
        await asyncio.sleep(0.01)
        if mine == 1:
            raise broken()
        return reply({"call": mine})

    async def work() -> None:
        stage = Cache(fails_first, MB)
        answers = await asyncio.gather(*(stage(chat()) for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [UpstreamError, Answer, Answer]
        stage = Cache(server, MB)
        going = [asyncio.ensure_future(stage(chat())) for _ in range(3)]
        await asyncio.sleep(0.001)
        going[0].cancel()
        assert content(await going[1]) == content(await going[2]) == {"call": 1}
        going = [asyncio.ensure_future(stage(chat(model="n"))) for _ in range(2)]
        await asyncio.sleep(0.001)
        for task in going:
            task.cancel()
        await asyncio.wait(going)
        await asyncio.sleep(0)
        assert server.cancelled == 1

    run(work())


def test_an_answer_in_pieces_is_kept_if_it_is_not_too_large() -> None:
    """Pieces are made whole; what is larger than an eighth of the cache keeps coming in pieces, whole, each time."""
    calls = 0
    texts = {"small": "s" * 1000, "large": "x" * 50_000}

    async def upstream(exchange: Exchange) -> Answer:
        nonlocal calls
        calls += 1
        return in_pieces(reply({"text": texts[json.loads(exchange.body)["model"]]}))

    async def work() -> None:
        stage = Cache(upstream, 100_000)
        for _ in range(2):
            assert content(await stage(chat(model="small"))) == {"text": texts["small"]}
        assert calls == 1
        for answer in await asyncio.gather(*(stage(chat(model="large")) for _ in range(3))):
            assert not isinstance(answer.body, bytes)
            assert json.loads(b"".join([piece async for piece in answer.body])) == {"text": texts["large"]}
        assert calls == 4
        assert stage.stats.size_bytes <= 100_000

    run(work())


def test_an_encoded_answer_is_kept_as_it_is() -> None:
    """The key has the encodings that the client takes, so the bytes fit whoever gets them."""

    async def upstream(exchange: Exchange) -> Answer:
        return reply(b"\x1f\x8b gzip", 200, (b"content-encoding", b"gzip"))

    async def work() -> None:
        stage = Cache(upstream, MB)
        for _ in range(2):
            answer = await stage(chat((b"accept-encoding", b"gzip")))
            assert answer.body == b"\x1f\x8b gzip"
            assert (b"content-encoding", b"gzip") in answer.headers
        assert stage.stats.hits == 1

    run(work())


def test_events_are_handed_on_as_they_come() -> None:
    """A server that answers with events though nobody asked for them is not held up."""

    async def upstream(exchange: Exchange) -> Answer:
        answer = in_pieces(reply(b"data: 1\n\n"))
        return Answer(status=200, headers=((b"content-type", b"text/event-stream"),), body=answer.body)

    async def work() -> None:
        answer = await Cache(upstream, MB)(chat())
        assert not isinstance(answer.body, bytes)
        assert [piece async for piece in answer.body] == [b"data: 1\n\n"]

    run(work())


def test_only_unknown_items_of_a_list_go_upstream() -> None:
    """The answer is put together from kept and new ones, in order, with the tokens of all."""
    server = Embedder()
    asked = [embed(["a", "bbbb"]), embed(["cc", "a", "cc", "bbbb"]), embed("bbbb"), embed(["a"])]

    async def work() -> list[Answer]:
        stage = Cache(server, MB)
        answers = [await stage(exchange) for exchange in asked]
        assert (stage.stats.hits, stage.stats.misses) == (2, 2)
        assert (stage.stats.items_known, stage.stats.items_asked) == (5, 3)
        return answers

    answers = run(work())
    assert server.asked == [["a", "bbbb"], ["cc"]]
    assert vectors(answers[1]) == [vector(text) for text in ("cc", "a", "cc", "bbbb")]
    assert vectors(answers[2]) == [vector("bbbb")]
    usage = content(answers[1])["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] == 2 * tokens("cc") + tokens("a") + tokens("bbbb")
    assert [exchange.outcome for exchange in asked] == [Outcome.ANSWERED] * 2 + [Outcome.CACHED] * 2
    assert [exchange.shared for exchange in asked[2:]] == [0, 0]


def test_lists_that_ask_for_other_things_are_kept_apart() -> None:
    """Model, options and token ids are part of an item's key."""
    server = Embedder()
    asked = [embed("a"), embed("a", model="n"), embed("a", dimensions=2), embed([97]), embed([[97]]), embed(["a"])]
    run(one_by_one(Cache(server, MB), *asked))
    assert len(server.calls) == 4


def test_upstream_says_itself_what_is_wrong_with_a_list() -> None:
    """If it refuses the unknown items, it is asked for all of them, so that it names the right one."""
    server = Embedder()
    asked = [embed(["a", "b"]), embed(["a", "b", "bad"])]

    async def work() -> Answer:
        stage = Cache(server, MB)
        await stage(asked[0])
        return await stage(asked[1])

    assert content(run(work())) == {"error": "item 2 is bad"}
    assert server.asked == [["a", "b"], ["bad"], ["a", "b", "bad"]]


def test_equal_lists_at_the_same_time_go_upstream_once() -> None:
    """Single flight holds for items too; a failing leader fails nobody else."""
    server = Embedder(0.01)
    asked = [embed(["a", "b"]), embed(["b", "a"]), embed(["a", "b"]), embed(["a", "b"])]

    async def work() -> list[Answer]:
        return await asyncio.gather(*map(Cache(server, MB), asked))

    answers = run(work())
    assert len(server.calls) == 2
    assert vectors(answers[3]) == [vector("a"), vector("b")]
    assert [exchange.outcome for exchange in asked][2:] == [Outcome.CACHED] * 2


def test_what_has_been_cleared_is_asked_again() -> None:
    """For a model that was exchanged."""

    async def work() -> list[Any]:
        stage = Cache(Chat(), MB)
        made = await one_by_one(stage, chat())
        stage.clear()
        assert stage.stats.entries == stage.stats.size_bytes == 0
        return made + await one_by_one(stage, chat())

    assert run(work()) == [{"call": 1}, {"call": 2}]


def test_a_cache_without_room_still_answers() -> None:
    """Items that do not fit are put together from what has just come."""
    server = Embedder()

    async def work() -> list[list[float]]:
        stage = Cache(server, 100)
        await stage(embed(["a", "b"]))
        return vectors(await stage(embed(["b", "c", "b"])))

    assert run(work()) == [vector("b"), vector("c"), vector("b")]


@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5)),
            st.sampled_from(["k1", "k2"]),
            st.integers(0, 4),
            st.booleans(),
        ),
        max_size=12,
    ),
    st.sampled_from([0, 3000, 20_000, MB]),
    st.booleans(),
)
def test_cache_and_batcher_together_give_each_its_own(plan: list[Any], most_bytes: int, backwards: bool) -> None:
    """Whatever is kept, joined, in flight or cancelled: each client has its items in order."""
    server = Embedder(0.0005, backwards=backwards)

    async def one(stage: Cache, wanted: Any, key: str, after: int) -> Answer:
        for _ in range(after):
            await asyncio.sleep(0)
        return await stage(embed(wanted, (b"authorization", key.encode())))

    async def work() -> list[Any]:
        stage = Cache(Batcher(server, lambda: ServingSetting(window_s=0.001, max_batch=4)), most_bytes)
        going = [asyncio.ensure_future(one(stage, wanted, key, after)) for wanted, key, after, _ in plan]
        for _ in range(3):
            await asyncio.sleep(0)
        for task, (*_, goes) in zip(going, plan, strict=True):
            if goes:
                task.cancel()
        answers = await asyncio.gather(*going, return_exceptions=True)
        assert stage.stats.size_bytes <= most_bytes
        assert not len(stage._flights)
        return answers

    for answer, (wanted, _, _, goes) in zip(run(work()), plan, strict=True):
        if isinstance(answer, asyncio.CancelledError):
            assert goes
        else:
            assert vectors(answer) == [vector(item) for item in wanted]
