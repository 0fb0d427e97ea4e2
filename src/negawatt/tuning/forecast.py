"""Forecast: epochs go where the chance to end as the best is highest for what it costs to find out.

To learn more of a run takes about as many epochs as it has had: a young run is cheap to judge, an old one dear. So the
next grant goes to the run with the highest chance per such epoch, and makes it half as old again. When none has
`chance_per_epoch`, the race is over. A suspended run comes back when those before it disappoint (freeze-thaw:
K. Swersky, J. Snoek, R. P. Adams, 2014, arXiv:1406.3896, who do it with a Gaussian process).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

from negawatt.core.errors import UsageError
from negawatt.tuning.chances import Prior, shipped
from negawatt.tuning.stopping import Curve, Grant, Race

THRIFTY, BALANCED, THOROUGH = 0.0085, 0.0028, 0.0015
"""Values of `chance_per_epoch`; benchmarks/early_stopping.py says what they find and use."""
LEAST_CHANCE = 0.006
"""Below this chance to end as the best, a run in a sequence is ended."""


@final
class Forecast(Race):
    """All runs for `first` epochs, then whichever has the best chance per epoch.

    Args:
        runs: how many there are.
        epochs: of a full run.
        chance_per_epoch: least chance to end as the best, per epoch that it takes to find out, that is worth an epoch.
        first: epochs that every run has.
        budget_epochs: epochs to spend in all; None: as many as are worth it.
        prior: what is known of curves; None: the one that is shipped.

    Raises:
        UsageError: if an argument is not positive.
    """

    def __init__(
        self,
        *,
        runs: int,
        epochs: int,
        chance_per_epoch: float = BALANCED,
        first: int = 2,
        budget_epochs: int | None = None,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(runs=runs, epochs=epochs)
        _check("chance_per_epoch", chance_per_epoch, first)
        self._least = chance_per_epoch
        self._first = min(first, epochs)
        self._budget = math.inf if budget_epochs is None else budget_epochs
        self._prior = prior or shipped()

    def chances(self) -> dict[int, float]:
        """Chance of each run to end with the lowest loss; those that cannot are left out."""
        return self._prior.chances(self.curves, self.epochs)

    def _next(self) -> Grant | None:
        left = self._budget - self.spent_epochs
        if left <= 0:
            return None
        if grant := self._up_to(self._first, range(len(self.curves))):
            return grant
        worth = {
            run: chance / _effort(len(self.curves[run]), self.epochs)
            for run, chance in self.chances().items()
            if self._open(run)
        }
        run = max(worth, key=worth.__getitem__, default=None)
        if run is None or worth[run] < self._least:
            return None
        age = len(self.curves[run])
        return Grant(run=run, epoch=int(min(self.epochs, age + max(1, age // 2), age + left)))


def forecast_rule(
    curve: Curve,
    earlier: Sequence[Curve],
    epochs: int,
    *,
    least_chance: float = LEAST_CHANCE,
    first: int = 2,
    prior: Prior | None = None,
) -> bool:
    """Whether to end a run that came after others: its chance to end as the best of all is too small.

    Args:
        curve: the run.
        earlier: those before it, which cannot be resumed; without one, nothing is ended but a broken run.
        epochs: of a full run.
        least_chance: with less than this, it is ended.
        first: epochs that every run has.
        prior: what is known of curves; None: the one that is shipped.

    Raises:
        UsageError: if an argument is not positive.
    """
    _check("least_chance", least_chance, first)
    if curve.broken or not any(other.lows for other in earlier):
        return curve.broken
    if not first <= len(curve) < epochs:
        return False
    chances = (prior or shipped()).chances([*earlier, curve], epochs, closed=range(len(earlier)))
    return chances[len(earlier)] < least_chance


def _effort(age: int, epochs: int) -> int:
    """Epochs it takes to know much more of a run: as many as it has had, or all that are left."""
    return max(1, min(age, epochs - age))


def _check(name: str, chance: float, first: int) -> None:
    if not (math.isfinite(chance) and chance > 0) or first < 1:
        raise UsageError(
            f"{name} {chance}, {first} first epochs",
            "they decide which runs are ended",
            f"give {name} above 0, such as {BALANCED}, and an epoch or more",
        )
