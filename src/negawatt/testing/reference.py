"""What is true: joules under a load, integrated by other means than simulators and sensors use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def true_joules(points: Sequence[tuple[float, float]], begin_s: float, end_s: float) -> float:
    """Joules between two times of a power that is linear between points, exactly.

    Every piece is clipped to the window and integrated as a linear function around its middle, and the pieces are
    summed without rounding (Shewchuk's algorithm, `math.fsum`). The first power holds before the points, the last
    behind them.

    Args:
        points: times [s], ascending, and powers [W].
        begin_s: start of the window.
        end_s: its end, not before the start.
    """
    first, last = points[0], points[-1]
    pieces = [max(0.0, min(end_s, first[0]) - begin_s) * first[1], max(0.0, end_s - max(begin_s, last[0])) * last[1]]
    for (left_s, left_w), (right_s, right_w) in pairwise(points):
        low_s, high_s = max(left_s, begin_s), min(right_s, end_s)
        if high_s > low_s:
            middle = ((low_s + high_s) / 2 - left_s) / (right_s - left_s)
            pieces.append((left_w * (1 - middle) + right_w * middle) * (high_s - low_s))
    return math.fsum(pieces)
