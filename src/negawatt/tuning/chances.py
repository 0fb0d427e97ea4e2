"""Chances: how likely each of several runs is to end with the lowest loss, from how their curves have gone so far.

A conditional logit (D. McFadden, Conditional logit analysis of qualitative choice behavior, 1974): each run has a
score, a weighted sum of what can be seen of its curve, and its chance is exp(score) as a part of the sum over all runs.
What is seen is free of the loss's unit: how far the run is behind the leader now, and behind the best at its own age,
each as multiples of the run's recent gain, of its noise and of the progress of all; its rank at its age; how long it
has not improved. Every weight changes with the logarithm of the part of the run that is left. The weights are learnt
from curves of other trainings.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from operator import mul
from statistics import median
from typing import final

from negawatt.core.errors import UsageError
from negawatt.tuning.stopping import Curve

SHIPPED = "stopping_prior.json"
_SEEN = (
    "rank_at_age", "behind_at_age_per_progress", "behind_at_age_per_gain", "behind_at_age_per_noise",
    "gap_per_gain", "gap_per_late_gain", "gap_per_noise", "gap_per_progress",
    "progress_per_progress", "progress_per_noise", "rank_of_gain", "last_gain_per_gain",
    "stale", "stale_part", "above_own_low", "leader",
)  # fmt: skip
FEATURES = (*_SEEN, *(f"{name}_early" for name in _SEEN), "early", "early_squared", "left")
"""What is seen of a run, in the order of the weights; "early" is the logarithm of all epochs over those it has had."""
_CLIP = 5.0
"""Logarithms of ratios beyond e^5 say no more."""
_FLOOR = 1e-3
"""Differences below this part of the progress of all runs count as none."""
_NOISE_EPOCHS = 6


@final
class _Shape:
    """What is seen of one curve on its own, at its age."""

    __slots__ = ("above", "age", "first", "gain", "last_gain", "late_gain", "low", "noise", "stale")

    def __init__(self, curve: Curve) -> None:
        lows, losses = curve.lows, curve.losses
        age = self.age = len(lows)
        self.low, self.first = lows[-1], lows[0]
        self.gain = lows[max(age // 2, 1) - 1] - self.low
        self.late_gain = lows[max(3 * age // 4, 1) - 1] - self.low
        self.last_gain = lows[max(age - 1, 1) - 1] - self.low
        late = losses[-_NOISE_EPOCHS:]
        steps = [abs(b - a) for a, b in pairwise(late)]
        self.noise = median(steps) if steps else 0.0
        self.stale = age - 1 - losses.index(self.low)
        self.above = losses[-1] - self.low


def _shape(curve: Curve) -> _Shape:
    kept = curve.shape
    if not isinstance(kept, _Shape) or kept.age != len(curve):
        kept = curve.shape = _Shape(curve)
    return kept


def seen(curves: Sequence[Curve], epochs: int, closed: Container[int] = ()) -> dict[int, list[float]]:
    """Features of the runs that may end as the best: the leader, and whoever has epochs left.

    Args:
        curves: of all runs; those without a finite loss are left out.
        epochs: of a full run.
        closed: runs that get no more epochs.

    Returns:
        By the number of the run: values of `FEATURES`.
    """
    shapes = {run: _shape(curve) for run, curve in enumerate(curves) if curve.lows}
    if not shapes:
        return {}
    epochs = max(epochs, *(shape.age for shape in shapes.values()))
    leader = min(shapes, key=lambda run: shapes[run].low)
    low = shapes[leader].low
    progress = min(max(median(shape.first for shape in shapes.values()) - low, 1e-12 * abs(low), 1e-300), 1e300)
    able = {
        run: shape
        for run, shape in shapes.items()
        if run == leader or (shape.age < epochs and not curves[run].broken and run not in closed)
    }
    at_age = {age: _at_age(curves, shapes, age) for age in {shape.age for shape in able.values()}}
    return {
        run: _features(shape, at_age[shape.age], (low, progress, epochs), leads=run == leader)
        for run, shape in able.items()
    }


def _at_age(curves: Sequence[Curve], shapes: dict[int, _Shape], age: int) -> tuple[list[float], list[float]]:
    """Sorted: the lowest losses, at that age, of all runs that came so far, and what they had gained lately."""
    half = max(age // 2, 1) - 1
    there = [curves[run].lows for run, shape in shapes.items() if shape.age >= age]
    return sorted(lows[age - 1] for lows in there), sorted(lows[half] - lows[age - 1] for lows in there)


def _features(
    shape: _Shape, at_age: tuple[list[float], list[float]], scene: tuple[float, float, int], *, leads: bool
) -> list[float]:
    low, progress, epochs = scene
    lows, gains = at_age
    floor = _FLOOR * progress

    def log(difference: float) -> float:
        return math.log(min(max(difference, 0.0), 1e300) + floor)  # finite, whatever the losses

    def ratio(above: float, below: float) -> float:
        return min(max(above - below, -_CLIP), _CLIP)

    whole, gain, noise = math.log(progress), log(shape.gain), log(shape.noise)
    behind, gap, own = log(shape.low - lows[0]), log(shape.low - low), log(shape.first - shape.low)
    values = [
        math.log1p(bisect_left(lows, shape.low)),
        ratio(behind, whole), ratio(behind, gain), ratio(behind, noise),
        ratio(gap, gain), ratio(gap, log(shape.late_gain)), ratio(gap, noise), ratio(gap, whole),
        ratio(own, whole), ratio(own, noise),
        math.log1p(len(gains) - bisect_right(gains, shape.gain)),
        ratio(log(shape.last_gain), gain),
        math.log1p(shape.stale), shape.stale / shape.age,
        ratio(log(shape.above), whole),
        float(leads),
    ]  # fmt: skip
    early = math.log(epochs / shape.age)
    return [*values, *(value * early for value in values), early, early**2, math.log1p(epochs - shape.age)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What was learnt from other curves.

    Attributes:
        weights: one per feature, in the order of `FEATURES`.
        source: the curves that they were learnt from.
    """

    weights: tuple[float, ...]  # log odds per unit of the feature
    source: str

    def __post_init__(self) -> None:
        if len(self.weights) != len(FEATURES) or not all(map(math.isfinite, self.weights)):
            raise UsageError(
                f"{len(self.weights)} weights for {len(FEATURES)} features, or one that is no number",
                "each would be taken for another's",
                "learn them with benchmarks/early_stopping.py --fit, or use `shipped()`",
            )

    def chances(self, curves: Sequence[Curve], epochs: int, closed: Container[int] = ()) -> dict[int, float]:
        """Chance of each run to end with the lowest loss; those that cannot are left out.

        Args:
            curves: of all runs, any lengths.
            epochs: of a full run.
            closed: runs that get no more epochs.
        """
        scores = {
            run: math.fsum(map(mul, self.weights, features)) for run, features in seen(curves, epochs, closed).items()
        }
        top = max(scores.values(), default=0.0)
        parts = {run: math.exp(score - top) for run, score in scores.items()}
        whole = math.fsum(parts.values())
        return {run: part / whole for run, part in parts.items()}


@cache
def shipped() -> Prior:
    """The prior that comes with negawatt; its `source` says what it was learnt from."""
    kept = json.loads(files("negawatt.tuning").joinpath("data", SHIPPED).read_text(encoding="utf-8"))
    return Prior(weights=tuple(map(float, kept["weights"].values())), source=kept["source"])
