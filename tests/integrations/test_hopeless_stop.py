"""HopelessStop in a loop: when it ends a run, what it remembers, and what it says was not spent."""

from __future__ import annotations

import json
import math

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.reading import Source
from negawatt.integrations.stopping import HopelessStop


def ended(stop: HopelessStop, losses: list[float], epoch_j: float | None = None) -> int | None:
    """The epoch at which it stops, or None."""
    for epoch, loss in enumerate(losses):
        if stop.update(epoch, loss, energy_j=None if epoch_j is None else epoch_j * (epoch + 1)):
            return epoch
    return None


def test_it_stops_at_the_target_and_when_that_is_out_of_reach() -> None:
    """A promise kept ends the run, and so does one that the curve can no longer keep."""
    falling = [1 / epoch for epoch in range(1, 51)]
    kept = HopelessStop(50, target=0.25)
    assert ended(kept, falling) == 3
    assert kept.reason == "the target 0.25 is reached"
    lost = HopelessStop(50, target=0.25)
    assert ended(lost, [0.7, 0.69] + [0.689] * 48) is not None
    assert "out of reach" in str(lost.reason)
    assert ended(HopelessStop(50, target=0.021), falling) == 47


def test_an_accuracy_is_made_large() -> None:
    """With `maximise` the target is reached from below, and the best is the highest."""
    stop = HopelessStop(20, target=0.9, maximise=True)
    assert ended(stop, [0.5, 0.7, 0.91]) == 2
    assert stop.best == 0.91


def test_it_stops_when_the_gain_is_not_worth_its_joules() -> None:
    """A flat run is ended where improvement has a price and joules are known; else it goes on."""
    flat = [1.0, 0.8, *[0.79] * 48]
    assert ended(HopelessStop(50, worth_j=100.0), flat, epoch_j=10.0) is not None
    assert ended(HopelessStop(50, worth_j=1e9), flat[:4], epoch_j=10.0) is None
    assert ended(HopelessStop(50, worth_j=100.0), flat) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(loss: float) -> None:
    """The run is hopeless, says so, and stays ended."""
    stop = HopelessStop(10)
    assert ended(stop, [0.5, loss]) == 1
    assert stop.reason == f"the loss of epoch 1 is {loss}"
    assert stop.update(2, 0.1)
    assert stop.best == 0.5
    assert stop.unspent().epochs == 8


def test_unspent_epochs_are_modelled_joules() -> None:
    """What was not trained is priced at the mean per epoch, as modelled, and not priced where no joules are known."""
    stop = HopelessStop(10, target=0.6)
    ended(stop, [1.0, 0.5], epoch_j=30.0)
    unspent = stop.unspent()
    assert (unspent.epochs, unspent.energy_j, unspent.source) == (8, 240.0, Source.MODELLED)
    assert str(unspent) == "8 epochs not trained, 240 J (modelled)"
    assert HopelessStop(10).unspent().energy_j is None
    assert "joules not known" in str(HopelessStop(10).unspent())


def test_a_resumed_run_goes_on_as_if_never_interrupted() -> None:
    """Its state survives JSON; epochs that are told again are ignored."""
    losses = [0.7, 0.69, *[0.689] * 30]
    whole = HopelessStop(50, target=0.25)
    end = ended(whole, losses)
    first, second = HopelessStop(50, target=0.25), HopelessStop(50, target=0.25)
    assert ended(first, losses[:3]) is None
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert ended(second, losses) == end
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("options", [{"target": math.nan}, {"worth_j": 0.0}, {"worth_j": math.inf}, {"optimism": 0.0}])
def test_numbers_without_meaning_are_refused(options: dict[str, float]) -> None:
    """Targets and prices are numbers."""
    with pytest.raises(UsageError, match=next(iter(options))):
        HopelessStop(10, **options)


def test_bad_joules_and_states_are_refused() -> None:
    """Joules are not negative; a state is one that it gave."""
    with pytest.raises(UsageError, match="energy_j -1"):
        HopelessStop(10).update(0, 0.5, energy_j=-1.0)
    with pytest.raises(UsageError, match="without broken, energy_j, last, losses, reason"):
        HopelessStop(10).load_state_dict({})
