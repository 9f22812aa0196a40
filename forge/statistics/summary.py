"""Short descriptions of a handful of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the population standard deviation, as tables over seeds print them.

    The divisor of the variance is the number of values, not one less: this describes the seeds
    that were run. It is no standard error, and says nothing about other items.

    Args:
        values: At least one number.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("there are no values to average")
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std())


def quantiles(values: Sequence[float], probabilities: Sequence[float]) -> tuple[float, ...]:
    """Return quantiles, interpolated linearly between the nearest two values.

    Args:
        values: At least one number, in any order.
        probabilities: Each in [0, 1], such as ``(0.5, 0.9, 0.99)``.

    Raises:
        ValueError: There are no values, or a probability is outside [0, 1].
    """
    if not values:
        raise ValueError("there are no values to take quantiles of")
    return tuple(np.quantile(np.asarray(values, np.float64), probabilities).tolist())
