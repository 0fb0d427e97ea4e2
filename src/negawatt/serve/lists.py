"""APIs that take a list and answer with a list: requests that can be joined and answers that can be taken apart.

An item is one text, or one list of token ids. Its answer must not depend on the items beside it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.serve.bodies import answer_with, from_json, json_object, plain, to_json
from negawatt.serve.cuts import elements, members
from negawatt.serve.exchange import Answer, Exchange

Usage = dict[str, Any]
_RESULTS, _USAGE = b"results", b"usage"
_QUICK_BYTES = 1 << 20
"""An answer up to this length is taken apart within milliseconds, on the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListApi:
    """One such API.

    Attributes:
        suffix: what the path ends with.
        member: of the request: its items, a list of them or one by itself.
        results: member of the answer that has a result per item in their order, or with its place as "index"; "": the
            answer is the list.
    """

    suffix: str
    member: str
    results: str = ""


KNOWN = (
    ListApi(suffix="/embeddings", member="input", results="data"),
    ListApi(suffix="/embed", member="inputs"),
    ListApi(suffix="/embed_all", member="inputs"),
    ListApi(suffix="/embed_sparse", member="inputs"),
)
"""OpenAI's embeddings and those of Hugging Face's Text Embeddings Inference.

Its /predict is not among them: there ["a", "b"] is one item, a pair. Others are for their operators to name.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request to such an API, taken apart.

    Attributes:
        api: which.
        items: JSON of each.
        weights: length of each, in characters or tokens.
        rest: JSON of the other members.
        tokens: whether the items are token ids; they cannot go into one list with texts.
    """

    api: ListApi
    items: tuple[bytes, ...]
    weights: tuple[int, ...]
    rest: bytes
    tokens: bool

    def body(self, items: Iterable[bytes]) -> bytes:
        """The same request for other items, as a list."""
        more = b"}" if self.rest == b"{}" else b"," + self.rest[1:]
        return b"{%b:[%b]%b" % (to_json(self.api.member), b",".join(items), more)


def asked(exchange: Exchange, apis: Iterable[ListApi] = KNOWN) -> Asked | None:
    """The request taken apart; None if it is not one of these or cannot be read without doubt."""
    path = exchange.path
    api = next((api for api in apis if path.endswith(api.suffix)), None)
    if api is None or exchange.stream:
        return None
    body = json_object(exchange)
    items = _items(body.pop(api.member, None)) if body is not None else None
    if body is None or not items:
        return None
    try:
        rest = to_json(body)
    except ValueError:
        return None
    return Asked(
        api=api,
        items=tuple(map(to_json, items)),
        weights=tuple(map(len, items)),
        rest=rest,
        tokens=isinstance(items[0], list),
    )


def _items(given: object) -> list[str] | list[list[int]] | None:
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        return None
    if _all_int(given):
        return [given]
    if all(type(item) is str for item in given) or all(
        type(item) is list and item and _all_int(item) for item in given
    ):
        return given
    return None


