"""Usage: the model that a request names, and the tokens that an answer says it took. Nothing is guessed.

Understood: `usage` of OpenAI's APIs (chat, completions, embeddings, responses) and of servers that speak them, Ollama's
`prompt_eval_count` and `eval_count`, and `generated_tokens` of TGI's own API. Streams tell it in one of their last
events, vLLM's only if the request has `"stream_options": {"include_usage": true}`; requests are not altered for it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, final

from negawatt.serve.headers import first

if TYPE_CHECKING:
    from negawatt.serve.exchange import Exchange, Headers

Tokens = tuple[int | None, int | None]
"""Tokens in and out, None where not told."""

_APIS = (
    *(b"/completions", b"/embeddings", b"/responses", b"/messages", b"/rerank", b"/score", b"/classify"),
    *(b"/generate", b"/generate_stream", b"/embed", b"/embed_all", b"/api/chat"),
)
_READ_BYTES = 1 << 20
"""Larger requests are not parsed: the model's name is not worth the time."""
_TAIL_BYTES = 16 << 10
"""How much of the end of a stream is kept to look for its usage."""
_MEMBER_BYTES = 4 << 10
"""Longest usage member."""
_DECODER = json.JSONDecoder()
_IN = ("prompt_tokens", "input_tokens")
_OUT = ("completion_tokens", "output_tokens")


def asked(exchange: Exchange) -> None:
    """Fill in `model` and `stream`, if the request is JSON to a known API and says so."""
    path = exchange.target.partition(b"?")[0]
    if not path.endswith(_APIS) or not 2 <= len(exchange.body) <= _READ_BYTES or not _json(exchange.headers):
        return
    try:
        body = json.loads(exchange.body)
    except (ValueError, RecursionError):  # upstream will say what it thinks of it
        return
    if not isinstance(body, dict):
        return
    model = body.get("model")
    if isinstance(model, str):
        exchange.model = model[:200].encode("utf-8", "replace").decode("utf-8")  # JSON may hold half characters
    exchange.stream = body.get("stream") is True


def told(body: bytes, headers: Headers) -> Tokens:
    """The tokens that a whole answer tells."""
    return _find(body) if _json(headers) else (None, None)


@final
class Tail:
    """The end of a stream, kept to look for its usage there; pieces may be cut anywhere."""

    def __init__(self) -> None:
        self._kept = b""

    def feed(self, piece: bytes) -> None:
        """Take in the next piece."""
        self._kept = (self._kept + piece[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    @property
    def tokens(self) -> Tokens:
        """The tokens told in what was kept."""
        return _find(self._kept)

    @property
    def open_line(self) -> bool:
        """Whether the stream stands in the middle of a line."""
        return not self._kept.endswith((b"\n", b"\r"))


def _json(headers: Headers) -> bool:
    kind = (first(headers, b"content-type") or b"").lower()
    return (b"json" in kind) and first(headers, b"content-encoding") in (None, b"identity")


def _find(text: bytes) -> Tokens:
    """Tokens by the last members that tell them.

    A name in quotation marks cannot be part of a text in the JSON, where such marks are escaped, so the text need not
    be parsed from its beginning.
    """
    tokens_in, tokens_out = None, None  # type: int | None, int | None
    at = len(text)
    while (tokens_in is None or tokens_out is None) and (at := text.rfind(b'"usage"', 0, at)) >= 0:
        usage = _value(text, at + len(b'"usage"'))
        if isinstance(usage, dict):
            tokens_in = tokens_in if tokens_in is not None else _count(usage, _IN)
            tokens_out = tokens_out if tokens_out is not None else _count(usage, _OUT)
            if b"data:" not in text:
                break  # one object: what is further up is no usage of its own
    if tokens_in is None and tokens_out is None:
        return _last(text, b'"prompt_eval_count"'), _last(text, b'"eval_count"', b'"generated_tokens"')
    return tokens_in, tokens_out


def _last(text: bytes, *names: bytes) -> int | None:
    for name in names:
        at = text.rfind(name)
        if at >= 0 and (count := _whole(_value(text, at + len(name)))) is not None:
            return count
    return None


def _value(text: bytes, at: int) -> Any:  # noqa: ANN401 -- JSON
    """The JSON value behind a member's name that ends at `at`; None if there is none."""
    rest = text[at : at + _MEMBER_BYTES].decode("utf-8", "replace").lstrip()
    if not rest.startswith(":"):
        return None
    try:
        return _DECODER.raw_decode(rest[1:].lstrip())[0]
    except (ValueError, RecursionError):  # cut off, or no JSON
        return None


def _count(usage: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((count for name in names if (count := _whole(usage.get(name))) is not None), None)


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None
