"""Batcher: joined requests give each client what it would have got alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standins import Embedder, broken, content, embed, in_pieces, post, reply, run, tokens, vector, vectors

from negawatt.core.serving import ServingSetting
from negawatt.serve.batcher import Batcher
from negawatt.serve.exchange import Answer, Exchange, UpstreamError
from negawatt.serve.lists import divide


def batcher(onward: Any, window_s: float = 0.05, max_batch: int = 32, **more: Any) -> Batcher:
    return Batcher(onward, lambda: ServingSetting(window_s=window_s, max_batch=max_batch), **more)


async def behind_another(stage: Batcher, *exchanges: Exchange) -> list[Any]:
    """All while upstream is busy with a first one, which is not joined."""
    first = asyncio.ensure_future(stage(embed("first")))
    await asyncio.sleep(0.001)
    answers = await asyncio.gather(*map(stage, exchanges), return_exceptions=True)
    await first
    return answers


def test_requests_that_come_while_upstream_is_busy_go_as_one() -> None:
    """What arrives during a call leaves together when it ends, and each has its own part, string or list."""
    server = Embedder(0.02)
    stage = batcher(server)
    asked = [embed("a"), embed(["bb", "ccc"]), embed(["dddd"])]
    answers = run(behind_another(stage, *asked))
    assert server.asked == ["first", ["a", "bb", "ccc", "dddd"]]
    assert [vectors(answer) for answer in answers] == [
        [vector("a")],
        [vector("bb"), vector("ccc")],
        [vector("dddd")],
    ]
    assert [exchange.shared for exchange in asked] == [3, 3, 3]
    assert (stage.stats.joined, stage.stats.calls, stage.stats.alone) == (3, 1, 1)
    assert content(answers[1])["model"] == "m"
    assert (b"x-server", b"1") in answers[1].headers


def test_a_lone_request_is_not_held_up() -> None:
    """A client that waits for each answer waits for a window only once in a while."""
    server = Embedder()

    async def work() -> float:
        stage = batcher(server, window_s=0.2)
        began = asyncio.get_running_loop().time()
        for i in range(50):
            await stage(embed(f"text {i}"))
        return asyncio.get_running_loop().time() - began

    assert run(work()) < 1.2  # 4 or 5 windows that were in vain
    assert all(exchange.shared == 1 for exchange in server.calls)


def test_steady_traffic_is_joined_though_upstream_is_quick() -> None:
    """Requests that come less than a window apart wait for one another: that is what saves joules."""
    server = Embedder()

    async def work() -> None:
        stage = batcher(server, window_s=0.05)
        going = []
        for i in range(60):
            going.append(asyncio.ensure_future(stage(embed(f"text {i}"))))
            await asyncio.sleep(0.004)
        await asyncio.gather(*going)

    run(work())
    assert len(server.calls) < 20


def test_no_window_or_a_batch_of_one_joins_nothing() -> None:
    """The setting without batching hands each exchange on, the very same object."""
    for window_s, max_batch in ((0.0, 32), (0.05, 1)):
        server = Embedder(0.01)
        asked = [embed("a"), embed("b")]
        run(behind_another(batcher(server, window_s, max_batch), *asked))
        assert len(server.calls) == 3
        assert server.calls[1] is asked[0]


def test_a_full_batch_leaves_at_once() -> None:
    """`max_batch` counts requests; nobody waits for the window when it is reached."""
    server = Embedder(0.02)

    async def work() -> float:
        stage = batcher(server, window_s=10.0, max_batch=2)
        began = asyncio.get_running_loop().time()
        await behind_another(stage, *(embed(text) for text in "abcd"))
        return asyncio.get_running_loop().time() - began

    assert run(work()) < 1
    assert server.asked == ["first", ["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    "other",
    [
        embed("b", (b"authorization", b"Bearer other")),
        embed("b", model="another"),
        embed("b", dimensions=2),
        embed([1, 2, 3]),
        post("/v2/embeddings", {"input": "b", "model": "m"}),
        post("/v1/embeddings?x=1", {"input": "b", "model": "m"}),
        embed("b", (b"openai-organization", b"org")),
    ],
)
def test_only_what_agrees_in_everything_else_is_joined(other: Exchange) -> None:
    """Credentials, model, options, path, query and kind of input keep requests apart."""
    server = Embedder(0.02)
    answers = run(behind_another(batcher(server), embed("a"), other))
    assert len(server.calls) == 3
    assert all(answer.status == 200 for answer in answers)


def test_trace_ids_and_lengths_do_not_keep_requests_apart() -> None:
    """Headers that say nothing of what is asked may differ."""
    server = Embedder(0.02)
    one = embed("a", (b"traceparent", b"00-1"), (b"x-request-id", b"1"), (b"authorization", b"Bearer k"))
    two = embed("bb", (b"traceparent", b"00-2"), (b"accept-encoding", b"gzip"), (b"authorization", b"Bearer k"))
    run(behind_another(batcher(server), one, two))
    assert server.asked[1] == ["a", "bb"]
    assert server.calls[1].header(b"accept-encoding") == b"identity"
    assert server.calls[1].header(b"authorization") == b"Bearer k"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"input": "a", "input": "b"}',
        b'{"input": ["a", 1], "model": "m"}',
        b'{"input": [], "model": "m"}',
        b'{"input": {"a": 1}}',
        b'{"input": [[]]}',
        b'{"input": "a", "x": NaN}',
        b'{"input": "a", "x": 1e999}',
        b'{"input": "\xff"}',
        b'{"input": ' + b"[" * 10_000,
        b"",
    ],
)
def test_what_cannot_be_read_goes_on_untouched(body: bytes) -> None:
    """Upstream says itself what it thinks of a malformed body."""
    seen = []

    async def upstream(exchange: Exchange) -> Answer:
        seen.append(exchange.body)
        return reply({"error": "?"}, 400)

    asked = post("/v1/embeddings", body)
    assert run(batcher(upstream)(asked)).status == 400
    assert seen == [body]


def test_one_bad_input_spoils_nobody_elses() -> None:
    """A batch that upstream refuses is sent one by one: its owner gets the refusal, the others their answers."""
    server = Embedder(0.02)
    asked = [embed("a"), embed("bad"), embed("c")]
    answers = run(behind_another(batcher(server), *asked))
    assert [answer.status for answer in answers] == [200, 400, 200]
    assert content(answers[1]) == {"error": "item 0 is bad"}
    assert [exchange.shared for exchange in asked] == [1, 1, 1]


def test_the_batcher_learns_how_many_items_upstream_takes() -> None:
    """After a batch that was refused though each is answered alone, batches are half as large."""
    server = Embedder(0.01, most=2)
    stage = batcher(server)

    async def work() -> None:
        await behind_another(stage, *(embed(text) for text in "abcd"))
        server.calls.clear()
        answers = await behind_another(stage, *(embed(text) for text in "abcd"))
        assert all(answer.status == 200 for answer in answers)

    run(work())
    assert max(len(given) for given in server.asked if isinstance(given, list)) == 2


def test_a_limit_on_items_is_tried_again() -> None:
    """What upstream refused may have been too long, not too many: after 64 full batches a larger one is sent."""
    server = Embedder(0.005, most=2)
    stage = batcher(server, max_batch=4)

    async def work() -> None:
        await behind_another(stage, *(embed(text) for text in "abcd"))
        server.most = 100
        server.calls.clear()
        for _ in range(40):
            await behind_another(stage, *(embed(text) for text in "abcd"))

    run(work())
    sizes = [len(given) for given in server.asked if isinstance(given, list)]
    assert sizes[:60] == [2] * 60
    assert max(sizes) == 3


@pytest.mark.parametrize(("status", "calls"), [(502, 4), (503, 2), (504, 2)])
def test_a_call_that_upstream_does_not_answer(status: int, calls: int) -> None:
    """Cut off: each is sent alone. Too busy or too slow: all are told, as asking again would make it worse."""
    server = Embedder(0.02)

    def fail(exchange: Exchange) -> Answer | None:
        if exchange.shared > 1:
            raise broken(status)
        return None

    server.fail = fail
    answers = run(behind_another(batcher(server), embed("a"), embed("b")))
    assert len(server.calls) == calls
    if status == 502:
        assert [vectors(answer) for answer in answers] == [[vector("a")], [vector("b")]]
    else:
        assert all(isinstance(answer, UpstreamError) and answer.status == status for answer in answers)


def test_an_answer_to_all_is_given_to_all() -> None:
    """429 concerns the credentials, not an input: nobody asks again."""
    server = Embedder(0.02)
    server.fail = lambda exchange: reply({"error": "slow down"}, 429, (b"retry-after", b"1"))
    answers = run(behind_another(batcher(server), embed("a"), embed("b")))
    assert [answer.status for answer in answers] == [429, 429]
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    "made",
    [
        {"data": [{"index": 0, "embedding": []}]},
        {"data": [{"index": 0}, {"index": 0}]},
        {"data": [{"index": 1}, {"index": 2}]},
        {"data": [{"index": "0"}, {"index": "1"}]},
        {"data": {}},
        {"data": [1, 2], "usage": {"prompt_tokens": -1}},
        {"data": [1, 2], "usage": 3},
        {"results": []},
        [],
        b'{"data": [1, 2',
        b'{"data": [1 2]}',
        b'{"data": [1, 2]} x',
        b'{"data": [1, 2], "data": []}',
        b'{"data":' + b"[" * 5_000,
        b"",
    ],
)
def test_an_answer_that_cannot_be_taken_apart_is_asked_for_again(made: object) -> None:
    """Nobody gets a part that may be somebody else's."""
    server = Embedder(0.02)
    server.fail = lambda exchange: reply(made) if exchange.shared > 1 else None
    answers = run(behind_another(batcher(server), embed("a"), embed("b")))
    assert [vectors(answer) for answer in answers] == [[vector("a")], [vector("b")]]


