"""NegawattPruner in Optuna studies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.reading import Source

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

from negawatt.integrations.optuna import NegawattPruner  # noqa: E402 -- needs optuna

STEPS = 30
FLOORS = [0.3, 0.1, 1.0, 0.99, 0.02, 0.98]
"""Where each trial's loss would end; three of them hardly fall."""


def study_of(steps: Iterable[int], *, sign: float = 1.0, **options: Any) -> Any:
    """A study over power laws with known floors, in order."""
    study = optuna.create_study(
        direction="minimize" if sign > 0 else "maximize", pruner=NegawattPruner(STEPS, **options)
    )
    floors = iter(FLOORS)
    steps = list(steps)

    def objective(trial: Any) -> float:
        floor, value = next(floors), 0.0
        for count, step in enumerate(steps, 1):
            value = sign * (floor + (1 - floor) / count)
            trial.report(value, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=len(FLOORS))
    return study


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("steps", [range(STEPS), range(10, 10 + 7 * STEPS, 7)])
def test_the_best_trial_is_kept_and_others_pruned(steps: range, sign: float) -> None:
    """In either direction, and with steps that leave gaps, flat trials are ended and the best one finishes."""
    study = study_of(steps, sign=sign)
    states = [trial.state.name for trial in study.trials]
    assert study.best_trial.number == FLOORS.index(min(FLOORS))
    assert states[0] == "COMPLETE"
    assert [states[2], states[3], states[5]] == ["PRUNED"] * 3


def test_unspent_steps_are_modelled() -> None:
    """Steps of pruned trials that were not run are counted, and priced only where joules are known."""
    study = study_of(range(STEPS))
    steps = sum(STEPS - len(t.intermediate_values) for t in study.trials if t.state.name == "PRUNED")
    unspent = study.pruner.unspent(study, step_j=2.0)
    assert (unspent.epochs, unspent.energy_j, unspent.source) == (steps, 2.0 * steps, Source.MODELLED)
    assert study.pruner.unspent(study).energy_j is None
    with pytest.raises(UsageError, match="step_j nan"):
        study.pruner.unspent(study, step_j=math.nan)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_prunes(value: float) -> None:
    """Such a trial is ended at once, and trials after it are judged as if it had ended there."""
    study = optuna.create_study(pruner=NegawattPruner(STEPS))
    trial = study.ask()
    trial.report(value, 0)
    assert trial.should_prune()
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    trial = study.ask()
    trial.report(0.5, 0)
    assert not trial.should_prune()


def test_no_report_and_a_step_twice_prune_nothing() -> None:
    """Before the first report, and at a step that is told again, the trial goes on."""
    study = study_of(range(STEPS))
    trial = study.ask()
    assert not trial.should_prune()
    trial.report(0.01, 3)
    with pytest.warns(UserWarning, match="already reported"):
        trial.report(9.0, 3)
    assert not trial.should_prune()


@pytest.mark.parametrize("options", [{"least_chance": 0.0}, {"first": 0}])
def test_numbers_without_meaning_are_refused(options: dict[str, Any]) -> None:
    """The chance, the first steps and their number are positive."""
    with pytest.raises(UsageError, match="first epochs"):
        NegawattPruner(STEPS, **options)
    with pytest.raises(UsageError, match="total_steps 0"):
        NegawattPruner(0)
