"""The fleet of the serving replay: what goes in comes out, and hindsight is never worse than staying as one is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from serving_fleet import Assumed, Fleet, Load, Table, above, least_j, play, spread
from serving_replay import Autoscaler, always, metrics

TABLE = Table(
    "a model",
    np.array([8.0, 32.0, 128.0, 512.0]),
    np.array([0.010, 0.013, 0.022, 0.060]),
    np.array([400.0, 480.0, 570.0, 640.0]),
)
ASSUMED = Assumed(idle=0.2, sleep=0.1, wake_s=5.0, power_exponent=2.0, bound=0.5, prefill=0.1)
FLEET = Fleet(TABLE, ASSUMED, 4)


@pytest.fixture(scope="module")
def load():
    """Five minutes; twice as many requests in the third."""
    rng = np.random.default_rng(1)
    times_s = np.concatenate([rng.uniform(0, 300, 3000), rng.uniform(120, 180, 600)])
    rows = np.column_stack([times_s, rng.integers(50, 500, 3600), rng.integers(5, 300, 3600)])
    return Load.scaled(rows[np.argsort(rows[:, 0])], 1, 1.0)


def test_every_token_is_made_once(load):
    """Tokens made are those asked for, but for what steps of a second blur: 3 %."""
    asked = sum(int(outputs.sum()) for outputs in load.outputs)
    for n in (2, 4):
        assert play(FLEET, load, always(n), 0.0).tokens.sum() == pytest.approx(asked, rel=0.03)


def test_energy_is_between_all_asleep_and_all_at_full_batch(load):
    """Power stays within what the table and the assumptions allow."""
    played = play(FLEET, load, always(4), 0.0)
    seconds = len(load.outputs)
    assert 4 * FLEET.sleep_w * seconds < played.energy_j < 4 * FLEET.most_w * seconds


def test_hindsight_takes_less_than_all_awake_and_more_with_a_tighter_promise(load):
    """The least energy is below the baseline's, and does not fall if the promise is made tighter."""
    base = play(FLEET, load, always(4), 0.0)
    promise_s = base.token_p99_s()
    least = [least_j(FLEET, load, base.tokens, factor * promise_s) for factor in (1.0, 1.2, 2.0)]
    assert 4 * FLEET.sleep_w * len(load.outputs) < least[2] <= least[1] <= least[0] < base.energy_j


def test_spreading_keeps_the_tokens(load):
    """A load that is spread over the promise asks for no more tokens than there are."""
    asked = sum(int(outputs.sum()) for outputs in load.outputs)
    assert spread(load, 0.02).sum() == pytest.approx(asked, rel=0.03)


def test_the_p99_of_even_tokens_is_their_time_and_its_spread(load):
    """With one time for all tokens, 1 % are above the 99th percentile that is reported."""
    played = play(FLEET, load, always(4), 0.0)
    played.token_s[:] = 0.02
    assert above(0.02 / played.token_p99_s()) == pytest.approx(0.01, rel=0.01)


def test_sleeping_replicas_wait_for_the_wake_time():
    """Replicas that are wanted count from the wake time on, and those that are to sleep are drained first."""
    quiet = Load([np.array([])] * 60, [np.array([], dtype=int)] * 60)
    wants = iter([1] * 20 + [4] * 41)
    awake = play(FLEET, quiet, lambda _: (next(wants), 1.0), 0.0).awake
    assert awake[19] == 1
    assert awake[20 + int(ASSUMED.wake_s) - 1] == 1
    assert awake[20 + int(ASSUMED.wake_s)] == 4


def test_the_autoscaler_follows_the_load(load):
    """It keeps fewer replicas awake under a light load, and never none."""
    awake = play(FLEET, load, Autoscaler(4), 1.0).awake
    assert 1 <= awake.min() < 4


def test_a_saving_without_equal_p99_counts_as_none():
    """The least and mean parts of the possible saving take a broken promise as nothing saved."""
    row = {"trace": "conv", "wake_s": 1.0, "possible_fraction": 0.3, "reached_fraction": 0.8, "equal_p99": True}
    row |= {f"{p}_{what}": 0.0 for p in ("autoscaler", "static") for what in ("reached_fraction", "equal_p99")}
    found = metrics([row, row | {"reached_fraction": 0.9, "equal_p99": False}, row | {"possible_fraction": 0.001}])
    assert found["possible_saving_fraction"] == 0.0
    assert found["possible_saving_mean_fraction"] == pytest.approx(0.4)
    assert found["reached_whatever_p99_min_fraction"] == pytest.approx(0.8)
