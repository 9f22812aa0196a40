"""Tango's score interval of a difference between paired proportions.

Of n pairs, b are gains and c losses. A difference Δ is in the interval if the score test does not
reject it,

    |b − c − n Δ| ≤ z · √(n (2 q + Δ (1 − Δ))),

where q is the likeliest probability of a loss given Δ, the larger root of
``2n · q² − (b + c − (2n − b + c) Δ) · q − c Δ (1 − Δ) = 0``. Both ends are found by bisection: the
statistic falls as Δ rises.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def tango_interval(gained: int, lost: int, num_items: int, *, z: float) -> tuple[float, float]:
    """Return the score interval of ``(gained − lost) / num_items``.

    Args:
        gained: Pairs that only the first gets right, b.
        lost: Pairs that only the second gets right, c.
        num_items: All pairs, n.
        z: Normal quantile of the confidence, such as 1.96.

    Returns:
        Its ends, in [-1, 1].

    Reference:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design", Statistics in Medicine 17 (1998), equations 15 to 17.
    """
    estimate = (gained - lost) / num_items

    def statistic(delta: float) -> float:
        away = gained - lost - num_items * delta
        if away == 0:
            return 0.0
        linear = gained + lost - (2 * num_items - gained + lost) * delta
        # Negative Δ leaves q at −Δ or more; rounding must not leave a root of a negative number.
        root = math.sqrt(max(0.0, linear**2 + 8 * num_items * lost * delta * (1 - delta)))
        loss = (linear + root) / (4 * num_items)
        variance = num_items * (2 * loss + delta * (1 - delta))
        return away / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, away)

    return _crossing(statistic, -1.0, estimate, z), _crossing(statistic, estimate, 1.0, -z)


def _crossing(statistic: Callable[[float], float], low: float, high: float, level: float) -> float:
    """Return where a falling statistic passes a level."""
    for _ in range(60):
        middle = (low + high) / 2
        if statistic(middle) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2