def test_answers_in_pieces_and_in_any_order_are_taken_apart() -> None:
    """Large answers come in pieces; results come with their places."""
    server = Embedder(0.02, backwards=True, pieces=True)
    answers = run(behind_another(batcher(server), embed(["a", "b"]), embed("c")))
    assert [vectors(answer) for answer in answers] == [[vector("a"), vector("b")], [vector("c")]]


def test_pieces_that_break_off_are_asked_for_again() -> None:
    """A joined answer that breaks off is no answer; each request goes alone."""
    server = Embedder(0.02)

    def fail(exchange: Exchange) -> Answer | None:
        return in_pieces(server.answer(json.loads(exchange.body)), breaks_after=100) if exchange.shared > 1 else None

    server.fail = fail
    answers = run(behind_another(batcher(server), embed("a"), embed("b")))
    assert [vectors(answer) for answer in answers] == [[vector("a")], [vector("b")]]


def test_a_client_that_goes_away_before_the_batch_leaves_is_taken_out() -> None:
    """Upstream never sees its part; the others are answered."""
    server = Embedder(0.03)

    async def work() -> list[list[float]]:
        stage = batcher(server, window_s=0.2)
        first = asyncio.ensure_future(stage(embed("first")))
        await asyncio.sleep(0.001)
        going = [asyncio.ensure_future(stage(embed(text))) for text in "abc"]
        alone = asyncio.ensure_future(stage(embed("x", model="another")))
        await asyncio.sleep(0.001)
        going[1].cancel()
        alone.cancel()
        await first
        answers = await asyncio.gather(going[0], going[2])
        assert going[1].cancelled()
        assert not stage._waiting
        return [*map(vectors, answers)]  # type: ignore[list-item]

    assert run(work()) == [[vector("a")], [vector("c")]]
    assert server.asked == ["first", ["a", "c"]]


