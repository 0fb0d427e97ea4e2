"""NegawattPruner: Optuna trials are ended when their chance to become the best is too small."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, final

from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import TrialState

from negawatt.core.errors import UsageError
from negawatt.integrations.stopping import Unspent
from negawatt.tuning.forecast import LEAST_CHANCE, forecast_rule
from negawatt.tuning.stopping import Curve

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial


@final
class NegawattPruner(BasePruner):  # type: ignore[misc]  # not installed everywhere
    """Prune by a forecast: `optuna.create_study(pruner=NegawattPruner(total_steps=50))`.

    Trials come one after another and cannot be resumed, so a trial is judged against those before it, finished or
    pruned, at each step that it reports. Steps may begin anywhere and leave gaps: what counts is their order. Steps
    reported out of order are put in order, and of a step reported twice Optuna keeps the first. A value that is not
    finite prunes the trial, and its later values are not looked at.

    Args:
        total_steps: how often a full trial reports.
        least_chance: a trial with a smaller chance to end as the best is pruned.
        first: steps that every trial has.

    Raises:
        UsageError: if a number is not positive.
    """

    def __init__(self, total_steps: int, *, least_chance: float = LEAST_CHANCE, first: int = 2) -> None:
        if total_steps < 1:
            raise UsageError(
                f"total_steps {total_steps}", "a trial is judged by what is left of it", "say how often a trial reports"
            )
        forecast_rule(Curve(), [], total_steps, least_chance=least_chance, first=first)
        self._total = total_steps
        self._least = least_chance
        self._first = first

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to prune the trial. Optuna calls this."""
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        curve = _curve(trial.intermediate_values, sign)
        over = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        earlier = [_curve(other.intermediate_values, sign) for other in over if other.number != trial.number]
        return forecast_rule(curve, earlier, self._total, least_chance=self._least, first=self._first)

    def unspent(self, study: Study, *, step_j: float | None = None) -> Unspent:
        """What the pruned trials of a study did not train.

        Args:
            study: the one it pruned.
            step_j: mean joules of a step, as metered; None: not known [J].

        Raises:
            UsageError: if the joules are negative or not finite.
        """
        if step_j is not None and not (math.isfinite(step_j) and step_j >= 0):
            raise UsageError(f"step_j {step_j}", "what is not spent is priced by it", "give the mean joules of a step")
        pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        steps = sum(max(self._total - len(trial.intermediate_values), 0) for trial in pruned)
        return Unspent(epochs=steps, energy_j=None if step_j is None else steps * step_j)


def _curve(values: Mapping[int, float], sign: float) -> Curve:
    """A trial as a curve to be made small."""
    return Curve([sign * values[step] for step in sorted(values)])
