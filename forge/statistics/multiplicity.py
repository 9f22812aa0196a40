"""Correction of p-values where many comparisons are made.

Of twenty comparisons of equal models one comes out below 0.05 by chance. Holm's procedure holds
the chance of even one false finding at the level that is asked for, whatever the dependence
between the tests (variants of one model on the same items are far from independent), and finds
more than Bonferroni's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p-values adjusted by Holm's step-down procedure.

    With ``p(1) ≤ … ≤ p(m)``, the adjusted value of rank k is
    ``max over j ≤ k of min(1, (m − j + 1) · p(j))``.

    Args:
        p_values: One for each comparison of the family, each in [0, 1].

    Returns:
        Adjusted p-values in the order of ``p_values``; comparisons with one at most α may be
        called significant together at level α.

    Raises:
        ValueError: A value is outside [0, 1] or NaN.

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
        Statistics 6 (1979).
    """
    if not all(0 <= value <= 1 for value in p_values):
        wrong = next(value for value in p_values if not 0 <= value <= 1 or math.isnan(value))
        raise ValueError(f"a p-value lies in [0, 1], not {wrong}")
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = reached
    return tuple(adjusted)