def test_a_client_that_goes_away_after_the_batch_has_left_loses_only_its_part() -> None:
    """The call goes on for the others, and ends when nobody is left."""
    server = Embedder(0.02)

    async def work(gone: str) -> list[Any]:
        stage = batcher(server)
        first = asyncio.ensure_future(stage(embed("first")))
        await asyncio.sleep(0.001)
        going = {text: asyncio.ensure_future(stage(embed(text))) for text in "abc"}
        await first
        while server.calls[-1].shared < 3:
            await asyncio.sleep(0.001)
        for text in gone:
            going[text].cancel()
        return await asyncio.gather(*going.values(), return_exceptions=True)

    answers = run(work("b"))
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [False, True, False]
    assert vectors(answers[2]) == [vector("c")]
    assert server.cancelled == 0
    run(work("abc"))
    assert server.cancelled == 1


def test_usage_is_shared_out_and_adds_up() -> None:
    """Token ids have exact counts; texts get a part of the total by length, and the answer says so."""
    server = Embedder(0.02)
    answers = run(behind_another(batcher(server), embed([1, 2, 3]), embed([[4], [5, 6]])))
    assert [content(answer)["usage"]["prompt_tokens"] for answer in answers] == [3, 3]
    assert all((b"negawatt-usage", b"divided") not in answer.headers for answer in answers)
    texts = ["a long text of some words", "short", "another"]
    answers = run(behind_another(batcher(server), *map(embed, texts)))
    shares = [content(answer)["usage"] for answer in answers]
    assert sum(share["prompt_tokens"] for share in shares) == sum(map(tokens, texts))
    assert shares[0]["total_tokens"] > shares[1]["total_tokens"]
    assert all(share["prompt_tokens_details"] is None for share in shares)
    assert all((b"negawatt-usage", b"divided") in answer.headers for answer in answers)


