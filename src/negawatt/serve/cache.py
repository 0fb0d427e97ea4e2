"""Cache: the same request gets the answer that it got before, for no joules at all.

Kept is what upstream would answer the same again:

- for APIs that take a list (embeddings) the answer to each item: a request with some known items goes upstream with
  the others only;
- other answers of models that do not draw at random: rerankers, classifiers, scores, tokenizers;
- chats and completions at "temperature": 0 with one answer. A fixed seed is not enough: servers promise no more than
  their best effort for it.

What counts as the same: path and query, the body's JSON (members in any order, but 1 is not 1.0), and every header
that may make a difference, credentials among them: no client ever sees an answer that was given under other
credentials. Keys are digests with a salt of this process. An answer is kept only if its status is 200, it came whole,
sets no cookie, and neither side forbids it (Cache-Control, Vary: RFC 9111).

Equal requests at the same time go upstream once. A model that is exchanged behind the same name makes kept answers
wrong: restart the gateway, or `clear()`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from negawatt.core.serving import Outcome
from negawatt.serve.bodies import (
    digest,
    flows,
    gathered,
    is_untold,
    json_object,
    to_json,
    told,
    with_body,
    with_headers,
)
from negawatt.serve.exchange import Answer, Exchange, Stage, closed
from negawatt.serve.headers import first
from negawatt.serve.lists import KNOWN, Asked, ListApi, Parts, Result, asked, put_together, taken_apart
from negawatt.serve.store import Flights, Store

PATHS = ("/rerank", "/classify", "/score", "/moderations", "/similarity", "/tokenize", "/detokenize")
"""Ends of the paths whose answers do not depend on chance, beside the APIs that take lists."""
_DRAWN = ("/chat/completions", "/completions")
_NOT_FOR_ITEMS = frozenset((401, 403, 429, *range(500, 600)))
"""Answers that upstream would give for other items too."""
_LIST_BYTES = 64 << 20
"""Longest answer that is taken apart."""
_ENTRY_BYTES = 1000
"""What an entry takes beside its body, about: objects, digest, headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    answer: Answer
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """An answer of a list API without its results."""

    answer: Answer
    frame: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetched:
    """What came from upstream, of a list API in parts as well, and how long it may be kept; 0: for nobody else."""

    answer: Answer
    shared: int
    until_s: float
    parts: Parts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Items of a request: their keys, and the results that are kept."""

    kind: bytes
    keys: list[bytes]
    known: dict[bytes, Result]

    @property
    def missing(self) -> list[bytes]:
        """Keys of the others, each once."""
        return list(dict.fromkeys(key for key in self.keys if key not in self.known))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What came of a cache so far.

    Attributes:
        hits: requests that were answered without upstream.
        together: those of them that waited for an equal one's answer.
        misses: requests that were looked for in vain, in part at least.
        items_known, items_asked: items of lists that were kept, and that upstream was asked for.
        passed: requests that are not for a cache.
        entries: kept now.
        size_bytes: that they take.
    """

    hits: int = 0
    together: int = 0
    misses: int = 0
    items_known: int = 0
    items_asked: int = 0
    passed: int = 0
    entries: int = 0
    size_bytes: int = 0


