"""Look and Errors: what the meter's error means for one request."""

from __future__ import annotations

import math

import pytest

from negawatt.core.errors import ScopeMismatchError
from negawatt.core.reading import Reading, Source, total
from negawatt.serve.account import NANO, Bill, Ticket
from negawatt.serve.look import Errors, Look


def reading(scope: str, energy_j: float, sensor: str = "a", **more: object) -> Reading:
    values = {"random_sd_j": 0.1, "gain_sd_fraction": 0.02, "offset_sd_w": 0.5, "source": Source.COUNTER} | more
    return Reading(scope=scope, energy_j=energy_j, sensor=sensor, **values)


def bill(energy_j: float, time_s: float, own_s: float, *, presumed: bool = False) -> Bill:
    nj = round(energy_j * NANO)
    doubt_nj = 2 * nj if presumed else 0
    return Bill(ticket=Ticket(0, 0), energy_nj=nj, time_s=time_s, own_s=own_s, presumed=presumed, doubt_nj=doubt_nj)


def test_a_look_has_the_error_of_the_sum_of_its_readings():
    """Its parts combine as `core.reading.total` has it: within a sensor linearly, over sensors in quadrature."""
    readings = [reading("cpu:0", 30.0), reading("cpu:1", 50.0), reading("gpu:0", 100.0, "b", source=Source.SAMPLED)]
    look = Look.of(readings)
    energy_j, sd_j = total(readings, 10.0)
    assert look.energy_j == energy_j
    variance_j2 = look.random_variance_j2 + (look.gain_sd_fraction * energy_j) ** 2 + (look.offset_sd_w * 10) ** 2
    assert math.sqrt(variance_j2) == pytest.approx(sd_j)
    assert look.source is Source.SAMPLED


def test_overlapping_scopes_have_no_sum():
    """The joules of a part would count twice."""
    with pytest.raises(ScopeMismatchError, match="overlap"):
        Look.of([reading("host", 30.0), reading("cpu:1", 50.0)])


def test_a_request_has_its_share_of_each_part():
    """Gain goes by joules, offset by own time, and the random part of a window by its share of it."""
    errors = Errors(0.0)
    errors.see(1000.0, Look.of([reading("cpu", 5000.0)]))
    cost = errors.cost(bill(10.0, 2.0, 1.0), carbon_gpj=0.01)
    assert cost.energy_sd_j == pytest.approx(math.hypot(0.1 / 2, 0.02 * 10, 0.5 * 1.0))
    assert (cost.energy_j, cost.carbon_g, cost.source) == (10.0, pytest.approx(0.1), Source.COUNTER)


def test_a_random_error_that_grows_counts_by_time():
    """A sensor that samples errs by 3 J in a window of 900 s, and by 0.1 J in the second of a request."""
    errors = Errors(0.0)
    for age_s in range(1, 901):
        errors.see(age_s, Look.of([reading("gpu", 1.0, random_sd_j=0.1 * math.sqrt(age_s))]))
    none = {"energy_j": 0.0, "time_s": 1.0, "own_s": 1.0}
    assert errors.cost(bill(**none), None).energy_sd_j == pytest.approx(math.hypot(0.1, 0.5), rel=1e-6)


def test_presumed_joules_may_be_all_wrong():
    """Their cost is estimated, with the doubt of the bill as its standard deviation."""
    errors = Errors(0.0)
    errors.see(1.0, Look.of([reading("cpu", 5.0)]))
    cost = errors.cost(bill(10.0, 1.0, 1.0, presumed=True), None)
    assert (cost.energy_sd_j, cost.source, cost.carbon_g) == (20.0, Source.ESTIMATED, None)


def test_without_a_look_there_is_no_cost():
    """A number without an error is none."""
    with pytest.raises(ValueError, match="no look"):
        Errors(0.0).cost(bill(1.0, 1.0, 1.0), None)
