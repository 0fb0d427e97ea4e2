"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.report import numbers


def plain(text: str) -> str:
    return text.replace(numbers.NBSP, " ")


@pytest.mark.parametrize(
    ("energy_j", "shown"),
    [
        (0.0, "0 J"),
        (6.1e-4, "610 µJ"),
        (0.0213, "21.3 mJ"),
        (0.99996, "1000 mJ"),
        (45.0, "45.0 J"),
        (1184.0, "1.18 kJ"),
        (999_000.0, "999 kJ"),
        (1.8e6, "500 Wh"),
        (7.75e6, "2.15 kWh"),
        (-45.0, "−45.0 J"),
    ],
)
def test_energy_unit(energy_j, shown):
    """Joules come in the unit that leaves one to three digits before the point."""
    assert plain(numbers.energy(energy_j)) == shown


@pytest.mark.parametrize(
    ("time_s", "shown"),
    [(3.2e-5, "32.0 µs"), (0.0012, "1.20 ms"), (94.0, "94.0 s"), (1820.0, "30.3 min"), (9000.0, "2.50 h")],
)
def test_duration_unit(time_s, shown):
    """Times come in sensible units, seconds up to two minutes."""
    assert plain(numbers.duration(time_s)) == shown


@pytest.mark.parametrize(
    ("value", "sd", "shown"),
    [
        (21.34, 0.41, "21.3 ± 0.4"),
        (21.34, 0.13, "21.34 ± 0.13"),
        (1543.2, 19.1, "1543 ± 19"),
        (41147.0, 260.0, "41 147 ± 260"),
        (21.34, None, "21.3"),
        (21.34, 0.0, "21.3"),
        (5.0, 1e-9, "5.0000 ± 0.000000001"),
    ],
)
def test_rounding_follows_the_deviation(value, sd, shown):
    """A value is rounded where its standard deviation begins, and to five digits at most."""
    assert plain(numbers.with_sd(value, sd)) == shown


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.571, 0.612, "59 % (57 to 61 %)"),
        (0.774, 0.789, "59.3 % (77.4 to 78.9 %)"),
        (-0.013, 0.054, "59 % (−1 to 5 %)"),
        (0.9846, 0.9854, "59.30 % (98.46 to 98.54 %)"),
    ],
)
def test_percent_decimals_follow_the_interval(low, high, shown):
    """A percentage has the decimals that its interval deserves."""
    assert plain(numbers.percent_interval(0.593, low, high)) == shown


def test_change_shares_the_decimals_of_its_interval():
    """A change and both ends of its interval are rounded alike and signed."""
    assert numbers.change_interval(-0.0012, -0.0031, 0.0007) == ("−0.0012", "−0.0031 to +0.0007")
    assert numbers.change_interval(0.0, 0.0, 0.0) == ("0", "0 to 0")


@pytest.mark.parametrize(
    ("noun", "shown"),
    [("image", "images"), ("query", "queries"), ("batch", "batches"), ("key", "keys")],
)
def test_units_in_the_plural(noun, shown):
    """Units of work get an English plural, whatever they are."""
    assert numbers.several(noun) == shown


def test_no_negative_zero():
    """What rounds to zero has no sign."""
    assert numbers.fixed(-0.004, 2) == "0.00"
    assert plain(numbers.percent(-0.0001, signed=True)) == "0 %"


def test_clean_removes_what_could_forge():
    """Escape sequences, direction overrides and lone surrogates are replaced, ordinary text is not."""
    assert numbers.clean("a\x1b[31mb\u202ec\ud800\nZürich ± \u00a0") == "a\ufffd[31mb\ufffdc\ufffd\nZürich ± \u00a0"


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_rounding_keeps_three_digits(value):
    """Three significant digits are within half a unit of the third digit of the value."""
    shown = float(numbers.significant(value).replace(numbers.NBSP, ""))
    assert math.isclose(shown, value, rel_tol=0.0051)
