"""McNemar's test of paired answers, exactly.

Two models answer the same items. Items that both get right, or both wrong, say nothing of which
is better; those that flipped do. If neither is better, each flip goes either way like a fair coin,
so the number of gains among the flips is binomial.
"""

from __future__ import annotations

import math


def mcnemar_exact(gained: int, lost: int) -> float:
    """Return the two-sided p-value of paired answers.

    ``p = min(1, 2 · P(X ≤ min(gained, lost)))`` with ``X ~ Binomial(gained + lost, 1/2)``.

    Args:
        gained: Items that the variant gets right and the baseline wrong.
        lost: Items that the baseline gets right and the variant wrong.

    Returns:
        The probability of flips at least as uneven if neither model is better; 1 without flips.

    Raises:
        ValueError: A count is negative.

    Reference:
        McNemar, "Note on the sampling error of the difference between correlated proportions or
        percentages", Psychometrika 12 (1947); exact form: Agresti, *Categorical Data Analysis*,
        section on comparing dependent proportions.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"flips cannot be negative: {gained} gained, {lost} lost")
    flips, fewer = gained + lost, min(gained, lost)
    if 2 * fewer == flips:
        return 1.0
    # Terms relative to the largest, the last: nothing overflows with thousands of flips.
    term, total = 1.0, 0.0
    for count in range(fewer, -1, -1):
        total += term
        term *= count / (flips - count + 1)
        if term < total * 1e-17:
            break
    largest = (
        math.lgamma(flips + 1) - math.lgamma(fewer + 1) - math.lgamma(flips - fewer + 1)
        - flips * math.log(2)
    )  # fmt: skip
    return min(1.0, 2 * total * math.exp(largest))
