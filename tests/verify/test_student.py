"""Student's t, against scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from negawatt.verify.student import t_quantile, two_sided


@given(st.floats(1e-7, 1 - 1e-7).filter(lambda p: abs(p - 0.5) > 1e-6), st.integers(1, 200) | st.floats(1, 1e4))
def test_quantiles_equal_those_of_scipy(cumulative: float, df: float) -> None:
    """Quantiles agree with scipy's to 1e-8 of their value."""
    assert math.isclose(t_quantile(cumulative, df), float(stats.t.ppf(cumulative, df)), rel_tol=1e-8)


@pytest.mark.parametrize(("df", "printed"), [(1, 12.706), (2, 4.303), (9, 2.262), (30, 2.042), (120, 1.980)])
def test_quantiles_equal_the_printed_table(df: int, printed: float) -> None:
    """The factors of two-sided 95 % intervals are those of every textbook."""
    assert t_quantile(0.975, df) == pytest.approx(printed, abs=5e-4)


@given(st.floats(0.001, 0.999), st.floats(1, 500))
def test_the_distribution_is_symmetric(cumulative: float, df: float) -> None:
    """The quantile of 1 - p is minus that of p."""
    assert t_quantile(1 - cumulative, df) == pytest.approx(-t_quantile(cumulative, df), rel=1e-9, abs=1e-12)


@given(st.floats(0, 1e6), st.floats(1, 500))
def test_tails_equal_those_of_scipy(t: float, df: float) -> None:
    """P(|T| > t) agrees with scipy's, far out in the tail too."""
    assert math.isclose(two_sided(t, df), 2 * float(stats.t.sf(t, df)), rel_tol=1e-9, abs_tol=1e-290)


@pytest.mark.parametrize(("cumulative", "df"), [(0.0, 3), (1.0, 3), (math.nan, 3), (0.9, 0.5), (0.9, math.nan)])
def test_nonsense_is_refused(cumulative: float, df: float) -> None:
    """There is no quantile at probability 0 or 1, nor below one degree of freedom."""
    with pytest.raises(ValueError, match="a probability between 0 and 1 and at least 1 degree of freedom"):
        t_quantile(cumulative, df)
