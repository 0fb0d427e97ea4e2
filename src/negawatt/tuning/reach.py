"""Reach: the lowest loss that a single run may still come to, from its own curve alone.

Losses that fall as a power of the epoch gain less with every doubling of the epochs (J. Hestness et al., 2017,
arXiv:1712.00409, has such curves for the data size). As many doublings as are left, each with the gain of the last one,
are therefore the limit of slow decay. Runs that sit on a plateau and then fall do better than that: the gain is taken
`OPTIMISM` times, after the noise has been added to it twice. benchmarks/early_stopping.py says how often it is wrong.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median

from negawatt.core.errors import UsageError
from negawatt.tuning.stopping import Curve

OPTIMISM = 4.0
"""How many times the gain of the last doubling each further one may bring."""
FIRST = 4
"""Epochs before anything is said."""
_NOISE_EPOCHS = 6


def lowest_in_reach(curve: Curve, epochs: int, *, optimism: float = OPTIMISM) -> float:
    """The lowest loss that the run may have reached after all its epochs, in the unit of the loss.

    Args:
        curve: the run so far; of fewer than `FIRST` epochs, anything is in reach (minus infinity).
        epochs: of the full run.
        optimism: what the gain of the last doubling is multiplied by.

    Raises:
        UsageError: if `optimism` or `epochs` is not positive.
    """
    if not (math.isfinite(optimism) and optimism > 0) or epochs < 1:
        raise UsageError(
            f"optimism {optimism}, {epochs} epochs",
            "they say how much better the run may become",
            f"give positive numbers, such as optimism={OPTIMISM:g}",
        )
    age = len(curve)
    if curve.broken or age >= epochs:
        return curve.low
    if age < FIRST:
        return -math.inf
    noise = median(abs(b - a) for a, b in pairwise(curve.losses[-_NOISE_EPOCHS:]))
    gain = curve.lows[age // 2 - 1] - curve.low
    return curve.low - optimism * (gain + 2 * noise) * math.log2(epochs / age)
