"""Cascade: a small model is asked first, and its answer counts if it is sure enough; else the large one is asked.

Streams go to the large model untouched: what has been shown to a client cannot be taken back. So does everything that
the small model's confidence cannot be told for.

The confidence is a member of the small model's JSON answer, or the mean probability of its tokens, exp of the mean of
their logarithms. For the latter the gateway asks it for `logprobs` and takes them out again if the client did not ask.

A small model on another server than the large one may be another party's: it gets neither the client's credentials nor
its query, only the body and a few headers about it.

How sure is sure enough is not taken on trust: a random part of the answers that count is asked of the large model too,
in the background, and a small model that differs more often than it may is believed less, then not at all
(`agreement`). Such an audit has an account of its own, for the path /negawatt/audit: its joules are not idle ones,
and no client's either.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from random import Random
from typing import Any, final

from negawatt.core.serving import AUDIT, Outcome
from negawatt.core.serving import Cascade as Options
from negawatt.serve.agreement import Watch, WatchStats, agree
from negawatt.serve.bodies import answer_with, from_json, gathered, json_object, plain, to_json, with_body
from negawatt.serve.exchange import Accounts, Answer, Exchange, Stage, UpstreamError, closed

_LOG = logging.getLogger(__name__)
_MOST_BYTES = 4 << 20
"""Longest answer that is read for its confidence."""
_TO_ANYONE = frozenset(
    (b"accept", b"accept-encoding", b"content-length", b"content-type", b"traceparent", b"user-agent")
)
"""Headers that go to another party too: credentials have many names, so nothing else does."""
_AUDITS_AT_ONCE = 4
_FAILURES = 5
"""So many in a row, and the small model rests."""
_REST_S = (5.0, 60.0)
"""For so long at first, and at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CascadeStats:
    """What came of a cascade so far, in numbers of requests.

    Attributes:
        untouched: that went to the large model at once: streams, other APIs, a small model that is not believed.
        accepted: that the small model answered.
        escalated: that it was not sure enough of.
        failed: that it gave no answer to.
        audits_skipped: that should have been audited, but too many audits were under way.
        watch: what the audits say.
    """

    untouched: int = 0
    accepted: int = 0
    escalated: int = 0
    failed: int = 0
    audits_skipped: int = 0
    watch: WatchStats


