"""Student's t distribution, from the standard library.

scipy has it too, but is 110 MB: everybody who installs negawatt would download it for one function. The tests hold
this one against scipy.
"""

from __future__ import annotations

import math
from functools import lru_cache

_TINY = 1e-300
_EPSILON = 1e-15
_MAX_TERMS = 100_000


@lru_cache(maxsize=256)
def t_quantile(cumulative: float, df: float) -> float:
    """The t below which a share `cumulative` of Student's t distribution lies.

    Args:
        cumulative: probability between 0 and 1, both excluded; 0.975 gives the factor of a two-sided 95 % interval.
        df: degrees of freedom, at least 1.

    Raises:
        ValueError: outside these ranges.
    """
    if not (0 < cumulative < 1 and df >= 1):
        raise ValueError(f"a probability between 0 and 1 and at least 1 degree of freedom, got {cumulative}, {df}")
    if cumulative < 0.5:
        return -t_quantile(1 - cumulative, df)
    outside = 2 * (1 - cumulative)
    low, high = 0.0, 1.0
    while two_sided(high, df) > outside:
        low, high = high, 2 * high
    while True:
        middle = (low + high) / 2
        if middle in (low, high):  # no float lies between them
            return middle
        if two_sided(middle, df) > outside:
            low = middle
        else:
            high = middle


def two_sided(t: float, df: float) -> float:
    """P(|T| > t) with `df` degrees of freedom: I_x(df/2, 1/2) at x = df / (df + t^2).

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.1 with 26.5.27.
    """
    square = t * t
    return _incomplete_beta(df / (df + square), square / (df + square), df / 2, 0.5)


def _incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), with rest = 1 - x given so that no digits are lost.

    Source: NIST Digital Library of Mathematical Functions (dlmf.nist.gov), 8.17.22, used where its fraction converges
    fast, x < (a + 1) / (a + b + 2); elsewhere by symmetry, 8.17.4.
    """
    if x == 0 or rest == 0:
        return 1.0 if rest == 0 else 0.0
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(rest, x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    return math.exp(log_front) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """The denominator 1 + d1/(1 + d2/(1 + ...)) of DLMF 8.17.22, with the coefficients of 8.17.23.

    Evaluated forwards by the method of Lentz as modified by Thompson and Barnett, J. Comput. Phys. 64 (1986) 490.
    """
    value, c, d = 1.0, 1.0, 0.0
    for i in range(1, _MAX_TERMS):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _not_zero(1 + term * d)
        c = _not_zero(1 + term / c)
        value *= c * d
        if abs(c * d - 1) < _EPSILON:
            return value
    raise ArithmeticError(f"the incomplete beta function did not converge at x={x}, a={a}, b={b}")


def _not_zero(x: float) -> float:
    return x if abs(x) > _TINY else _TINY
