"""Cascade: the small model's answer where it is sure, the large one's elsewhere, and audits of the first."""

from __future__ import annotations

import asyncio
import json
import math
from random import Random
from typing import Any

import pytest
from standins import broken, content, in_pieces, post, reply, run

from negawatt.core.reading import Source
from negawatt.core.serving import Cascade as Options
from negawatt.core.serving import Cost, Outcome
from negawatt.serve.cascade import Cascade
from negawatt.serve.exchange import Answer, Exchange

CHAT = "/v1/chat/completions"


class Model:
    """Says a text, with the probability of its tokens if it is asked."""

    def __init__(self, text: str, probability: float = 0.95, *, status: int = 200, pieces: bool = False) -> None:
        self.text, self.probability, self.status, self.pieces = text, probability, status, pieces
        self.asked: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.time_s = 0.0

    async def __call__(self, exchange: Exchange) -> Answer:
        body = json.loads(exchange.body)
        self.asked.append(body)
        exchange.shared = 1
        await asyncio.sleep(self.time_s)
        if self.error is not None:
            raise self.error
        choice: dict[str, Any] = {"message": {"content": self.text}, "text": self.text, "logprobs": None}
        logs = [math.log(self.probability)] * 3
        if body.get("logprobs") is True:
            choice["logprobs"] = {"content": [{"token": "t", "logprob": log} for log in logs]}
        elif body.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": [None, *logs]}
        made = {
            "choices": [choice],
            "confidence": self.probability,
            "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        }
        answer = reply(made, self.status)
        return in_pieces(answer) if self.pieces else answer


class Book:
    """Accounts that only note who came and went."""

    def __init__(self) -> None:
        self.begun: list[Exchange] = []
        self.ended: list[tuple[Exchange, int]] = []

    def begin(self, exchange: Exchange) -> None:
        self.begun.append(exchange)

    def so_far(self, exchange: Exchange) -> Cost:
        return Cost(energy_j=0.0, energy_sd_j=0.0, source=Source.DECLARED)

    def end(self, exchange: Exchange, status: int) -> None:
        self.ended.append((exchange, status))


def cascade(small: Any, large: Any, rng: Random | None = None, accounts: Book | None = None, **options: Any) -> Cascade:
    options = {"upstream": "http://small", "audit_fraction": 0.0, **options}
    return Cascade(small, large, Options(**options), rng or Random(1), accounts=accounts)


def chat(path: str = CHAT, **more: Any) -> Exchange:
    return post(path, {"model": "big", "messages": [], **more}, stream=bool(more.get("stream")))


@pytest.mark.parametrize(("path", "flag"), [(CHAT, True), ("/v1/completions", 1)])
def test_a_sure_small_model_answers(path: str, flag: object) -> None:
    """It is asked for its tokens' probabilities under its own name; the client sees neither these nor the large one."""
    small, large = Model("small", pieces=True), Model("large")
    asked = chat(path)
    answer = run(cascade(small, large, model="tiny")(asked))
    assert content(answer)["choices"][0]["text"] == "small"
    assert content(answer)["choices"][0]["logprobs"] is None
    assert (b"negawatt-cascade", b"small") in answer.headers
    assert (b"negawatt-confidence", b"0.9500") in answer.headers
    assert small.asked == [{"model": "tiny", "messages": [], "logprobs": flag}]
    assert large.asked == []
    assert asked.shared == 1


def test_logprobs_that_the_client_asked_for_stay() -> None:
    """Only what the gateway added is taken out."""
    answer = run(cascade(Model("small"), Model("large"))(chat(logprobs=True)))
    assert len(content(answer)["choices"][0]["logprobs"]["content"]) == 3


def test_a_completion_that_asks_for_0_logprobs_has_asked() -> None:
    """It wants those of the tokens that were drawn, and of no others."""
    small = Model("small")
    told = reply({"choices": [{"text": "small", "logprobs": {"token_logprobs": [-0.01]}}]})

    async def tells(exchange: Exchange) -> Answer:
        await small(exchange)
        return told

    answer = run(cascade(tells, Model("large"))(chat("/v1/completions", logprobs=0)))
    assert small.asked[0]["logprobs"] == 0
    assert answer.body == told.body


@pytest.mark.parametrize(
    "said",
    [
        b'{"choices": [{"text": "a", "logprobs": {"token_logprobs": [-0.01]}}], "x": 1e999}',
        b'{"choices": [{"text": "a", "logprobs": {"token_logprobs": [-1e999, 1e999]}}]}',
    ],
)
def test_numbers_that_no_double_holds_hand_over(said: bytes) -> None:
    """The small model's answer cannot be written again, or its confidence not be told: the large one is asked."""

    async def small(_: Exchange) -> Answer:
        return reply(said)

    answer = run(cascade(small, Model("large"))(chat("/v1/completions")))
    assert content(answer)["choices"][0]["text"] == "large"


CLIENTS = ((b"authorization", b"Bearer k"), (b"cookie", b"a=b"), (b"x-api-key", b"k"), (b"traceparent", b"00-1"))


@pytest.mark.parametrize("same_party", [False, True])
def test_credentials_go_to_the_large_models_party_only(*, same_party: bool) -> None:
    """A small model elsewhere gets the body and no credentials, be they headers or in the query; the large one all."""
    seen: list[Exchange] = []

    async def small(exchange: Exchange) -> Answer:
        seen.append(exchange)
        return reply({}, 401)

    async def large(exchange: Exchange) -> Answer:
        seen.append(exchange)
        return reply({})

    stage = Cascade(small, large, Options(upstream="http://small"), Random(1), same_party=same_party)
    run(stage(post(CHAT + "?key=k", {"model": "big"}, *CLIENTS)))
    given = dict(seen[0].headers)
    assert {name for name, _ in CLIENTS if name in given} == (
        {name for name, _ in CLIENTS} if same_party else {b"traceparent"}
    )
    assert seen[0].target == (CHAT + ("?key=k" if same_party else "")).encode()
    assert (given[b"content-type"], int(given[b"content-length"])) == (b"application/json", len(seen[0].body))
    assert set(CLIENTS) <= set(seen[1].headers)
    assert stage._failures == (0 if same_party else 1)  # elsewhere a lock is nobody's fault but the gateway's


def test_an_unsure_small_model_hands_over() -> None:
    """The large model gets the request as the client sent it."""
    small, large = Model("small", 0.5), Model("large")
    stage = cascade(small, large)
    answer = run(stage(chat()))
    assert content(answer)["choices"][0]["text"] == "large"
    assert (b"negawatt-cascade", b"large") in answer.headers
    assert large.asked == [{"model": "big", "messages": []}]
    assert (stage.stats.accepted, stage.stats.escalated) == (0, 1)


def test_the_confidence_may_be_a_member_of_the_answer() -> None:
    """For any JSON API; the answer comes untouched, and without a number there is no confidence."""
    small, large = Model("small", 0.95), Model("large")
    for path, who in (
        ("confidence", b"small"),
        ("choices.0.text", b"large"),
        ("choices.7.x", b"large"),
        ("a.b", b"large"),
    ):
        answer = run(cascade(small, large, field=path)(chat("/predict")))
        assert (b"negawatt-cascade", who) in answer.headers
    assert "logprobs" not in small.asked[0]
    found = run(cascade(small, large, field="usage.prompt_tokens")(chat("/predict")))
    assert (b"negawatt-cascade", b"large") in found.headers  # 3 is no probability


@pytest.mark.parametrize(
    "asked",
    [
        chat(stream=True),
        chat(n=2),
        chat("/v1/embeddings"),
        post(CHAT, b"{"),
        post(CHAT, {"model": "big"}, method="PUT"),
    ],
)
def test_what_the_small_model_cannot_be_judged_on_goes_straight_to_the_large(asked: Exchange) -> None:
    """Streams, several answers, other APIs, what cannot be read: the very same exchange."""
    seen = []

    async def large(exchange: Exchange) -> Answer:
        seen.append(exchange)
        return reply({})

    small = Model("small")
    answer = run(cascade(small, large)(asked))
    assert seen == [asked]
    assert seen[0] is asked
    assert small.asked == []
    assert all(name != b"negawatt-cascade" for name, _ in answer.headers)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_a_small_model_that_gives_no_answer_hands_over(status: int) -> None:
    """Whatever it has against the request, the large one may have nothing."""
    stage = cascade(Model("small", status=status), Model("large"))
    assert content(run(stage(chat())))["choices"][0]["text"] == "large"
    assert stage.stats.failed == 1


def test_a_small_model_that_is_down_rests() -> None:
    """After 5 failures in a row it is left alone for a while: nobody waits for its timeout."""
    small, large = Model("small"), Model("large")
    small.error = broken(504)
    stage = cascade(small, large)

    async def work() -> None:
        for _ in range(8):
            assert content(await stage(chat()))["choices"][0]["text"] == "large"

    run(work())
    assert len(small.asked) == 5
    assert (stage.stats.failed, stage.stats.untouched) == (5, 3)


async def settled(stage: Cascade) -> None:
    while stage._audits:
        await asyncio.sleep(0.001)


def test_audits_have_accounts_of_their_own() -> None:
    """The client has its answer before the large model has; the audit is booked under a path of its own."""
    small, large, book = Model("yes"), Model("Yes "), Book()
    large.time_s = 0.02
    stage = cascade(small, large, accounts=book, audit_fraction=1.0)

    async def work() -> None:
        await stage(chat())
        assert not book.ended
        await settled(stage)

    run(work())
    ((account, status),) = book.ended
    assert book.begun == [account]
    assert (account.path, account.outcome, status, account.shared) == ("/negawatt/audit", Outcome.ANSWERED, 200, 1)
    assert account.body == b""
    assert (stage.stats.watch.audited, stage.stats.watch.differed) == (1, 0)


def test_an_audit_that_fails_or_is_ended_is_closed_in_the_books() -> None:
    """Every account that is begun is ended, with the outcome that it had."""
    small, large, book = Model("yes"), Model("yes"), Book()
    stage = cascade(small, large, accounts=book, audit_fraction=1.0)

    async def work() -> None:
        large.error = broken(503)
        await stage(chat())
        await settled(stage)
        large.error, large.time_s = None, 60.0
        await stage(chat())
        await asyncio.sleep(0.001)
        await stage.close()

    run(work())
    assert [(account.outcome, status) for account, status in book.ended] == [
        (Outcome.FAILED, 503),
        (Outcome.FAILED, 502),
    ]
    assert stage.stats.watch.audited == 0


def test_audits_at_a_time_are_bounded() -> None:
    """A slow large model is not flooded with them."""
    small, large = Model("yes"), Model("yes")
    large.time_s = 0.02
    stage = cascade(small, large, audit_fraction=1.0)

    async def work() -> None:
        for _ in range(10):
            await stage(chat())
        await settled(stage)

    run(work())
    assert (len(large.asked), stage.stats.audits_skipped, stage.stats.accepted) == (4, 6, 10)


def test_a_small_model_that_differs_too_often_is_not_believed_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """A random part of its answers is audited; then all requests go to the large model, and the log says why."""
    small, large = Model("no"), Model("yes")
    stage = cascade(small, large, audit_fraction=0.2, margin=0.05)

    async def work() -> str:
        for _ in range(200):
            await stage(chat())
            await settled(stage)
        return str(content(await stage(chat()))["choices"][0]["text"])

    assert run(work()) == "yes"
    assert not stage.stats.watch.believed
    assert len(small.asked) < 100
    assert "differs more often than 0.05" in caplog.text


def test_a_client_that_goes_away_ends_the_call() -> None:
    """Nothing goes on to the large model for it."""
    small, large = Model("small", 0.1), Model("large")
    small.time_s = 5.0

    async def work() -> None:
        task = asyncio.ensure_future(cascade(small, large)(chat()))
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    run(work())
    assert large.asked == []
