"""Semantic cache: a text that means nearly the same as one before gets its answer. Opt-in: it may be wrong.

Two chats at temperature 0 that differ in nothing but their last user message (or two completions that differ in
nothing but their prompt) are compared by the cosine of the embeddings of these texts. At or above the threshold the
kept answer is given, with the cosine in the header `negawatt-cosine`. What counts as nothing else is what the exact
cache counts: other messages, options, path, and every header that may make a difference, credentials among them.

The embedding comes from a model that its operator runs; the text goes there, the client's credentials do not. If it
does not come, the request goes on as if there were no such cache.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from negawatt.core.serving import Outcome
from negawatt.serve.bodies import answer_with, digest, from_json, gathered, json_object, plain, to_json, told
from negawatt.serve.cache import certain, kept_until_s, orders
from negawatt.serve.exchange import Answer, Exchange, Stage
from negawatt.serve.store import Store

if TYPE_CHECKING:
    import aiohttp
    import numpy as np
    from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)
_MOST_ROWS = 1024
"""Texts of one kind that are compared; a newer one takes the place of the oldest."""
_LARGEST_ANSWER_BYTES = 1 << 20
_ROW_BYTES = 1000
"""What a kept answer takes beside its body and its embedding, about."""

Embed = Callable[[str], Awaitable[Sequence[float] | None]]
"""The embedding of a text; None: it cannot be had now, and the reason was logged."""


@dataclass(slots=True, eq=False)
class _Kind:
    """Texts that differ in nothing else: unit vectors row by row, with their answers."""

    vectors: NDArray[np.float32]
    answers: list[tuple[Answer, float]] = field(default_factory=list)
    oldest: int = 0
    size: int = 0  # bytes

    def nearest(self, vector: NDArray[np.float32], now_s: float) -> tuple[Answer | None, float]:
        """The nearest answer whose time is not over, and its cosine."""
        import numpy as np

        if not self.answers or len(vector) != self.vectors.shape[1]:
            return None, 0.0
        cosines = self.vectors[: len(self.answers)] @ vector
        alive = np.array([until_s > now_s for _, until_s in self.answers])
        place = int(np.argmax(np.where(alive, cosines, -2.0)))
        return (self.answers[place][0] if alive[place] else None), float(cosines[place])

    def add(self, vector: NDArray[np.float32], answer: Answer, until_s: float) -> None:
        import numpy as np

        kept = (answer, until_s)
        if len(self.answers) < _MOST_ROWS:
            if len(self.answers) == len(self.vectors):
                self.vectors = np.concatenate([self.vectors, np.zeros_like(self.vectors)])
            self.vectors[len(self.answers)] = vector
            self.answers.append(kept)
        else:
            self.vectors[self.oldest] = vector
            self.size -= _size(self.answers[self.oldest][0])
            self.answers[self.oldest] = kept
            self.oldest = (self.oldest + 1) % _MOST_ROWS
        self.size += _size(answer)


def _size(answer: Answer) -> int:
    return len(answer.body) + _ROW_BYTES if isinstance(answer.body, bytes) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticStats:
    """What came of a semantic cache so far, in numbers of requests.

    Attributes:
        hits: answered with the answer to another text.
        misses: that had no near one.
        unknown: whose embedding did not come.
    """

    hits: int = 0
    misses: int = 0
    unknown: int = 0


@final
class Semantic:
    """Gives the answer to a text that means nearly the same.

    Args:
        onward: the next stage.
        embed: the embedding of a text.
        threshold: least cosine, above 0.
        most_bytes: of all that is kept; one kind of request takes at most an eighth of it, and a kind that outgrows
            that begins anew.
        max_age_s: longest time that an answer is given [s].
        clock: in seconds.
    """

    def __init__(
        self,
        onward: Stage,
        embed: Embed,
        threshold: float,
        most_bytes: int,
        *,
        max_age_s: float = 86_400.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._onward = onward
        self._embed = embed
        self._threshold = threshold
        self._max_age_s = max_age_s
        self._clock = clock
        self._kinds: Store[_Kind] = Store(most_bytes, most_bytes // 8)
        self._counts: Counter[str] = Counter()

    @property
    def stats(self) -> SemanticStats:
        """What came of it so far."""
        return SemanticStats(**self._counts)

    async def __call__(self, exchange: Exchange) -> Answer:
        """A near one's answer, or that of the next stage. Raises UpstreamError."""
        found = _text_and_rest(exchange)
        if found is None:
            return await self._onward(exchange)
        text, rest = found
        numbers = await self._embed(text)
        vector = _unit(numbers) if numbers is not None else None
        if vector is None:
            self._counts["unknown"] += 1
            return await self._onward(exchange)
        key = digest(exchange.target, told(exchange.headers, b"accept-encoding"), rest)
        kind = self._kinds.get(key, self._clock())
        if kind is not None:
            near, cosine = kind.nearest(vector, self._clock())
            if near is not None and isinstance(near.body, bytes) and cosine >= self._threshold:
                self._counts["hits"] += 1
                exchange.outcome = Outcome.CACHED
                return answer_with(near, near.body, (b"negawatt-cosine", b"%.4f" % cosine))
        self._counts["misses"] += 1
        answer = await self._onward(exchange)
        until_s = kept_until_s(answer, self._clock(), self._max_age_s)
        if until_s and plain(answer):
            answer = await gathered(answer, _LARGEST_ANSWER_BYTES)
            if isinstance(answer.body, bytes):
                self._keep(key, vector, answer, until_s)
        return answer

    def _keep(self, key: bytes, vector: NDArray[np.float32], answer: Answer, until_s: float) -> None:
        import numpy as np

        kind = self._kinds.get(key, self._clock())
        if kind is None or kind.vectors.shape[1] != len(vector):
            kind = _Kind(np.zeros((4, len(vector)), np.float32))
        kind.add(vector, answer, until_s)
        size = kind.size + kind.vectors.nbytes + _ROW_BYTES
        self._kinds.put(key, kind, size=size, until_s=self._clock() + self._max_age_s)


