"""Agreement of two answers, and when a small model is no longer believed."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.serve.agreement import Watch, agree, evidence, interval


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"id": text, "choices": [{"message": {"content": text, **more}}], "usage": {"prompt_tokens": len(text)}}


def tool(arguments: str) -> list[dict[str, Any]]:
    return [{"id": arguments, "function": {"name": "f", "arguments": arguments}}]


@pytest.mark.parametrize(
    ("small", "large", "same"),
    [
        (said("Yes, \n it is"), said("yes, it is "), True),
        (said("yes"), said("no"), False),
        (said("", tool_calls=tool("1")), said("", tool_calls=tool("2")), False),
        ({"choices": [{"text": "a"}]}, {"choices": [{"text": "A"}]}, True),
        ({"choices": [{"text": "a"}]}, {"error": "?"}, False),
        ({"label": "cat", "score": 0.9}, {"label": "cat", "score": 0.5}, True),
        ([[{"label": "cat"}]], [[{"label": "dog"}]], False),
        ({"data": [{"embedding": [1, 0]}]}, {"data": [{"embedding": [2, 0.001]}]}, True),
        ({"data": [{"embedding": [1, 0]}]}, {"data": [{"embedding": [0, 1]}]}, False),
        ({"data": [{"embedding": [1, 0]}]}, {"data": [{"embedding": [1, 0, 0]}]}, False),
        ([[1, 0]], [[1, 0], [1, 0]], False),
        ({"id": 1, "answer": 5, "confidence": 0.3, "p": 0.11}, {"id": 2, "answer": 5, "p": 0.12}, True),
        ({"answer": 5}, {"answer": 6}, False),
        (None, {"answer": 6}, False),
    ],
)
def test_what_counts_as_the_same_answer(small: Any, large: Any, same: bool) -> None:
    """Text but for case and space, calls of tools, labels, directions of embeddings, other JSON but for figures."""
    assert agree(small, large) is same
    assert agree(large, small) is same
    assert agree(small, small)


@given(st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_the_interval_has_what_was_seen_and_ends_where_the_evidence_does(seen: tuple[int, int]) -> None:
    """It holds the seen part; at its inner ends the evidence is the bound."""
    n, k = seen
    low, high = interval(n, k)
    assert 0 <= low <= (k / n if n else 0.5) <= high <= 1
    for edge, inner in ((low, k > 0), (high, k < n)):
        if inner and 1e-9 < edge < 1 - 1e-9:
            assert evidence(n, k, edge) == pytest.approx(-math.log(0.01), abs=0.01)


def test_looking_after_every_audit_accuses_few_models_that_keep_the_margin() -> None:
    """At the margin itself, in 1,000 audits: about 1 of 100 is accused, and one far beyond it is soon."""
    rng = Random(1)

    def audits(part: float) -> int | None:
        watch = Watch(0.5, 0.05)
        for i in range(1000):
            watch.audited(0.9, same=rng.random() >= part)
            if not watch.believed:
                return i
        return None

    assert sum(audits(0.05) is not None for _ in range(40)) <= 1
    found = [audits(0.25) for _ in range(20)]
    assert all(n is not None and n < 200 for n in found)


def test_the_threshold_rises_to_where_the_models_agree() -> None:
    """A small model that is wrong only where it is unsure is asked on, and counts where it is sure."""
    watch = Watch(0.5, 0.05)
    rng = Random(2)
    for _ in range(400):
        confidence = rng.uniform(0.5, 1.0)
        if watch.counts(confidence):
            watch.audited(confidence, same=confidence > 0.8)
    assert watch.believed
    assert 0.7 < watch.threshold < 0.9
    assert watch.stats.low_fraction <= 0.05
    assert not watch.counts(0.6)
    assert not watch.counts(None)


def test_a_change_after_long_agreement_is_seen() -> None:
    """The watch begins anew after 1,000 audits, so good ones of long ago do not excuse what comes."""
    watch = Watch(0.5, 0.05)
    for _ in range(10_000):
        watch.audited(0.9, same=True)
    after = 0
    while watch.believed:
        watch.audited(0.9, same=after % 2 == 0)
        after += 1
    assert after < 300
    assert watch.stats.audited == 10_000 + after
    assert not watch.counts(1.0)


def test_a_margin_of_nothing_allows_nothing() -> None:
    """One that differs is one too many; with a margin of 1 none is."""
    watch = Watch(0.5, 0.0)
    watch.audited(0.9, same=True)
    assert watch.believed
    watch.audited(0.9, same=False)
    assert not watch.believed
    anything = Watch(0.5, 1.0)
    for _ in range(100):
        anything.audited(0.9, same=False)
    assert anything.believed
