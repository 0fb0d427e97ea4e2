"""Serving options: what is refused where it is written down, not where it is used."""

from __future__ import annotations

import math

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.serving import Cascade, ServingOptions


@pytest.mark.parametrize("name", ["confidence", "audit_fraction", "margin"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_part_of_a_cascade_outside_its_range_is_refused(name: str, value: float) -> None:
    """From 0 to 1, both included."""
    with pytest.raises(UsageError, match=f"a cascade with .*{name} {value}"):
        Cascade(upstream="http://small", **{name: value})
    for edge in (0, 1):
        assert getattr(Cascade(upstream="http://small", **{name: edge}), name) == edge


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"semantic": 0.0}, "a semantic cache at a cosine of 0.0"),
        ({"semantic": 1.5}, "a semantic cache at a cosine of 1.5"),
        ({"cache_bytes": -1}, "a response cache of -1 bytes"),
        ({"p99_s": 0.0}, "a promise .* of 0.0 s"),
        ({"p99_s": math.inf}, "a promise .* of inf s"),
    ],
)
def test_options_that_cannot_be_served_are_refused(options: dict[str, float], match: str) -> None:
    """A cosine of 0 would give anybody any answer; a promise of 0 s cannot be kept."""
    with pytest.raises(UsageError, match=match):
        ServingOptions(**options)