def test_a_bare_list_is_taken_apart_too() -> None:
    """Text Embeddings Inference answers {"inputs": ...} with a list."""

    async def upstream(exchange: Exchange) -> Answer:
        await asyncio.sleep(0.02)
        given = json.loads(exchange.body)["inputs"]
        return reply([vector(item) for item in ([given] if isinstance(given, str) else given)])

    asked = [post("/embed", {"inputs": given, "truncate": True}) for given in ("a", ["b", "c"], "d")]

    async def work() -> list[Answer]:
        stage = batcher(upstream)
        return await asyncio.gather(*map(stage, asked))

    answers = run(work())
    assert [content(answer) for answer in answers] == [[vector("a")], [vector("b"), vector("c")], [vector("d")]]
    assert asked[1].shared == 2


def test_memory_for_habits_is_bounded() -> None:
    """A client that makes every request of another kind is not remembered for ever."""

    async def work() -> int:
        stage = batcher(Embedder(), window_s=0.001)
        for i in range(300):
            await stage(embed("a", model=f"model-{i}"))
        assert not stage._waiting
        return len(stage._habits)

    assert run(work()) == 256


@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.text(max_size=6).filter(lambda text: text != "bad"),
                st.lists(st.text(max_size=6).filter(lambda text: text != "bad"), min_size=1, max_size=4),
                st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=4), min_size=1, max_size=3),
            ),
            st.sampled_from(["k1", "k2"]),
            st.integers(0, 3),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
    st.booleans(),
)
def test_any_interleaving_gives_each_its_own(plan: list[Any], max_batch: int, backwards: bool) -> None:
    """Whatever comes when, and whoever goes away: each client has its items in order, and the tokens add up."""
    server = Embedder(0.0005, backwards=backwards)

    async def one(stage: Batcher, given: Any, key: str, after: int) -> Answer:
        for _ in range(after):
            await asyncio.sleep(0)
        return await stage(embed(given, (b"authorization", key.encode())))

    async def work() -> list[Any]:
        stage = batcher(server, 0.002, max_batch)
        going = [asyncio.ensure_future(one(stage, given, key, after)) for given, key, after, _ in plan]
        for _ in range(3):
            await asyncio.sleep(0)
        for task, (*_, goes) in zip(going, plan, strict=True):
            if goes:
                task.cancel()
        answers = await asyncio.gather(*going, return_exceptions=True)
        assert not stage._waiting
        assert not stage._calls
        return answers

    for answer, (asked, _, _, goes) in zip(run(work()), plan, strict=True):
        if isinstance(answer, asyncio.CancelledError):
            assert goes
            continue
        items = [asked] if isinstance(asked, str) else asked
        assert vectors(answer) == [vector(item) for item in items]
    for call in server.calls:
        assert call.shared <= max(1, max_batch)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_divide_adds_up(total: int, weights: list[int]) -> None:
    """Shares are whole, not negative, within one of the proportion, and add up to the total."""
    shares = divide(total, weights)
    assert sum(shares) == total
    whole = sum(weights)
    for share, weight in zip(shares, weights, strict=True):
        assert share >= 0
        assert not whole or abs(share - total * weight / whole) < 1 + 1e-6


def test_joined_and_kept_over_a_real_connection() -> None:
    """A real server, its answers larger than what is read whole: cache, batcher and upstream together."""
    from aiohttp import web

    from negawatt.serve.cache import Cache
    from negawatt.serve.upstream import Upstream

    lists = []

    async def serve(request: web.Request) -> web.Response:
        body = await request.json()
        lists.append(body["input"])
        await asyncio.sleep(0.02)
        items = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [{"object": "embedding", "index": i, "embedding": vector(item) * 3000} for i, item in enumerate(items)]
        return web.json_response({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 9}})

    async def work() -> list[Answer]:
        app = web.Application()
        app.router.add_post("/v1/embeddings", serve)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        upstream = Upstream(f"http://127.0.0.1:{runner.addresses[0][1]}")
        try:
            stage = Cache(batcher(upstream), 10 << 20)
            answers = [await stage(embed("a"))]
            answers += await asyncio.gather(stage(embed("b")), stage(embed(["a", "c"])), stage(embed("d")))
            return answers
        finally:
            await upstream.close()
            await runner.cleanup()

    answers = asyncio.run(work())
    assert lists[0] == "a"
    asked = [item for given in lists[1:] for item in ([given] if isinstance(given, str) else given)]
    assert sorted(asked) == ["b", "c", "d"]
    assert len(lists) <= 3
    expected = [["a"], ["b"], ["a", "c"], ["d"]]
    assert [vectors(answer) for answer in answers] == [[vector(i) * 3000 for i in items] for items in expected]
