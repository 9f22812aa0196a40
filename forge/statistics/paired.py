"""The difference between two models that answered the same items.

Two accuracies with an interval each answer the wrong question: most of each interval is which
items were drawn, and both models met the same ones. What counts is the difference of each item.

Three intervals were candidates. Wald's, the mean of the differences ± 1.96 standard errors, has no
width where no item flipped and is too narrow where few did, which is the usual case of a good
quantization. Two others cover what they claim from ten items up (the tests simulate it):

* *Tango's score interval*, for answers that are right or wrong on independent items: all Δ that
  a score test does not reject. Without a flip in n items it is ± z² / (n + z²), still 0.7 points
  with 500 items.
* *Agresti and Min's*, for everything else: Wald's after adding two imaginary pairs, half a gain,
  half a loss and one that stays. Its standard error goes over sums of whole clusters, because
  items that share a passage fail together, its imaginary pairs are as large as the average
  cluster, and its quantile is Student's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forge.statistics.mcnemar import mcnemar_exact
from forge.statistics.normal import normal_quantile, t_quantile
from forge.statistics.tango import tango_interval


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A variant minus its baseline, over the same items.

    Attributes:
        difference: Mean difference of the scores, in [-1, 1].
        low: Lower end of its interval.
        high: Upper end.
        standard_error: Standard error of ``difference``, over clusters where there are any; NaN
            with fewer than two of them.
        num_items: Items.
        num_clusters: Independent units among them: clusters, or items without clusters.
        gained: Items that the variant gets right and the baseline wrong. With mean scores an item
            is right where more than half of the seeds got it right.
        lost: The reverse.
        p_value: Exact McNemar test, two-sided, of ``gained`` against ``lost``. With clusters it
            counts clusters that gained more than they lost against those that lost more: the sign
            test of independent units.
    """

    difference: float
    low: float
    high: float
    standard_error: float
    num_items: int
    num_clusters: int
    gained: int
    lost: int
    p_value: float


def paired_difference(
    variant: NDArray[np.float64],
    baseline: NDArray[np.float64],
    *,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> PairedDifference:
    """Compare two models item by item.

    Args:
        variant: Score of each item, ``[items]`` in [0, 1]: 0 or 1, or the mean over seeds.
        baseline: Those of the other model on the same items, in the same order.
        clusters: What each item belongs to, such as the passage that it asks about; items of
            different clusters are independent. Without it, all items are.
        confidence: Of the interval, in (0, 1).

    Returns:
        The comparison. The interval always holds the difference, and always has a width.

    Raises:
        ValueError: There are no items, the lengths differ, a score is outside [0, 1], or the
            confidence is outside (0, 1).

    Reference:
        Tango, "Equivalence test and confidence interval for the difference in proportions for the
        paired-sample design", Statistics in Medicine 17 (1998); Agresti and Min, "Simple improved
        confidence intervals for comparing matched proportions", Statistics in Medicine 24 (2005);
        clusters: Miller, "Adding error bars to evals" (arXiv 2411.00640), section 4.
    """
    _check(variant, baseline, clusters, confidence)
    differences_N = variant.astype(np.float64) - baseline.astype(np.float64)
    num_items = len(differences_N)
    cluster_N, num_clusters = _numbered(clusters, num_items)
    difference = float(differences_N.mean())
    flips_N = (variant > 0.5).astype(np.int64) - (baseline > 0.5).astype(np.int64)
    gained, lost = int((flips_N > 0).sum()), int((flips_N < 0).sum())
    independent = num_clusters == num_items
    right_or_wrong = bool(np.isin(variant, (0.0, 1.0)).all() and np.isin(baseline, (0, 1)).all())
    if independent and right_or_wrong:
        low, high = tango_interval(gained, lost, num_items, z=normal_quantile((1 + confidence) / 2))
    else:
        low, high = _adjusted_interval(differences_N, cluster_N, num_clusters, confidence)
    net_C = np.bincount(cluster_N, flips_N, num_clusters)
    return PairedDifference(
        difference=difference,
        low=low,
        high=high,
        standard_error=_standard_error(differences_N - difference, cluster_N, num_clusters),
        num_items=num_items,
        num_clusters=num_clusters,
        gained=gained,
        lost=lost,
        p_value=mcnemar_exact(int((net_C > 0).sum()), int((net_C < 0).sum())),
    )


def _check(
    variant: NDArray[np.float64],
    baseline: NDArray[np.float64],
    clusters: Sequence[str] | None,
    confidence: float,
) -> None:
    if variant.ndim != 1 or variant.shape != baseline.shape or not len(variant):
        raise ValueError(
            f"both models need a score for each item, not {variant.shape} and {baseline.shape}"
        )
    for scores in (variant, baseline):
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("a score lies in [0, 1]")
    if clusters is not None and len(clusters) != len(variant):
        raise ValueError(f"{len(clusters)} clusters are named for {len(variant)} items")
    if not 0 < confidence < 1:
        raise ValueError(f"the confidence lies in (0, 1), not {confidence}")


def _numbered(clusters: Sequence[str] | None, num_items: int) -> tuple[NDArray[np.int64], int]:
    if clusters is None:
        return np.arange(num_items), num_items
    numbers: dict[str, int] = {}
    cluster_N = np.array([numbers.setdefault(name, len(numbers)) for name in clusters], np.int64)
    return cluster_N, len(numbers)


def _standard_error(
    centred_N: NDArray[np.float64], cluster_N: NDArray[np.int64], num_clusters: int
) -> float:
    """Return √(G / (G − 1) · Σ over clusters of (sum of their deviations)²) / n."""
    if num_clusters < 2:
        return math.nan
    sums_G = np.bincount(cluster_N, centred_N, num_clusters)
    factor = num_clusters / (num_clusters - 1)
    return math.sqrt(factor * float((sums_G**2).sum())) / len(centred_N)


def _adjusted_interval(
    differences_N: NDArray[np.float64],
    cluster_N: NDArray[np.int64],
    num_clusters: int,
    confidence: float,
) -> tuple[float, float]:
    if num_clusters < 2:
        # One passage says nothing about how passages differ.
        return -1.0, 1.0
    # In units of a whole cluster: imaginary pairs narrower than what varies would say too much.
    members = len(differences_N) / num_clusters
    size = len(differences_N) + 2 * members
    centre = float(differences_N.sum()) / size
    sums_G = np.bincount(cluster_N, differences_N - centre, num_clusters)
    # Differences of +1 and −1 with weight a half each, and of 0 with weight one.
    imaginary = members**2 * (0.5 * (1 - centre) ** 2 + 0.5 * (1 + centre) ** 2 + centre**2)
    factor = num_clusters / (num_clusters - 1)
    error = math.sqrt(factor * float((sums_G**2).sum()) + imaginary) / size
    half = t_quantile((1 + confidence) / 2, num_clusters - 1) * error
    difference = float(differences_N.mean())
    return max(-1.0, min(centre - half, difference)), min(1.0, max(centre + half, difference))
