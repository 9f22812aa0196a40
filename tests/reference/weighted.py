"""Float64 references of the methods that weight by statistics of each model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.reference.sparsify import Array


def regmean(
    tensors: Sequence[Array],
    *,
    grams: Sequence[Array],
    weights: Sequence[float],
    alpha: float = 0.9,
) -> Array:
    """Solve the normal equations of ``min Σ w |W x - W_i x|²``, column by column of a lstsq.

    Reference: Jin et al. 2023, arXiv 2212.09849, equation 2 and section 4.2.
    """
    if tensors[0].ndim != 2:
        return np.average(np.stack(tensors), axis=0, weights=weights)
    shrunk = [
        w * (alpha * gram + (1 - alpha) * np.diag(np.diag(gram)))
        for w, gram in zip(weights, grams, strict=True)
    ]
    right = sum(gram @ tensor.T for gram, tensor in zip(shrunk, tensors, strict=True))
    return np.linalg.lstsq(sum(shrunk), right, rcond=None)[0].T


def fisher(
    tensors: Sequence[Array], *, fishers: Sequence[Array], weights: Sequence[float]
) -> Array:
    """Return Σ w·F·x / Σ w·F, the plain mean where no F is above 0.

    Reference: Matena and Raffel 2022, arXiv 2111.09832, section 3.
    """
    parts = [w * f for w, f in zip(weights, fishers, strict=True)]
    total = sum(parts)
    summed = sum(p * x for p, x in zip(parts, tensors, strict=True))
    mean = np.average(np.stack(tensors), axis=0, weights=weights)
    return np.where(total > 0, summed / np.where(total > 0, total, 1.0), mean)
