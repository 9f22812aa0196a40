"""Float64 references of the methods that work on singular vectors, and of LiNeS.

Plain singular value decompositions, as the papers write them. A tensor without two axes, or
outside the layers (``is_layer=False``), is merged by the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.reference.sparsify import Array


def lines(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    layer: int | None,
    num_layers: int,
    alpha: float | None = None,
    beta: float | None = None,
) -> Array:
    """Return ``base + (α + β (l-1)/(L-1)) Σ w·δ``, α outside the layers (``layer=None``).

    ``layer`` counts from 1. α is 1/Σw and β is 1 - α unless given.

    Reference: Wang et al. 2025, arXiv 2410.17146.
    """
    alpha = 1 / sum(weights) if alpha is None else alpha
    beta = 1 - alpha if beta is None else beta
    factor = alpha if layer is None else alpha + beta * (layer - 1) / (num_layers - 1)
    summed: Array = sum(w * (x - base) for w, x in zip(weights, tensors, strict=True))
    return base + factor * summed


def _decompose(matrix: Array, *, of: Array | None = None) -> tuple[Array, Array, Array]:
    """Return U, σ, Vᵀ; vectors of singular values that are 0, which are arbitrary, as zeros.

    ``of`` is the matrix from which another was subtracted to give this one.
    """
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    is_there = s > 1e-6 * max(s[0], 0.0 if of is None else float(np.linalg.norm(of)))
    return u * is_there, s * is_there, vt * is_there[:, None]


def _nearest_orthogonal(matrix: Array) -> Array:
    """Return U Vᵀ over the singular values that are not 0."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    rank = int((s > 1e-5 * s[0]).sum()) if s.size and s[0] > 0 else 0
    return u[:, :rank] @ vt[:rank]


def iso_c(
    base: Array, tensors: Sequence[Array], *, weights: Sequence[float], lambda_: float = 1.0
) -> Array:
    """Return ``base + λ mean(σ) U Vᵀ`` of ``Σ w·δ``, a matrix.

    Reference: Marczak et al. 2025, arXiv 2502.04959.
    """
    summed = np.sum([w * (x - base) for w, x in zip(weights, tensors, strict=True)], axis=0)
    if base.ndim != 2:
        return base + lambda_ * summed / len(tensors)
    strength = np.linalg.svd(summed, compute_uv=False).mean()
    return base + lambda_ * strength * _nearest_orthogonal(summed)


def tsv_m(
    base: Array, tensors: Sequence[Array], *, weights: Sequence[float], lambda_: float = 1.0
) -> Array:
    """Keep r/N singular vectors of every task vector, make them orthogonal, and sum.

    Reference: Gargiulo et al. 2025, arXiv 2412.00081.
    """
    deltas = [w * (x - base) for w, x in zip(weights, tensors, strict=True)]
    if base.ndim != 2 or min(base.shape) < len(tensors):
        return base + lambda_ * np.mean(deltas, axis=0)
    kept = min(base.shape) // len(tensors)
    parts = [_decompose(delta) for delta in deltas]
    left = _nearest_orthogonal(np.concatenate([u[:, :kept] for u, _, _ in parts], axis=1))
    right = _nearest_orthogonal(np.concatenate([vt[:kept] for _, _, vt in parts], axis=0))
    strengths = np.concatenate([s[:kept] for _, s, _ in parts])
    return base + lambda_ * left @ np.diag(strengths) @ right


def iso_cts(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    fraction: float = 0.8,
    lambda_: float = 1.0,
) -> Array:
    """Give the common space and what each task has outside it one strength.

    Reference: Marczak et al. 2025, arXiv 2502.04959.
    """
    deltas = [w * (x - base) for w, x in zip(weights, tensors, strict=True)]
    count, rank = len(tensors), min(base.shape)
    if base.ndim != 2 or rank < count:
        return base + lambda_ * np.mean(deltas, axis=0)
    own = min(round((rank - int(rank * fraction)) / count), rank // count)
    common = rank - own * count
    u, s, vt = _decompose(np.sum(deltas, axis=0))
    lefts, strengths, rights = [u[:, :common]], [s[:common]], [vt[:common]]
    for delta in deltas:
        outside = delta - u[:, :common] @ (u[:, :common].T @ delta)
        own_u, own_s, own_vt = _decompose(outside, of=delta)
        lefts.append(own_u[:, :own])
        strengths.append(own_s[:own])
        rights.append(own_vt[:own])
    left = _nearest_orthogonal(np.concatenate(lefts, axis=1))
    right = _nearest_orthogonal(np.concatenate(rights, axis=0))
    return base + lambda_ * np.concatenate(strengths).mean() * left @ right