def _all_int(values: list[Any]) -> bool:
    return all(type(value) is int for value in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer to one item, as upstream wrote it, but for its place in the list.

    Attributes:
        head: up to its place; all of it if it does not tell one.
        tail: what follows its place; None: it tells none.
        usage: the counts of the whole answer that are this item's; None: none were given.
        exact: whether they are, and not a part of a total by length.
    """

    head: bytes
    tail: bytes | None
    usage: Usage | None = None
    exact: bool = True

    def at(self, index: int) -> bytes:
        """Its JSON at a place in a list."""
        return self.head if self.tail is None else b"%b%d%b" % (self.head, index, self.tail)

    @property
    def size(self) -> int:
        """Bytes that it takes, about."""
        return len(self.head) + len(self.tail or b"") + 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """An answer, taken apart.

    Attributes:
        frame: the JSON of its members but the results and the usage, whose places are marked; empty: the answer is the
            list.
        results: in the order of the items.
    """

    frame: tuple[tuple[bytes, bytes], ...]
    results: tuple[Result, ...]


async def taken_apart(answer: Answer, request: Asked, weights: Sequence[int]) -> Parts | None:
    """As `take_apart`, but a long answer holds up nobody else: a thread takes it apart."""
    if isinstance(answer.body, bytes) and len(answer.body) > _QUICK_BYTES:
        return await asyncio.to_thread(take_apart, answer, request, weights)
    return take_apart(answer, request, weights)


def take_apart(answer: Answer, request: Asked, weights: Sequence[int]) -> Parts | None:
    """The answer to some items of that API, taken apart; None if it is not as it should be.

    Counts in "usage" are shared out so that they add up to what they were. If the total is the sum of the lengths, as
    with token ids, each share is exact; else the total is divided by length.

    Args:
        answer: whole.
        request: names the API.
        weights: lengths of the items that it is to.
    """
    body = answer.body
    if answer.status != 200 or not isinstance(body, bytes) or not plain(answer):
        return None
    frame: tuple[tuple[bytes, bytes], ...] = ()
    usage = None
    try:
        if not request.api.results:
            texts = [body[a:b] for a, b in elements(body)]
        else:
            found = members(body)
            a, b = found[request.api.results]
            listed = body[a:b]
            texts = [listed[c:d] for c, d in elements(listed)]
            marks = {request.api.results: _RESULTS, "usage": _USAGE}
            frame = tuple((to_json(key), marks.get(key) or body[c:d]) for key, (c, d) in found.items())
            usage = _usage(body[slice(*found["usage"])]) if "usage" in found else None
        results = _in_order(texts)
        if len(results) != len(weights):
            return None
        shares = [None] * len(weights) if usage is None else _shares(usage, weights)
    except (ValueError, KeyError):
        return None
    exact = len(weights) == 1 or usage is None or usage.get("prompt_tokens") == sum(weights)
    made = zip(results, shares, strict=True)
    return Parts(
        frame=frame,
        results=tuple(Result(head=r.head, tail=r.tail, usage=share, exact=exact) for r, share in made),
    )


def _in_order(texts: list[bytes]) -> list[Result]:
    """The results by the places that they tell. Raises ValueError if these are not 0, 1, 2, ... in some order."""
    made: dict[int, Result] = {}
    for place, text in enumerate(texts):
        found = members(text) if text[:1] == b"{" else {}
        if "index" in found:
            a, b = found["index"]
            made[int(text[a:b])] = Result(head=text[:a], tail=text[b:])
        else:
            made[place] = Result(head=text, tail=None)
    if sorted(made) != list(range(len(texts))):
        raise ValueError("the results do not tell their places")
    return [made[place] for place in range(len(texts))]


def _usage(text: bytes) -> Usage | None:
    usage = from_json(text)
    if usage is None and text != b"null":
        raise ValueError("the usage cannot be read")
    if usage is not None and not isinstance(usage, dict):
        raise ValueError("the usage is no object")
    return usage


def _shares(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    shares: list[Usage] = [{} for _ in weights]
    for name, value in usage.items():
        if type(value) is int:
            parts: Sequence[Any] = divide(value, weights)
        elif type(value) is float:
            parts = [value * weight / max(1, sum(weights)) for weight in weights]
        elif isinstance(value, dict):
            parts = _shares(value, weights)
        else:
            parts = [value] * len(weights)
        for share, part in zip(shares, parts, strict=True):
            share[name] = part
    return shares


def divide(total: int, weights: Sequence[int]) -> list[int]:
    """Whole numbers in the proportion of the weights that add up to the total: the largest remainders get one more.

    Raises:
        ValueError: if the total is negative.
    """
    if total < 0:
        raise ValueError(f"a total of {total}")
    weights = weights if any(weights) else [1] * len(weights)
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    behind = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for i in behind[: total - sum(parts)]:
        parts[i] += 1
    return parts


def put_together(answer: Answer, frame: tuple[tuple[bytes, bytes], ...], results: Sequence[Result]) -> Answer:
    """The answer to some items.

    Args:
        answer: whose status and headers it gets, but for cookies: they are for one client.
        frame: of an answer of that API.
        results: of the items, in their order.
    """
    listed = b"[%b]" % b",".join(result.at(i) for i, result in enumerate(results))
    divided = any(not result.exact for result in results)
    usage = _summed(results)
    marked = {_RESULTS: listed, _USAGE: json.dumps(usage, separators=(",", ":")).encode()}
    body = b"{%b}" % b",".join(b"%b:%b" % (key, marked.get(value, value)) for key, value in frame) if frame else listed
    more = ((b"negawatt-usage", b"divided"),) if divided and usage is not None else ()
    return answer_with(answer, body, *more, without=(b"set-cookie", b"content-encoding"))


def _summed(results: Sequence[Result]) -> Usage | None:
    """The counts of some items together; None if one has none."""
    usages = [result.usage for result in results]
    known = [usage for usage in usages if usage is not None]
    return _sum(known) if known and len(known) == len(usages) else None


def _sum(usages: Sequence[Usage]) -> Usage:
    made: Usage = {}
    for name, value in usages[0].items():
        values = [usage[name] for usage in usages if name in usage]
        if all(type(v) in (int, float) for v in values):
            made[name] = sum(values)
        elif all(isinstance(v, dict) for v in values):
            made[name] = _sum(values)
        else:
            made[name] = value
    return made