@final
class Cache:
    """Keeps answers.

    Args:
        onward: the next stage.
        most_bytes: of all that is kept; one entry takes at most an eighth of it.
        apis: that take lists.
        paths: ends of the paths of other answers that are kept.
        max_age_s: longest time that an answer is kept; upstream may want less (Cache-Control: max-age) [s].
        clock: in seconds.
    """

    def __init__(
        self,
        onward: Stage,
        most_bytes: int,
        *,
        apis: Sequence[ListApi] = KNOWN,
        paths: Sequence[str] = PATHS,
        max_age_s: float = 86_400.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._onward = onward
        self._apis = tuple(apis)
        self._paths = tuple(paths)
        self._max_age_s = max_age_s
        self._clock = clock
        self._store: Store[_Entry | Result | _Frame] = Store(most_bytes, most_bytes // 8)
        self._flights: Flights[_Fetched] = Flights(_discard)
        self._counts: Counter[str] = Counter()

    @property
    def stats(self) -> CacheStats:
        """What came of it so far."""
        return CacheStats(**self._counts, entries=len(self._store), size_bytes=self._store.size)

    def clear(self) -> None:
        """Keep nothing of what is kept."""
        self._store.clear()

    async def __call__(self, exchange: Exchange) -> Answer:
        """The kept answer, or that of the next stage. Raises UpstreamError."""
        wish = orders(exchange.header(b"cache-control"))
        if exchange.method == "POST" and not exchange.stream and "no-store" not in wish:
            fresh = "no-cache" in wish or wish.get("max-age") == "0"
            fresh = fresh or b"no-cache" in (exchange.header(b"pragma") or b"")
            request = asked(exchange, self._apis)
            if request is not None:
                return await self._by_items(exchange, request, fresh=fresh)
            key = self._key(exchange)
            if key is not None:
                return await self._by_request(exchange, key, fresh=fresh)
        self._count(passed=1)
        return await self._onward(exchange)

    def _key(self, exchange: Exchange) -> bytes | None:
        """Of a request whose answer does not depend on chance; None for others."""
        path = exchange.path
        drawn = path.endswith(_DRAWN)
        if not drawn and not path.endswith(self._paths):
            return None
        body = json_object(exchange)
        if body is None or (drawn and not certain(body)):
            return None
        try:
            canonical = to_json(body)
        except ValueError:
            return None
        return digest(b"request", exchange.target, told(exchange.headers, b"accept-encoding"), canonical)

    async def _by_request(self, exchange: Exchange, key: bytes, *, fresh: bool) -> Answer:
        now_s = self._clock()
        kept = None if fresh else self._store.get(key, now_s)
        if isinstance(kept, _Entry):
            self._count(hits=1)
            return _from_kept(exchange, kept, now_s)
        fetched: _Fetched | None
        if fresh:
            fetched, led = await self._fetch_and_keep(key, exchange), True
        else:
            fetched, led = await self._flights.share(key, lambda: self._fetch_and_keep(key, _apart(exchange)))
        if led and fetched is not None:
            self._count(misses=1)
            exchange.shared = fetched.shared
            return fetched.answer
        if fetched is None or not fetched.until_s:
            self._count(misses=1)
            return await self._onward(exchange)
        self._count(hits=1, together=1)
        return _from_kept(exchange, _Entry(answer=fetched.answer, since_s=now_s), now_s)

    async def _fetch_and_keep(self, key: bytes, exchange: Exchange) -> _Fetched:
        fetched = await self._fetch(exchange, self._store.largest_bytes)
        body = fetched.answer.body
        if fetched.until_s and isinstance(body, bytes):
            entry = _Entry(answer=fetched.answer, since_s=self._clock())
            self._store.put(key, entry, size=len(body) + _ENTRY_BYTES, until_s=fetched.until_s)
        return fetched

    async def _fetch(self, exchange: Exchange, most_bytes: int) -> _Fetched:
        answer = await self._onward(exchange)
        until_s = kept_until_s(answer, self._clock(), self._max_age_s)
        if until_s:
            answer = await gathered(answer, most_bytes)
        if not isinstance(answer.body, bytes):
            until_s = 0.0
        return _Fetched(answer=answer, shared=exchange.shared, until_s=until_s)

    async def _by_items(self, exchange: Exchange, request: Asked, *, fresh: bool) -> Answer:
        now_s = self._clock()
        kind = digest(b"items", exchange.target, told(exchange.headers), request.rest)
        keys = [digest(kind, item) for item in request.items]
        frame = None if fresh else self._store.get(kind, now_s)
        known: dict[bytes, Result] = {}
        if isinstance(frame, _Frame):
            found = ((key, self._store.get(key, now_s)) for key in keys)
            known = {key: kept for key, kept in found if isinstance(kept, Result)}
            if len(known) == len(set(keys)):
                self._count(hits=1, items_known=len(keys))
                exchange.outcome = Outcome.CACHED
                return put_together(frame.answer, frame.frame, [known[key] for key in keys])
        wanted = _Wanted(kind=kind, keys=keys, known=known)
        return await self._ask_for_missing(exchange, request, wanted, fresh=fresh)

    async def _ask_for_missing(self, exchange: Exchange, request: Asked, wanted: _Wanted, *, fresh: bool) -> Answer:
        missing = wanted.missing
        everything = len(missing) == len(wanted.keys)
        places = [wanted.keys.index(key) for key in missing]

        async def fetch() -> _Fetched:
            body = exchange.body if everything else request.body(request.items[place] for place in places)
            fetched = await self._fetch(with_body(exchange, body), _LIST_BYTES)
            parts = await taken_apart(fetched.answer, request, [request.weights[place] for place in places])
            self._keep_items(wanted.kind, missing, fetched, parts)
            return replace(fetched, parts=parts)

        fetched: _Fetched | None
        if fresh:
            fetched, led = await fetch(), True
        else:
            fetched, led = await self._flights.share(digest(wanted.kind, *missing), fetch)
        self._count(misses=1, items_known=len(wanted.keys) - len(missing), items_asked=len(missing))
        if fetched is None or not (led or (fetched.until_s and fetched.parts)):
            return await self._onward(exchange)
        if led:
            exchange.shared = fetched.shared
            if everything or fetched.answer.status in _NOT_FOR_ITEMS:
                return fetched.answer
            if fetched.parts is None:  # upstream shall say itself what it has against the request
                await closed(fetched.answer.body)
                return await self._onward(exchange)
        else:
            exchange.outcome = Outcome.CACHED
        assert fetched.parts is not None  # noqa: S101 -- for the type checker
        results = wanted.known | dict(zip(missing, fetched.parts.results, strict=True))
        return put_together(fetched.answer, fetched.parts.frame, [results[key] for key in wanted.keys])

    def _keep_items(self, kind: bytes, keys: Sequence[bytes], fetched: _Fetched, parts: Parts | None) -> None:
        if parts is None or not fetched.until_s:
            return
        for key, result in zip(keys, parts.results, strict=True):
            self._store.put(key, result, size=result.size, until_s=fetched.until_s)
        frame = _Frame(answer=replace(fetched.answer, body=b""), frame=parts.frame)
        self._store.put(kind, frame, size=2 * _ENTRY_BYTES, until_s=fetched.until_s)

    def _count(self, **more: int) -> None:
        for name, n in more.items():
            self._counts[name] += n


def certain(body: dict[str, Any]) -> bool:
    """Whether a model that is asked for a text this way does not draw at random: temperature 0, one answer, whole."""
    temperature = body.get("temperature")
    return (
        type(temperature) in (int, float)
        and temperature == 0
        and all(body.get(name) in (None, 1) for name in ("n", "best_of"))
        and not body.get("stream")
        and not body.get("store")
        and "web_search_options" not in body
    )


def kept_until_s(answer: Answer, now_s: float, max_age_s: float) -> float:
    """Until when an answer may be given to others, on the clock of `now_s`; 0: not at all.

    Args:
        answer: of upstream; its status, headers and kind decide.
        now_s: now [s].
        max_age_s: longest time; upstream may want less [s].
    """
    if answer.status != 200 or flows(answer) or first(answer.headers, b"content-range"):
        return 0.0
    for name, value in answer.headers:
        if name == b"set-cookie" or (name == b"vary" and not _vary_is_told(value)):
            return 0.0
        if name == b"cache-control":
            wish = orders(value)
            if wish.keys() & {"no-store", "no-cache", "private"}:
                return 0.0
            told_s = wish.get("s-maxage", wish.get("max-age"))
            if told_s is not None:
                max_age_s = min(max_age_s, float(told_s)) if told_s.isdecimal() else 0.0
    return now_s + max_age_s if max_age_s else 0.0


def _from_kept(exchange: Exchange, entry: _Entry, now_s: float) -> Answer:
    exchange.outcome = Outcome.CACHED
    age = b"%d" % (now_s - entry.since_s)
    return replace(entry.answer, headers=with_headers(entry.answer.headers, age=age))


def _apart(exchange: Exchange) -> Exchange:
    """A copy that is not told of its client's going away: others may wait for its answer too."""
    return replace(exchange, gone=asyncio.Event())


async def _discard(fetched: _Fetched) -> None:
    await closed(fetched.answer.body)


def orders(value: bytes | None) -> dict[str, str]:
    """The directives of a Cache-Control header, in lower case."""
    if not value:
        return {}
    pairs = (part.strip().lower().partition("=") for part in value.decode("latin-1").split(","))
    return {name: given.strip('"') for name, _, given in pairs}


def _vary_is_told(value: bytes) -> bool:
    """Whether all headers that an answer depends on are part of the key."""
    names = [name.strip().lower() for name in value.split(b",")]
    return all(name == b"accept-encoding" or not (name == b"*" or is_untold(name)) for name in names)
