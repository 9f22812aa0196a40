"""What difference a number of items can detect, before anything is computed.

A quick run on 100 items finds only gross damage; saying which, in points, keeps its reader from
taking "no significant difference" for "no difference".
"""

from __future__ import annotations

import math
from collections.abc import Callable

from forge.statistics.normal import normal_quantile


def detectable_difference(
    num_items: int, *, discordant_share: float = 0.2, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return the smallest difference in accuracy that McNemar's test detects on the same items.

    Solves for δ, with ψ the share of items that flip,

        n · δ² = (z(1 − α/2) · √ψ + z(power) · √(ψ − δ²))².

    A difference cannot exceed the share of flips, so where δ would, ψ = δ: every flip goes one
    way. The exact test of ``mcnemar_exact`` needs slightly more than this normal approximation
    where flips are few.

    Args:
        num_items: Items that both models answer, n.
        discordant_share: Share of items that exactly one of the two gets right, in (0, 1]: some
            0.05 between a model and its 4-bit variant, 0.2 to 0.3 between a model and a merge.
        power: Chance to find a difference of that size, in (0, 1).
        alpha: Two-sided level of the test, in (0, 1).

    Returns:
        The difference, in (0, 1]; infinity where not even a difference of 1 would be found.

    Raises:
        ValueError: An argument is outside its range.

    Reference:
        Miettinen, "The matched pairs design in the case of all-or-none responses", Biometrics 24
        (1968); Connor, "Sample size for testing differences in proportions for the paired-sample
        design", Biometrics 43 (1987), equation 3.
    """
    z_alpha, z_power = _quantiles(num_items, power, alpha)
    if not 0 < discordant_share <= 1:
        raise ValueError(f"the share of flips lies in (0, 1], not {discordant_share}")

    def needed(difference: float) -> float:
        share = max(discordant_share, difference)
        spread = math.sqrt(share - difference * difference)
        return (z_alpha * math.sqrt(share) + z_power * spread) / difference

    return _smallest(needed, num_items, 1.0)


def detectable_excess(
    num_items: int, *, baseline: float, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Return by how much one accuracy must exceed a known value to be told from it.

    Solves for δ, with p = ``baseline`` + δ and b = ``baseline``,

        n · δ² = (z(1 − α/2) · √(b(1 − b)) + z(power) · √(p(1 − p)))².

    Args:
        num_items: Items that the model answers, n.
        baseline: The known value, in (0, 1), such as the accuracy of the majority label.
        power: Chance to find an excess of that size, in (0, 1).
        alpha: Two-sided level of the test, in (0, 1).

    Returns:
        The excess, at most ``1 − baseline``; infinity where not even that would be found.

    Raises:
        ValueError: An argument is outside its range.

    Reference:
        Fleiss, Levin, Paik, *Statistical Methods for Rates and Proportions*, 3rd edition, section
        2.5.
    """
    z_alpha, z_power = _quantiles(num_items, power, alpha)
    if not 0 < baseline < 1:
        raise ValueError(f"the baseline lies in (0, 1), not {baseline}")

    def needed(difference: float) -> float:
        reached = min(1.0, baseline + difference)
        null = math.sqrt(baseline * (1 - baseline))
        return (z_alpha * null + z_power * math.sqrt(reached * (1 - reached))) / difference

    return _smallest(needed, num_items, 1 - baseline)


def _quantiles(num_items: int, power: float, alpha: float) -> tuple[float, float]:
    if num_items < 1:
        raise ValueError(f"there must be at least one item, not {num_items}")
    if not 0 < power < 1 or not 0 < alpha < 1:
        raise ValueError(f"power {power} and alpha {alpha} must lie in (0, 1)")
    return normal_quantile(1 - alpha / 2), normal_quantile(power)


def _smallest(needed: Callable[[float], float], num_items: int, most: float) -> float:
    """Return the difference whose need, which falls as it grows, is the root of ``num_items``."""
    have = math.sqrt(num_items)
    if needed(most) > have:
        return math.inf
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        if needed(middle) > have:
            low = middle
        else:
            high = middle
    return high