@final
class Cascade:
    """Asks the small model first.

    Args:
        small: the way to the small model.
        large: the way to the large one.
        options: what counts.
        rng: chooses what is audited.
        accounts: where the joules of audits go; None: nowhere.
        same_party: whether the small model's server may see what the large one's sees: credentials, cookies, all else.
    """

    def __init__(
        self,
        small: Stage,
        large: Stage,
        options: Options,
        rng: Random,
        *,
        accounts: Accounts | None = None,
        same_party: bool = False,
    ) -> None:
        self._small = small
        self._large = large
        self._options = options
        self._rng = rng
        self._accounts = accounts
        self._same_party = same_party
        self._watch = Watch(options.confidence, options.margin)
        self._audits: set[asyncio.Task[None]] = set()
        self._counts: Counter[str] = Counter()
        self._failures = 0
        self._rests_until_s = 0.0

    @property
    def stats(self) -> CascadeStats:
        """What came of it so far."""
        return CascadeStats(**self._counts, watch=self._watch.stats)

    async def __call__(self, exchange: Exchange) -> Answer:
        """The small model's answer if it counts, else the large one's. Raises UpstreamError."""
        request = self._for_small(exchange)
        if request is None:
            self._counts["untouched"] += 1
            return await self._large(exchange)
        answer, confidence = await self._ask_small(exchange, request)
        if answer is None or confidence is None or not self._watch.counts(confidence):
            self._counts["failed" if answer is None else "escalated"] += 1
            return _marked(await self._large(exchange), b"large")
        self._counts["accepted"] += 1
        if self._rng.random() < self._options.audit_fraction:
            self._audit(exchange, answer, confidence)
        return _marked(answer, b"small", (b"negawatt-confidence", b"%.4f" % confidence))

    def _for_small(self, exchange: Exchange) -> dict[str, Any] | None:
        """The request's JSON if the small model is to be asked."""
        if exchange.stream or not self._watch.believed:
            return None
        if asyncio.get_running_loop().time() < self._rests_until_s:
            return None
        if not self._options.field and not exchange.path.endswith(("/chat/completions", "/completions")):
            return None
        body = json_object(exchange)
        if body is None or body.get("stream") or any(body.get(name) not in (None, 1) for name in ("n", "best_of")):
            return None
        return body

    async def _ask_small(self, exchange: Exchange, body: dict[str, Any]) -> tuple[Answer | None, float | None]:
        """Its answer and how sure it is; None: it gave none that can be read."""
        wants = body.get("logprobs")
        adds = not self._options.field and (wants is None or wants is False)  # 0 asks for them
        if adds:
            body["logprobs"] = True if exchange.path.endswith("/chat/completions") else 1
        if self._options.model:
            body["model"] = self._options.model
        try:
            asked = self._shown(with_body(exchange, to_json(body)))
        except ValueError:  # a number that no double holds
            return None, None
        try:
            answer = await gathered(await self._small(asked), _MOST_BYTES)
        except UpstreamError as error:
            self._failed(error.reason)
            return None, None
        await closed(answer.body)
        found = from_json(answer.body) if isinstance(answer.body, bytes) and plain(answer) else None
        locked = answer.status in (401, 403) and not self._same_party
        if answer.status >= 500 or locked or (answer.status == 200 and found is None):
            self._failed(f"status {answer.status}")
        if answer.status != 200 or found is None or not isinstance(answer.body, bytes):
            return None, None
        self._failures = 0
        exchange.shared = asked.shared
        confidence = _field(found, self._options.field) if self._options.field else _mean_probability(found)
        try:
            return (_without_logprobs(answer, found) if adds else answer), confidence
        except ValueError:  # a number that no double holds
            return None, None

    def _shown(self, asked: Exchange) -> Exchange:
        """What the small model's server gets to see of a request."""
        if self._same_party:
            return asked
        kept = tuple(pair for pair in asked.headers if pair[0] in _TO_ANYONE)
        return replace(asked, target=asked.target.split(b"?", 1)[0], headers=kept)

    def _failed(self, reason: str) -> None:
        self._failures += 1
        if self._failures >= _FAILURES:
            rest_s = min(_REST_S[0] * 2.0 ** min(self._failures - _FAILURES, 10), _REST_S[1])
            self._rests_until_s = asyncio.get_running_loop().time() + rest_s
            _LOG.warning("cascade: the small model failed %d times (%s); it rests %g s", self._failures, reason, rest_s)

    def _audit(self, exchange: Exchange, answer: Answer, confidence: float) -> None:
        if len(self._audits) >= _AUDITS_AT_ONCE:
            self._counts["audits_skipped"] += 1
            return
        asked = with_body(exchange, exchange.body)
        task = asyncio.get_running_loop().create_task(self._compare(asked, answer, confidence))
        self._audits.add(task)
        task.add_done_callback(self._audits.discard)

    async def _compare(self, asked: Exchange, small: Answer, confidence: float) -> None:
        account = replace(
            asked,
            id=uuid.uuid4().hex,
            target=AUDIT.encode(),
            headers=(),
            body=b"",
            received_s=time.monotonic(),
            shared=1,
            outcome=Outcome.FAILED,
        )
        if self._accounts is not None:
            self._accounts.begin(account)
        status = 502
        try:
            answer = await gathered(await self._large(asked), _MOST_BYTES)
            await closed(answer.body)
            status, account.outcome, account.shared = answer.status, Outcome.ANSWERED, asked.shared
            account.tokens_in, account.tokens_out = asked.tokens_in, asked.tokens_out
            large = from_json(answer.body) if isinstance(answer.body, bytes) else None
            if answer.status == 200 and large is not None and isinstance(small.body, bytes):
                self._judge(confidence, same=agree(from_json(small.body), large))
        except UpstreamError as error:
            status = error.status
            _LOG.info("cascade: an audit got no answer: %s", error.reason)
        finally:
            if self._accounts is not None:
                self._accounts.end(account, status)

    def _judge(self, confidence: float, *, same: bool) -> None:
        before = self._watch.threshold, self._watch.believed
        self._watch.audited(confidence, same=same)
        after = self._watch.threshold, self._watch.believed
        if before != after:
            now = f"only a confidence of {after[0]:g} counts" if after[1] else "it is not asked any more"
            _LOG.warning("cascade: the small model differs more often than %g: %s", self._options.margin, now)

    async def close(self) -> None:
        """End the audits that are under way."""
        tasks = list(self._audits)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _marked(answer: Answer, who: bytes, *more: tuple[bytes, bytes]) -> Answer:
    return replace(answer, headers=(*answer.headers, (b"negawatt-cascade", who), *more))


def _field(answer: Any, path: str) -> float | None:  # noqa: ANN401 -- JSON is anything
    """The number at a dotted path, from 0 to 1; None if there is none."""
    for name in path.split("."):
        if isinstance(answer, dict):
            answer = answer.get(name)
        elif isinstance(answer, list) and name.isdecimal() and int(name) < len(answer):
            answer = answer[int(name)]
        else:
            return None
    return float(answer) if type(answer) in (int, float) and 0 <= answer <= 1 else None


def _mean_probability(answer: Any) -> float | None:  # noqa: ANN401
    """The mean probability, exp of the mean logarithm of those of an answer's tokens; None if it does not tell them."""
    try:
        told = answer["choices"][0]["logprobs"]
        content = told.get("content")
        logs = [token["logprob"] for token in content] if content is not None else told["token_logprobs"]
        known = [log for log in logs if log is not None]
        return min(1.0, math.exp(math.fsum(known) / len(known)))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError):
        return None  # not an answer with logprobs


def _without_logprobs(answer: Answer, found: Any) -> Answer:  # noqa: ANN401
    choices = found.get("choices") if isinstance(found, dict) else None
    if not isinstance(choices, list):
        return answer
    for choice in choices:
        if isinstance(choice, dict) and "logprobs" in choice:
            choice["logprobs"] = None
    return answer_with(answer, to_json(found))
