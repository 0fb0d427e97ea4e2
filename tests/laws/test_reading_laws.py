"""Laws of readings, and of their sum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from negawatt.core.errors import ScopeMismatchError
from negawatt.core.measurement import Measurement
from negawatt.core.reading import Reading, Source, disjoint, total, weakest
from strategies import SCOPES, readings

ESTIMATED = readings("memory", "cpu-model", Source.ESTIMATED)


def close(a: Reading, b: Reading) -> bool:
    """Equal but for rounding."""
    pairs = zip((a.energy_j, a.random_sd_j, *a.corners_j), (b.energy_j, b.random_sd_j, *b.corners_j), strict=True)
    return replace(a, energy_j=0, random_sd_j=0, corners_j=()) == replace(
        b, energy_j=0, random_sd_j=0, corners_j=()
    ) and all(math.isclose(x, y, rel_tol=1e-12) for x, y in pairs)


@given(ESTIMATED, ESTIMATED, ESTIMATED)
def test_addition_is_associative(a: Reading, b: Reading, c: Reading) -> None:
    """Windows may be added in any grouping."""
    assert close((a + b) + c, a + (b + c))


@given(ESTIMATED, ESTIMATED)
def test_energy_is_additive_over_split_windows(a: Reading, b: Reading) -> None:
    """Energies and corners of adjacent windows add up; their random errors add in quadrature; gain and offset stay."""
    whole = a + b
    assert whole.energy_j == a.energy_j + b.energy_j
    assert whole.corners_j == tuple(x + y for x, y in zip(a.corners_j, b.corners_j, strict=True))
    assert whole.random_sd_j == math.hypot(a.random_sd_j, b.random_sd_j)
    assert whole.gain_sd_fraction == max(a.gain_sd_fraction, b.gain_sd_fraction)
    assert whole.offset_sd_w == max(a.offset_sd_w, b.offset_sd_w)


@given(readings(), st.sampled_from(({"scope": "wall"}, {"sensor": "other"}, {"source": Source.SAMPLED})))
def test_only_windows_of_one_quantity_add(a: Reading, other: dict) -> None:
    """Readings of another scope, sensor or source are not a later window of this one."""
    with pytest.raises(ScopeMismatchError, match="adding"):
        a + replace(a, **other)


@given(readings(SCOPES[0]), readings(SCOPES[1]), st.floats(0.1, 1000))
def test_gain_and_offset_of_one_sensor_add_linearly(a: Reading, b: Reading, time_s: float) -> None:
    """One sensor's unknown factor and constant move all its scopes together; its random errors do not."""
    energy_j, sd_j = total([a, b], time_s)
    expected = math.hypot(
        a.random_sd_j,
        b.random_sd_j,
        a.gain_sd_fraction * a.energy_j + b.gain_sd_fraction * b.energy_j,
        (a.offset_sd_w + b.offset_sd_w) * time_s,
    )
    assert math.isclose(energy_j, a.energy_j + b.energy_j)
    assert math.isclose(sd_j, expected, rel_tol=1e-9, abs_tol=1e-9)


@given(readings(SCOPES[0]), readings(SCOPES[1], sensor="other"), st.floats(0.1, 1000))
def test_sensors_are_independent(a: Reading, b: Reading, time_s: float) -> None:
    """Errors of different sensors add in quadrature."""
    alone = [total([r], time_s)[1] for r in (a, b)]
    assert math.isclose(total([a, b], time_s)[1], math.hypot(*alone), rel_tol=1e-9, abs_tol=1e-9)


@given(st.lists(readings(), min_size=1, max_size=1), st.floats(0.1, 10), st.permutations(range(4)))
def test_total_does_not_depend_on_order(first: list[Reading], time_s: float, order: list[int]) -> None:
    """The sum is the same in any order of scopes."""
    scopes = [replace(first[0], scope=scope) for scope in SCOPES]
    one, other = total(scopes, time_s), total([scopes[i] for i in order], time_s)
    assert all(math.isclose(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize(("a", "b"), [("cpu:0", "cpu:0"), ("cpu:0", "cpu:0/dram"), ("cpu:0/dram", "cpu:0")])
def test_overlapping_scopes_are_refused(a: str, b: str) -> None:
    """A scope and a part of it are never added."""
    with pytest.raises(ScopeMismatchError, match="overlap"):
        disjoint([a, b])


@pytest.mark.parametrize(("whole", "part"), [("host", "gpu:0"), ("cpu", "cpu:0/dram"), ("gpu:0", "gpu:0/mig-1")])
def test_a_whole_is_not_added_to_its_part(whole: str, part: str) -> None:
    """The host, a kind of hardware and one piece of it contain what is below them."""
    with pytest.raises(ScopeMismatchError, match="overlap"):
        disjoint([part, whole])


@pytest.mark.parametrize(("a", "b"), [("cpu:1", "cpu:10"), ("cpu:0/package", "cpu:0/package-x"), ("gpu", "gpus:0")])
def test_a_common_beginning_is_not_an_overlap(a: str, b: str) -> None:
    """Paths overlap by their parts, not by their letters."""
    disjoint([a, b])


@given(st.lists(st.sampled_from(Source), min_size=1))
def test_the_weakest_source_wins(sources: list[Source]) -> None:
    """No source of a sum is weaker than the one it is labelled with."""
    order = list(Source)
    assert all(order.index(s) <= order.index(weakest(sources)) for s in sources)


@given(readings(), st.sampled_from(("energy_j", "random_sd_j", "gain_sd_fraction", "offset_sd_w")))
def test_a_reading_is_finite_and_not_negative(a: Reading, name: str) -> None:
    """There is no reading of -1 J, or of not a number."""
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            replace(a, **{name: value})


@given(readings(), ESTIMATED, st.floats(0.1, 100))
def test_corners_move_only_the_estimated_part(measured: Reading, estimated: Reading, time_s: float) -> None:
    """At each corner a measurement is its measured energy plus the model's energy there."""
    m = Measurement(readings=(measured, estimated), time_s=time_s, work_units=1.0)
    expected = [measured.energy_j + corner for corner in estimated.corners_j]
    assert m.corner_energies_j() == pytest.approx(expected, rel=1e-9, abs=1e-6)
    assert Measurement(readings=(measured,), time_s=time_s, work_units=1.0).corner_energies_j() == ()


@given(ESTIMATED, readings("gpu:a", "gpu-model", Source.ESTIMATED), st.data())
def test_two_models_vary_together_or_in_turn(cpu: Reading, gpu: Reading, data: st.DataObject) -> None:
    """Equally many corners are paired; unequal ones are taken one model at a time."""
    paired = Measurement(readings=(cpu, gpu), time_s=1.0, work_units=1.0)
    sums = [a + b for a, b in zip(cpu.corners_j, gpu.corners_j, strict=True)]
    assert paired.corner_energies_j() == pytest.approx(sums, rel=1e-9, abs=1e-6)
    extra = data.draw(st.floats(1, 100))
    assume(len(cpu.corners_j) == 2)
    uneven = replace(paired, readings=(cpu, replace(gpu, corners_j=(*gpu.corners_j, extra))))
    expected = [c + gpu.energy_j for c in cpu.corners_j] + [cpu.energy_j + c for c in (*gpu.corners_j, extra)]
    assert uneven.corner_energies_j() == pytest.approx(expected, rel=1e-9, abs=1e-6)