def _text_and_rest(exchange: Exchange) -> tuple[str, bytes] | None:
    """The text that may differ, and all that may not; None for a request that this cache is not for."""
    path = exchange.path
    if exchange.stream or not path.endswith(("/chat/completions", "/completions")):
        return None
    asked = orders(exchange.header(b"cache-control"))
    if asked.keys() & {"no-store", "no-cache"} or asked.get("max-age") == "0":
        return None
    body = json_object(exchange)
    if body is None or not certain(body):
        return None
    text = _taken_out(body, chat=path.endswith("/chat/completions"))
    if text is None or not text.strip():
        return None
    try:
        return text, to_json(body)
    except ValueError:
        return None


def _taken_out(body: dict[str, Any], *, chat: bool) -> str | None:
    """The text that may differ, which is not in the body any more."""
    holder, name = body, "prompt"
    if chat:
        messages = body.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        if not isinstance(last, dict) or last.get("role") != "user":
            return None
        holder, name = last, "content"
    text = holder.get(name)
    holder[name] = None
    return text if isinstance(text, str) else None


def _unit(numbers: Sequence[float]) -> NDArray[np.float32] | None:
    """The vector of length 1 in that direction; None if it has none."""
    import numpy as np

    vector = np.asarray(numbers, np.float32)
    length = float(np.linalg.norm(vector)) if vector.ndim == 1 and vector.size else 0.0
    return vector / np.float32(length) if 0 < length < float("inf") else None


@final
class HttpEmbed:
    """Asks a server that speaks OpenAI's embeddings API.

    Args:
        url: of the endpoint ("http://127.0.0.1:8002/v1/embeddings").
        model: name to ask it for; "": none is sent.
        timeout_s: how long a request waits for it before it goes on without [s].
    """

    def __init__(self, url: str, *, model: str = "", timeout_s: float = 1.0) -> None:
        self._url = url
        self._model = model
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._works = True

    async def __call__(self, text: str) -> Sequence[float] | None:
        """The embedding of a text, or None."""
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        ask = {"input": text, "model": self._model} if self._model else {"input": text}
        try:
            async with self._session.post(self._url, json=ask, allow_redirects=False) as answer:
                body = await answer.content.read(_LARGEST_ANSWER_BYTES)
                while not answer.content.at_eof() and len(body) < _LARGEST_ANSWER_BYTES:
                    body += await answer.content.read(_LARGEST_ANSWER_BYTES - len(body))
                numbers = _embedding(from_json(body)) if answer.status == 200 else None
                reason = f"status {answer.status}" if answer.status != 200 else "an answer without an embedding"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            numbers, reason = None, f"{type(error).__name__}: {error}"
        if numbers is None and self._works:
            _LOG.warning("semantic cache: no embedding from %s: %s; requests go on without", self._url, reason)
        self._works = numbers is not None
        return numbers

    async def close(self) -> None:
        """Close its connections."""
        if self._session is not None:
            await self._session.close()


def _embedding(answer: Any) -> list[float] | None:  # noqa: ANN401 -- JSON is anything
    try:
        numbers = answer["data"][0]["embedding"]
    except (KeyError, IndexError, TypeError):
        return None
    fine = isinstance(numbers, list) and numbers and all(type(number) in (int, float) for number in numbers)
    return numbers if fine else None
