"""Races and plain rules: who is trained, who is ended, and what odd losses do."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.tuning.chances import FEATURES, Prior, seen, shipped
from negawatt.tuning.forecast import THRIFTY, Forecast, forecast_rule
from negawatt.tuning.stopping import Curve, Fate, Grant, Halving, KeepBest, Race, median_rule, patience_rule

EPOCHS = 12
LOSSES = st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1.0, -1e308, 1e308, 1e-300, math.inf, -math.inf, math.nan]))
TABLES = st.lists(st.lists(LOSSES, min_size=EPOCHS, max_size=EPOCHS), min_size=1, max_size=9)
RACES: list[Callable[[int], Race]] = [
    lambda runs: Forecast(runs=runs, epochs=EPOCHS),
    lambda runs: Forecast(runs=runs, epochs=EPOCHS, chance_per_epoch=1e-9),
    lambda runs: KeepBest(runs=runs, epochs=EPOCHS),
    lambda runs: Halving(runs=runs, epochs=EPOCHS),
    lambda runs: Halving(runs=runs, epochs=EPOCHS, eta=2, brackets=3),
]


def power_law(floor: float, epochs: int = 50) -> list[float]:
    """A loss that falls to a floor."""
    return [floor + (1 - floor) / epoch for epoch in range(1, epochs + 1)]


def played(race: Race, table: list[list[float]]) -> list[Grant]:
    """Run a race to its end; what it granted."""
    grants = []
    while grant := race.ask():
        assert race.ask() == grant
        if not grants or grants[-1] != grant:
            grants.append(grant)
        race.tell(grant.run, table[grant.run][len(race.curves[grant.run])])
    return grants


@pytest.mark.parametrize("make", RACES)
@given(table=TABLES)
@settings(max_examples=40, deadline=None)
def test_every_race_ends_with_every_run_settled(make: Callable[[int], Race], table: list[list[float]]) -> None:
    """Whatever the losses, a race ends, spends no more than all epochs, and knows the lowest loss that it was told."""
    race = make(len(table))
    played(race, table)
    assert race.ask() is None
    assert 0 < race.spent_epochs <= len(table) * EPOCHS
    assert race.spent_epochs + race.unspent_epochs == len(table) * EPOCHS
    assert all(race.fate(run) is not Fate.SUSPENDED for run in range(len(table)))
    told = [low for curve in race.curves for low in curve.losses]
    assert (race.best is None) == (not told)
    if race.best is not None:
        assert race.curves[race.best].low == min(told)


@given(table=TABLES)
@settings(max_examples=40, deadline=None)
def test_chances_are_a_distribution(table: list[list[float]]) -> None:
    """Chances add up to 1 over those that can still end best, for curves of any kind and length."""
    curves = [Curve(row[: 1 + i % EPOCHS]) for i, row in enumerate(table)]
    chances = shipped().chances(curves, EPOCHS)
    assert set(chances) <= {run for run, curve in enumerate(curves) if curve.lows}
    assert math.isclose(math.fsum(chances.values()), 1.0) or not chances


@given(
    scale=st.sampled_from([1e-3, 4.0, 1e6]),
    shift=st.sampled_from([0.0, -8.0, 64.0]),
)
def test_chances_do_not_depend_on_the_unit_of_the_loss(scale: float, shift: float) -> None:
    """Another unit and another zero of the loss leave every chance as it is."""
    rows = [power_law(0.1 * i)[: 3 + i] for i in range(6)]
    ours = shipped().chances([Curve(row) for row in rows], 50)
    theirs = shipped().chances([Curve([shift + scale * loss for loss in row]) for row in rows], 50)
    assert theirs == pytest.approx(ours, rel=1e-4)


def test_the_forecast_finds_a_clear_winner_cheaply() -> None:
    """Of 20 falling curves with floors apart, the lowest is found with a part of the epochs, and finished."""
    table = [power_law(0.04 * i) for i in range(20)]
    race = Forecast(runs=20, epochs=50, chance_per_epoch=THRIFTY)
    played(race, table)
    assert race.best == 0
    assert race.fate(0) is Fate.FINISHED
    assert race.spent_epochs < 0.3 * 20 * 50


def test_a_thriftier_forecast_spends_less() -> None:
    """The least chance per epoch trades epochs for certainty."""
    table = [power_law(0.02 * i) for i in range(12)]
    spent = []
    for chance in (1e-2, 1e-3, 1e-4):
        race = Forecast(runs=12, epochs=50, chance_per_epoch=chance)
        played(race, table)
        spent.append(race.spent_epochs)
    assert spent == sorted(spent)
    assert spent[0] < spent[-1]


def test_a_suspended_run_is_resumed_when_the_leader_disappoints() -> None:
    """A run that was behind comes back once the one in front has got worse."""
    fast = [1.0, 0.5, 0.45, *[0.6] * 47]
    slow = [1 - 0.018 * epoch for epoch in range(50)]
    race = Forecast(runs=2, epochs=50, chance_per_epoch=1e-4)
    runs = [grant.run for grant in played(race, [fast, slow])]
    assert race.best == 1
    assert race.fate(1) is Fate.FINISHED
    assert race.fate(0) in (Fate.ENDED, Fate.FINISHED)
    assert sum(a != b for a, b in pairwise(runs)) >= 2


def test_a_budget_is_kept() -> None:
    """No more epochs are granted than the budget has."""
    race = Forecast(runs=5, epochs=50, chance_per_epoch=1e-9, budget_epochs=37)
    played(race, [power_law(0.1 * i) for i in range(5)])
    assert race.spent_epochs == 37


def test_halving_and_keep_best_spend_what_they_say() -> None:
    """27 runs of 51 epochs: halving by 3 takes 157 epochs, keeping 3 after 5 takes 273."""
    table = [power_law(0.03 * i, 51) for i in range(27)]
    halving, keep = Halving(runs=27, epochs=51), KeepBest(runs=27, epochs=51)
    played(halving, table)
    played(keep, table)
    assert (halving.spent_epochs, keep.spent_epochs) == (157, 273)


def test_brackets_give_slow_runs_longer() -> None:
    """In the last bracket every run has more epochs before it is judged."""
    table = [power_law(0.03 * i, 51) for i in range(27)]
    race = Halving(runs=27, epochs=51, brackets=3)
    played(race, table)
    shortest = [min(len(race.curves[run]) for run in range(first, 27, 3)) for first in range(3)]
    assert shortest == [2, 6, 17]


def test_a_loss_that_is_not_finite_ends_its_run() -> None:
    """NaN makes a run hopeless; what it had reached before still counts."""
    race = KeepBest(runs=1, epochs=5)
    race.tell(0, 0.5)
    race.tell(0, math.nan)
    assert race.fate(0) is Fate.HOPELESS
    assert race.ask() is None
    assert race.best == 0
    assert race.curves[0].low == 0.5
    with pytest.raises(UsageError, match="which is hopeless"):
        race.tell(0, 0.4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: KeepBest(runs=0, epochs=5), "0 runs of 5 epochs"),
        (lambda: KeepBest(runs=2, epochs=5).tell(2, 0.1), "run 2, of 2 runs"),
        (lambda: Halving(runs=2, epochs=5, eta=1), "eta 1"),
        (lambda: Forecast(runs=2, epochs=5, chance_per_epoch=0.0), "chance_per_epoch 0.0"),
        (lambda: Forecast(runs=2, epochs=5, chance_per_epoch=math.nan), "chance_per_epoch nan"),
        (lambda: forecast_rule(Curve(), [], 5, first=0), "0 first epochs"),
        (lambda: Prior(weights=(1.0,), source="none"), "1 weights"),
    ],
)
def test_what_cannot_be_meant_is_refused(call: Callable[[], object], match: str) -> None:
    """Numbers without a meaning are errors that say what to type."""
    with pytest.raises(UsageError, match=match):
        call()


def test_the_median_rule_ends_who_is_behind_most() -> None:
    """After its grace a run above the median of earlier means is ended, one below is not."""
    earlier = [Curve(power_law(0.1 * i)) for i in range(3)]
    assert median_rule(Curve([0.9] * 5), earlier)
    assert not median_rule(Curve([0.9] * 4), earlier)
    assert not median_rule(Curve([0.1] * 5), earlier)
    assert not median_rule(Curve([0.9] * 5), earlier[:2])


def test_patience_waits_for_a_gain() -> None:
    """A run is ended after as many epochs without a gain, a broken one at once."""
    assert patience_rule(Curve([1.0, 0.5, *[0.5] * 5]))
    assert not patience_rule(Curve([1.0, 0.5, *[0.5] * 4]))
    assert patience_rule(Curve([1.0, 0.999, 0.998, 0.997]), patience=2, least_gain=0.01)
    assert patience_rule(Curve([math.inf]))


def test_the_sequential_forecast_ends_the_hopeless_and_keeps_the_promising() -> None:
    """Against a good finished run, a stuck one is ended and one that is ahead at its age goes on."""
    earlier = [Curve(power_law(0.1))]
    assert forecast_rule(Curve([1.0] * 12), earlier, 50)
    assert not forecast_rule(Curve(power_law(0.0)[:12]), earlier, 50)
    assert forecast_rule(Curve(power_law(0.5)[:12]), earlier, 50, least_chance=0.2)
    assert not forecast_rule(Curve([1.0] * 12), [], 50)
    assert forecast_rule(Curve([math.nan]), [], 50)


def test_a_run_longer_than_said_is_no_error() -> None:
    """Curves of more epochs than announced are taken as full ones."""
    assert not forecast_rule(Curve([0.1] * 60), [Curve(power_law(0.1))], 50)
    assert sum(shipped().chances([Curve(power_law(0.1)), Curve([0.5] * 7)], 20).values()) == pytest.approx(1)


def test_every_feature_has_a_name_and_a_weight() -> None:
    """What is seen of a run is as long as the list of names, and the shipped prior says where it is from."""
    (features,) = seen([Curve([1.0, 0.5])], 10).values()
    assert len(features) == len(FEATURES) == len(shipped().weights)
    assert "TaskSet" in shipped().source
