"""Model and stream of a request, tokens of an answer, whole or at the end of a stream; nothing is guessed."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.serve.exchange import Exchange
from negawatt.serve.usage import Tail, asked, told

JSON = ((b"content-type", b"application/json; charset=utf-8"),)
NAMES = ('"usage"', "usage", '{"usage": {"prompt_tokens": 9}}', '\\"usage\\": {"prompt_tokens": 9}', '"eval_count": 9')


def request(body, path=b"/v1/chat/completions", headers=JSON):
    """What is read of a request."""
    one = Exchange(id="0", method="POST", target=path, headers=headers, body=body, received_s=0.0)
    asked(one)
    return one.model, one.stream


def test_model_and_stream_are_read():
    """Of known APIs, with a query or without."""
    assert request(b'{"model": "m", "stream": true}') == ("m", True)
    assert request(b'{"model": "m"}', b"/v1/embeddings?x=1") == ("m", False)


@pytest.mark.parametrize(
    ("body", "path", "headers"),
    [
        (b'{"model": "m", "stream": true}', b"/other", JSON),
        (b'{"model": "m", "stream": true}', b"/v1/embeddings", ()),
        (b'{"model": "m", "stream": true}', b"/v1/embeddings", (*JSON, (b"content-encoding", b"gzip"))),
        (b'{"model": 1, "stream": "true"}', b"/v1/embeddings", JSON),
        (b"[1]", b"/v1/embeddings", JSON),
        (b"no json", b"/v1/embeddings", JSON),
        (b"[" * 100_000, b"/v1/embeddings", JSON),
        (b"\xff\xfe{}", b"/v1/embeddings", JSON),
        (b'{"model": "m"' + b" " * (1 << 20) + b"}", b"/v1/embeddings", JSON),
    ],
)
def test_what_is_not_understood_stays_unknown(body, path, headers):
    """Other paths, other types, other shapes, malformed or huge bodies: no model, no error."""
    assert request(body, path, headers) == ("", False)


def test_a_models_name_can_be_written_down():
    """It is cut, and half a surrogate pair in it does not break what writes it."""
    model, _ = request(json.dumps({"model": "\ud800" + "x" * 1000}).encode())
    assert len(model) == 200
    model.encode("utf-8")


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}, (5, 7)),
        ({"usage": {"prompt_tokens": 5, "total_tokens": 5}, "data": [{"embedding": [0.1] * 1000}]}, (5, None)),
        ({"output": [], "usage": {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"a": 1}}}, (5, 7)),
        ({"response": "hi", "prompt_eval_count": 26, "eval_count": 298}, (26, 298)),
        ({"generated_text": "hi", "details": {"finish_reason": "length", "generated_tokens": 20}}, (None, 20)),
        ({"usage": None}, (None, None)),
        ({"usage": {"prompt_tokens": True, "completion_tokens": -1}}, (None, None)),
        ({"usage": {"prompt_tokens": "5", "completion_tokens": 1.5}}, (None, None)),
        ({"usage": {"prompt_tokens": 0, "completion_tokens": 0}}, (0, 0)),
        ({"a": ["usage", {"prompt_tokens": 5}]}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_whole_answers_tell_their_tokens(body, tokens):
    """OpenAI's APIs, Ollama and TGI, in either order of members; odd figures are none."""
    assert told(json.dumps(body).encode(), JSON) == tokens
    assert told(json.dumps(body, separators=(",", ":")).encode(), JSON) == tokens
    assert told(json.dumps(body).encode(), ((b"content-type", b"text/plain"),)) == (None, None)


@given(texts=st.lists(st.one_of(st.text(), st.sampled_from(NAMES)), min_size=1), known=st.booleans())
def test_texts_cannot_pass_for_usage(texts, known):
    """Whatever a model writes in its texts, the tokens are those of the usage, or none."""
    body = {"choices": [{"text": text} for text in texts]}
    if known:
        body = {"usage": {"prompt_tokens": 3, "completion_tokens": 4}, **body}
    expected = (3, 4) if known else (None, None)
    assert told(json.dumps(body).encode(), JSON) == expected
    assert told(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"), JSON) == expected


OPENAI = (
    b'data: {"choices": [{"delta": {"content": "Hi"}}], "usage": null}\n\n' * 3
    + b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}\n\ndata: [DONE]\n\n'
)
RESPONSES = (
    b'event: response.output_text.delta\ndata: {"delta": "Hi"}\n\n'
    b'event: response.completed\ndata: {"response": {"usage": {"input_tokens": 5, "output_tokens": 7}}}\n\n'
)
SPLIT = (
    b'data: {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}}\n\n'
    b'data: {"type": "message_delta", "usage": {"output_tokens": 7}}\n\n'
)
OLLAMA = b'{"response": "Hi", "done": false}\n{"done": true, "prompt_eval_count": 5, "eval_count": 7}\n'


@given(stream=st.sampled_from([OPENAI, RESPONSES, SPLIT, OLLAMA]), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_streams_tell_their_tokens_wherever_they_are_cut(stream, cuts):
    """The last events tell them, whatever pieces they come in."""
    tail, edges = Tail(), sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for begin, end in pairwise(edges):
        tail.feed(stream[begin:end])
    assert tail.tokens == (5, 7)
    assert not tail.open_line


def test_a_tail_is_bounded():
    """A stream of any length leaves 16 KiB, and its end is still understood."""
    tail = Tail()
    for _ in range(100):
        tail.feed(b"data: " + b"x" * 100_000 + b"\n\n")
    tail.feed(OPENAI)
    assert tail.tokens == (5, 7)
    assert len(tail._kept) == 16 << 10


def test_a_stream_that_tells_nothing_leaves_tokens_unknown():
    """Events are not counted as tokens."""
    tail = Tail()
    tail.feed(b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n')
    assert tail.tokens == (None, None)
