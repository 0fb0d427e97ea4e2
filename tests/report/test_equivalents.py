"""Equivalents: the shipped table, and the ranges made of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.report.equivalents import KWH_J, count, equivalent, equivalents, interval, kwh, parse_energy, readable
from negawatt.report.numbers import NBSP

ENERGIES = st.floats(min_value=1e-6, max_value=1e18)


@pytest.mark.parametrize("row", equivalents(), ids=lambda row: row.key)
def test_every_row_is_a_range_with_sources(row):
    """Low, central and high are in order, and each row says what it rests on and where that was published."""
    assert 0 < row.low_j <= row.central_j <= row.high_j
    assert row.basis
    assert row.citations
    for source in row.citations:
        assert re.match(r"https://\S+$", source.url)
        assert 2009 <= source.year <= datetime.now(UTC).year
        assert source.title


def test_no_car_miles():
    """Energy is never turned into car journeys."""
    text = " ".join(f"{row.key} {row.many} {row.basis}".lower() for row in equivalents())
    assert not re.search(r"\b(car|cars|mile|miles|driv\w+)\b", text)


def test_figures_follow_from_their_parts():
    """Rows that are products of published figures are those products."""
    h100, chatgpt, training = equivalent("h100_year"), equivalent("chatgpt_day"), equivalent("gpt3_training")
    assert h100.central_j == pytest.approx(700 * 0.61 * 8760 * 3600)
    assert h100.high_j == pytest.approx(700 * 8760 * 3600)
    assert chatgpt.low_j == pytest.approx(195e6 * 2.9 * 3600, rel=0.01)
    assert chatgpt.central_j == pytest.approx(2.5e9 * 0.34 * 3600)
    assert training.low_j == pytest.approx(training.high_j / 1.10, rel=1e-3)


@given(ENERGIES, st.floats(min_value=0, max_value=2))
def test_ranges_hold_their_centre_and_widen_with_the_error(energy_j, sd_fraction):
    """The central amount lies within the range, and an error of the energy never narrows it."""
    low_j, high_j = interval(energy_j, sd_fraction * energy_j)
    for row in equivalents():
        known, exact = row.amount(energy_j, low_j, high_j), row.amount(energy_j, energy_j, energy_j)
        assert known.low <= exact.low * (1 + 1e-12)
        assert exact.low <= exact.central * (1 + 1e-12)
        assert exact.central <= exact.high * (1 + 1e-12)
        assert exact.high <= known.high * (1 + 1e-12)


@pytest.mark.parametrize(
    ("typed", "energy_j"),
    [
        ("500 J", 500.0), ("2kJ", 2e3), ("1.5 MJ", 1.5e6), ("1 GJ", 1e9), ("1 TJ", 1e12), ("2 PJ", 2e15),
        ("1 Wh", 3600.0), ("3.2 kWh", 3.2 * KWH_J), ("1287 MWh", 1287e3 * KWH_J), (" 1.3GWh ", 1.3e6 * KWH_J),
        ("1e3 kWh", 1e3 * KWH_J), ("85.4 TWh", 85.4e9 * KWH_J), ("952 µJ", 952e-6), ("952 \u03bcJ", 952e-6),
        ("3 uJ", 3e-6), ("1.66 mJ", 1.66e-3), ("20 nJ", 20e-9), ("340 mWh", 1224.0),
    ],
)  # fmt: skip
def test_energies_are_read(typed, energy_j):
    """Every unit that negawatt prints, from nJ to PJ and mWh to TWh, with and without a space."""
    assert parse_energy(typed) == pytest.approx(energy_j)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "is not an energy"),
        ("kWh", "is not an energy"),
        ("-1 kWh", "is not an energy"),
        ("1,287 MWh", "has a comma"),
        ("3,2kWh", "has a comma"),
        ("3.2", "is not an energy"),
        ("0 J", "less than 1e-09 J"),
        ("1e-300 J", "less than 1e-09 J"),
        ("1e999 J", "more than 1e\\+24 J"),
        ("1e30 TWh", "more than 1e\\+24 J"),
        ("5 mj", "did you mean mJ or MJ"),
        ("5 KWH", "did you mean kWh"),
        ("5 kW", "unit of power"),
        ("5 watts", "unit of power"),
        ("5 BTU", "no unit of energy"),
    ],
)
def test_what_is_no_energy_is_refused(typed, said):
    """Anything else is a usage error that shows how to type it; a wrong prefix is never guessed."""
    with pytest.raises(UsageError, match=said):
        parse_energy(typed)


def test_interval_is_95_percent_and_never_negative():
    """1.96 standard deviations each way, cut off at zero."""
    assert interval(100.0, 10.0) == pytest.approx((80.4, 119.6))
    assert interval(1.0, 10.0)[0] == 0.0


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0"), (1 / 402_187, "1/400 000"), (0.00987, "1/100"), (0.0123, "0.0123"), (2.37, "2.37"),
        (168.42, "168"), (2370.4, "2370"), (80_000, "80 000"), (58.5e6, "58.5 million"), (1e-10, "< 1/million"),
    ],
)  # fmt: skip
def test_counts_read_well(amount, shown):
    """Millions in words, small parts as fractions of one."""
    assert count(amount) == shown.replace(" ", NBSP)


@pytest.mark.parametrize(
    ("energy_j", "shown"),
    [
        (3.2 * KWH_J, "3.2 kWh"),
        (500, "0.0001389 kWh"),
        (1287e3 * KWH_J, "1 287 000 kWh"),
        (10_500 * KWH_J, "10 500 kWh"),
    ],
)
def test_kwh_for_any_size(energy_j, shown):
    """Any energy is told in kWh, without empty decimals."""
    assert kwh(energy_j) == shown.replace(" ", NBSP)


def test_small_energies_are_told_in_joules():
    """Below a watt-hour kWh would be a row of zeros."""
    assert readable(3.59) == f"3.59{NBSP}J"
    assert readable(3600.0) == f"0.001{NBSP}kWh"
    assert readable(0.0) == "0"
