"""Laws of the front."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.errors import ScopeMismatchError
from negawatt.core.front import comparable, dominates, pareto_front
from negawatt.core.measurement import Measurement
from negawatt.core.reading import Source
from negawatt.core.trial import Trial
from strategies import SCOPES, measurements, readings, trials

MANY = st.lists(trials(), max_size=8)
FEW = settings(max_examples=40)


def scaled(m: Measurement, factor: float) -> Measurement:
    """The same run at more energy."""
    return replace(m, readings=tuple(replace(r, energy_j=r.energy_j * factor) for r in m.readings))


@given(MANY)
@FEW
def test_front_is_idempotent(found: list[Trial]) -> None:
    """The front of a front is that front."""
    front = pareto_front(found)
    assert pareto_front(front) == front


@given(MANY.flatmap(lambda found: st.tuples(st.just(found), st.permutations(found))))
@FEW
def test_front_does_not_depend_on_order(pair: tuple[list[Trial], list[Trial]]) -> None:
    """The same trials in another order give the same front, in that order."""
    found, shuffled = pair
    front, other = pareto_front(found), pareto_front(shuffled)
    assert sorted(map(repr, front)) == sorted(map(repr, other))
    assert [t for t in shuffled if t in other] == list(other)


@given(MANY)
@FEW
def test_front_is_empty_only_if_all_failed(found: list[Trial]) -> None:
    """One successful trial is enough for a front, and failed ones are never on it."""
    front = pareto_front(found)
    assert bool(front) == any(t.measurement for t in found)
    assert all(t.measurement for t in front)


@given(MANY)
@FEW
def test_front_beats_everything_else(found: list[Trial]) -> None:
    """What is not on the front is dominated by something that is."""
    front = pareto_front(found)
    for trial in found:
        if trial.measurement and trial not in front:
            assert any(dominates(t.measurement, trial.measurement) for t in front)


@given(st.lists(trials(failures=False), min_size=1, max_size=8), st.floats(1.01, 10), st.data())
@FEW
def test_dominated_points_change_nothing(found: list[Trial], factor: float, data: st.DataObject) -> None:
    """A copy of a trial that used more energy does not move the front."""
    worse = data.draw(st.sampled_from(found))
    added = replace(worse, measurement=scaled(worse.measurement, factor))
    assert pareto_front([*found, added]) == pareto_front(found)


@given(measurements(), measurements())
def test_dominance_is_one_sided(a: Measurement, b: Measurement) -> None:
    """Two runs never dominate each other, and none dominates itself."""
    assert not (dominates(a, b) and dominates(b, a))
    assert not dominates(a, a)


@given(trials(failures=False), measurements(scopes=SCOPES[:1]))
def test_scopes_never_share_a_front(trial: Trial, narrower: Measurement) -> None:
    """A trial that measured less is refused, not preferred."""
    with pytest.raises(ScopeMismatchError, match="different scopes"):
        pareto_front([trial, replace(trial, measurement=narrower)])


@given(measurements(scopes=SCOPES[:1]), readings(source=Source.MODELLED, sensor="chip"))
def test_simulated_devices_share_a_front_only_when_asked(real: Measurement, modelled: object) -> None:
    """Modelled and metered trials are compared only under the explicit flag."""
    simulated = replace(real, readings=(modelled,))
    with pytest.raises(ScopeMismatchError, match="modelled and metered"):
        comparable([real, simulated])
    comparable([real, simulated], mixed_sources=True)
