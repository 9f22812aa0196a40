"""How well a model's confidence agrees with its accuracy.

Answers are sorted into bins of equal width by their confidence, the probability of the chosen
option among the options. The expected calibration error is the mean distance of accuracy and
confidence over the bins, weighted by their answers:

    ECE = Σ_b (n_b / n) · |accuracy_b − confidence_b|

Reference: Guo, Pleiss, Sun, Weinberger, "On calibration of modern neural networks"
(arXiv 1706.04599), equation 3.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from forge.report.comparison import ReliabilityBin

NUM_BINS: Final = 10


def reliability_bins(
    confidence_N: NDArray[np.float64], right_N: NDArray[np.bool_]
) -> tuple[ReliabilityBin, ...]:
    """Sort answers into bins of equal width.

    Args:
        confidence_N: In [0, 1].
        right_N: Whether each answer is right.

    Returns:
        The bins that are not empty; a confidence on an edge is in the upper bin, 1 in the last.
    """
    bin_N = np.minimum((confidence_N * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    return tuple(
        ReliabilityBin(
            low=number / NUM_BINS,
            high=(number + 1) / NUM_BINS,
            num_answers=int(inside_N.sum()),
            confidence=float(confidence_N[inside_N].mean()),
            accuracy=float(right_N[inside_N].mean()),
        )
        for number in range(NUM_BINS)
        if (inside_N := bin_N == number).any()
    )


def calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Return the expected calibration error.

    Args:
        bins: At least one.
    """
    total = sum(each.num_answers for each in bins)
    return sum(each.num_answers * abs(each.accuracy - each.confidence) for each in bins) / total
