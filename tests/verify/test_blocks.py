"""The randomised mirrored block."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from negawatt.verify.blocks import block_order

ARMS = st.lists(st.sampled_from("ABCDE"), min_size=2, unique=True)


@given(ARMS, st.integers())
def test_linear_drift_cancels(arms: list[str], seed: int) -> None:
    """Every arm runs twice and has the same mean position, so a linear drift adds the same to each."""
    order = block_order(arms, random.Random(seed))
    assert Counter(order) == dict.fromkeys(arms, 2)
    assert order == order[::-1]
    assert len({sum(i for i, name in enumerate(order) if name == arm) for arm in arms}) == 1


def test_all_orders_come_up_alike() -> None:
    """Two arms give ABBA and BAAB about equally often, and nothing else."""
    seen = Counter("".join(block_order("AB", random.Random(seed))) for seed in range(1000))
    assert set(seen) == {"ABBA", "BAAB"}
    assert 430 < seen["ABBA"] < 570
