"""Three distributions, without scipy: beta, chi-square and Kolmogorov's; and the interval of a share.

Rules kept here: every function says where its formula comes from, and is tested against scipy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_TINY: Final = 1e-300
_PRECISION: Final = 1e-14
_MAX_STEPS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A share of counts, `count / total`, with its confidence limits; the share is None where nothing was counted."""

    count: int
    total: int
    share: float | None
    low: float
    high: float


def clopper_pearson(count: int, total: int, confidence: float = 0.95) -> Interval:
    """Return the exact two-sided interval of a binomial share: it holds the true one at least as often as it says.

    Source: Clopper and Pearson, Biometrika 26 (1934) 404; by quantiles of the beta distribution.

    >>> interval = clopper_pearson(81, 263)  # Newcombe, Statistics in Medicine 17 (1998) 857, table I
    >>> round(interval.low, 4), round(interval.high, 4)
    (0.2527, 0.3676)

    Raises:
        ValueError: count is not from 0 to total, or the confidence not within 0 and 1.
    """
    if not 0 <= count <= total or not 0 < confidence < 1:
        raise ValueError(f"expected 0 ≤ count ≤ total and a confidence within 0 and 1, got {count}, {total}, {confidence}")
    tail = (1 - confidence) / 2
    low = 0.0 if count == 0 else beta_quantile(tail, count, total - count + 1)
    high = 1.0 if count == total else beta_quantile(1 - tail, count + 1, total - count)
    return Interval(count, total, count / total if total else None, low, high)


def beta_cdf(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b).

    Source: the continued fraction DLMF 8.17.22, by the modified method of Lentz, on the side where it converges fast.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # symmetric in (x, a) and (1 − x, b)
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(x, a, b) / a
    return 1 - front * _beta_fraction(1 - x, b, a) / b


def _beta_fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, _inverse(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = _inverse(1 + even * d), _away_from_zero(1 + even / c)
        value *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = _inverse(1 + odd * d), _away_from_zero(1 + odd / c)
        value *= d * c
        if abs(d * c - 1) < _PRECISION:
            break
    return value


def beta_quantile(p: float, a: float, b: float) -> float:
    """Return x with I_x(a, b) = p, by bisection: the function is monotone, and a hundred halvings end at its last digit."""
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def chi_square_tail(x: float, degrees: float) -> float:
    """Return how often chi-square of so many degrees of freedom exceeds `x`: the upper incomplete gamma function Q.

    Source: the series DLMF 8.7.1 below the mean, the continued fraction DLMF 8.9.2 above it.
    """
    a, x = degrees / 2, x / 2
    if x <= 0:
        return 1.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1:
        term = total = 1 / a
        for n in range(1, _MAX_STEPS):
            term *= x / (a + n)
            total += term
            if term < total * _PRECISION:
                break
        return 1 - front * total
    b, c = x + 1 - a, 1 / _TINY
    d = 1 / b
    value = d
    for n in range(1, _MAX_STEPS):
        part, b = -n * (n - a), b + 2
        d, c = _inverse(b + part * d), _away_from_zero(b + part / c)
        value *= d * c
        if abs(d * c - 1) < _PRECISION:
            break
    return front * value


def kolmogorov_tail(x: float) -> float:
    """Return Q(x) = 2 Σ (−1)^(k−1) exp(−2 k² x²), how often Kolmogorov's statistic exceeds `x`.

    Source: Kolmogorov (1933); for small x by the theta function's other series, as in Marsaglia, Tsang and Wang,
    Journal of Statistical Software 8 (2003), which converges where the first does not.
    """
    if x < 0.04:  # there it differs from 1 by less than 1e-300, and x² may be 0
        return 1.0
    if x < 1:
        terms = (math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 20))
        return 1 - math.sqrt(2 * math.pi) / x * math.fsum(terms)
    return 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 20))


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _inverse(value: float) -> float:
    return 1 / _away_from_zero(value)
