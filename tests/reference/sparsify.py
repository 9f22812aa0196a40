"""Float64 references of the sparsifiers: which elements of a task vector are kept.

Every function takes a task vector (any shape, float64) and returns a new one of the same shape in
which dropped elements are 0. Wherever an order by magnitude is needed, equal magnitudes are ordered
by their index in memory order: the lower index counts as the larger magnitude.

Random methods take their uniform numbers in [0, 1) from the caller and keep an element iff
``uniform < keep probability``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rescale = Literal["density", "l1", "none"]


def descending(magnitudes: Array) -> NDArray[np.intp]:
    """Return the indices of a vector from its largest to its smallest element.

    Args:
        magnitudes: ``[n]``. Equal elements keep the order of their indices.
    """
    return np.argsort(-magnitudes, kind="stable")


def scale_to_l1(kept: Array, original: Array) -> Array:
    """Scale ``kept`` so that its L1 norm over the whole tensor is that of ``original``.

    ``kept · Σ|original| / Σ|kept|``; when nothing was kept it stays 0.
    """
    total = np.abs(kept).sum()
    return kept if total == 0 else kept * (np.abs(original).sum() / total)


def magnitude(delta: Array, density: float, *, rescale: bool = False) -> Array:
    """Keep the ``k = max(1, int(density·n))`` largest magnitudes.

    ``int`` truncates the double product. All zero for density <= 0, unchanged for density >= 1.

    Reference: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, section 4.1 (trim).
    Differs: the paper does not say how equal magnitudes are resolved; mergekit leaves it to
        ``topk``. Here the lowest index wins.
    """
    if density <= 0:
        return np.zeros_like(delta)
    if density >= 1:
        return delta.copy()
    k = max(1, int(density * delta.size))
    kept: Array = np.zeros(delta.size)
    chosen = descending(np.abs(delta).ravel())[:k]
    kept[chosen] = delta.ravel()[chosen]
    kept = kept.reshape(delta.shape)
    return scale_to_l1(kept, delta) if rescale else kept


def breadcrumbs(delta: Array, density: float, gamma: float, *, rescale: bool = False) -> Array:
    """Drop the largest magnitudes, keep the next ones, drop the smallest.

    ``k = int(density·n)`` elements are kept, after ``top = min(int(gamma·n), n - k)`` of the
    largest were dropped. Unchanged for density >= 1 whatever gamma says; ``k`` may be 0.

    Reference: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795, section 3.
    Differs: the paper masks layer by layer with two percentiles; the counts are mergekit's, found
        by running it over a grid of n, density and gamma.
    """
    if density >= 1:
        return delta.copy()
    n = delta.size
    k = max(0, int(density * n))
    top = min(int(gamma * n), n - k)
    kept: Array = np.zeros(n)
    chosen = descending(np.abs(delta).ravel())[top : top + k]
    kept[chosen] = delta.ravel()[chosen]
    kept = kept.reshape(delta.shape)
    return scale_to_l1(kept, delta) if rescale else kept


def dare(delta: Array, density: float, uniforms: Array, *, rescale: Rescale = "density") -> Array:
    """Keep each element with probability ``density``.

    ``rescale="density"`` divides what is kept by the density, so that the expectation is
    ``delta``; ``"l1"`` restores the tensor's L1 norm.

    Reference: Yu et al. 2024, Language Models are Super Mario, arXiv 2311.03099, equation 1.
    Differs: mergekit's rescale is ``"l1"``.
    """
    if density >= 1:
        return delta.copy()
    kept = np.where(uniforms < density, delta, 0.0)
    if rescale == "density" and density > 0:
        return kept / density
    return scale_to_l1(kept, delta) if rescale == "l1" else kept


def della_probabilities(delta: Array, density: float, epsilon: float) -> Array:
    """Return each element's keep probability by its rank within its row.

    ``p = (density - epsilon) + 2·epsilon·rank / (C - 1)``, where a row is the last axis, ``C`` its
    length, and rank 0 the smallest magnitude in it. A row of one element has ``p = density``.

    Reference: Deep et al. 2024, DELLA-Merging, arXiv 2406.11617, section 3 (MAGPRUNE).
    Differs: the paper has ``rank·epsilon/n`` with epsilon the full width; range and denominator
        here are mergekit's. mergekit gives the lower index of two equal magnitudes the lower rank,
        fails on rows of one element, and ranks tensors of three and more dimensions along axis 1
        instead of the last axis.

    Raises:
        ValueError: When ``density ± epsilon`` is not strictly inside (0, 1).
    """
    if not (density - epsilon > 0 and density + epsilon < 1):
        raise ValueError(f"density {density} ± epsilon {epsilon} leaves (0, 1)")
    rows = delta.reshape(-1, delta.shape[-1])
    length = rows.shape[1]
    if length == 1:
        return np.full(delta.shape, density)
    probabilities = np.empty(rows.shape)
    for row, out in zip(rows, probabilities, strict=True):
        for place, index in enumerate(descending(np.abs(row))):
            rank = length - 1 - place
            out[index] = (density - epsilon) + 2 * epsilon * rank / (length - 1)
    return probabilities.reshape(delta.shape)


def della(
    delta: Array,
    density: float,
    epsilon: float,
    uniforms: Array,
    *,
    rescale: Rescale = "density",
) -> Array:
    """Keep each element with the probability of its rank (``della_probabilities``).

    ``rescale="density"`` divides each kept element by its own probability (the paper's rescale);
    ``"l1"`` restores the L1 norm of the whole tensor (not of the row). Unchanged for
    density >= 1, zero for density <= 0, epsilon unused in both.

    Reference: Deep et al. 2024, DELLA-Merging, arXiv 2406.11617, section 3.
    Differs: mergekit's rescale is ``"l1"``.
    """
    if density >= 1:
        return delta.copy()
    if density <= 0:
        return np.zeros_like(delta)
    p = della_probabilities(delta, density, epsilon)
    kept = np.where(uniforms < p, delta, 0.0)
    if rescale == "density":
        return kept / p
    return scale_to_l1(kept, delta) if rescale == "l1" else kept
