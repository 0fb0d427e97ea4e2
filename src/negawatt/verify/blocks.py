"""The randomised mirrored block: in which order to run the arms of a comparison."""

from __future__ import annotations

import random
from collections.abc import Sequence


def block_order(arms: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """The arms in random order, then in the reverse of it: ABBA or BAAB for two, for example CNPPNC for three.

    Every arm has the same mean position, so a drift that is linear over the block cancels for each pair of arms. The
    shuffle makes the sign of whatever drift is left random, so it does not add up over blocks.
    """
    first = list(arms)
    rng.shuffle(first)
    return (*first, *reversed(first))
