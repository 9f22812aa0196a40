"""Quantiles of the normal distribution and of Student's t, without scipy.

The normal quantile is the standard library's. That of Student's t inverts its distribution
function, a regularized incomplete beta function, by bisection: some fifty evaluations of a
continued fraction, microseconds each, and right to a dozen digits.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

_TINY: Final = 1e-300
_MAX_TERMS: Final = 10_000
_NORMAL_FROM: Final = 1e7
"""Degrees of freedom from which t and the normal agree to seven digits."""


def normal_quantile(probability: float) -> float:
    """Return the value that a standard normal variable stays below with a probability.

    Args:
        probability: In (0, 1).
    """
    return NormalDist().inv_cdf(probability)


def normal_distribution(value: float) -> float:
    """Return the probability that a standard normal variable is at most ``value``."""
    return 0.5 * math.erfc(-value / math.sqrt(2))


def t_quantile(probability: float, degrees: float) -> float:
    """Return the value that a variable of Student's t stays below with a probability.

    Args:
        probability: In (0, 1).
        degrees: Degrees of freedom, more than 0.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    if probability == 0.5 or degrees >= _NORMAL_FROM:
        return normal_quantile(probability)
    # With x = ν / (ν + t²), P(T > t) = I_x(ν/2, 1/2) / 2 rises with x from 0 to 1/2.
    low, high, tail = 0.0, 1.0, 2 * (1 - probability)
    while low < (middle := (low + high) / 2) < high:
        if incomplete_beta(middle, degrees / 2, 0.5) < tail:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees * (1 - middle) / middle)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b).

    Args:
        x: In [0, 1].
        a: First parameter, more than 0.
        b: Second parameter, more than 0.

    Reference:
        NIST Digital Library of Mathematical Functions, 8.17.22: the continued fraction, evaluated
        by Lentz's method.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        # The fraction converges fast on this side of the mode only.
        return 1 - incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    # 1 + d₁ / (1 + d₂ / (1 + …)), of which the integral has the reciprocal.
    c, d, fraction = 1.0, 0.0, 1.0
    for term in range(1, _MAX_TERMS):
        half, odd = divmod(term, 2)
        if odd:
            step = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            step = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        d = 1 / (1 + step * d or _TINY)
        c = 1 + step / c or _TINY
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front / (a * fraction)
