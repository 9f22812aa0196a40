"""Float64 references of the methods that sparsify task vectors and add them up.

``task_arithmetic``, ``ties``, ``dare_linear``, ``dare_ties``, ``breadcrumbs``,
``breadcrumbs_ties``, ``della`` and ``della_linear`` differ in how a task vector δ = model - base is
sparsified (``sparsify.py``) and in whether a sign is elected. The rest is ``combine``.

Shared arguments: ``base`` and each of ``tensors`` are float64 arrays of one shape; ``weights``,
``densities``, ``gammas`` and ``epsilons`` hold one number for each model; ``uniforms`` one array of
numbers in [0, 1) for each model, of the tensors' shape. The result is float64 of that shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.reference import sparsify
from tests.reference.sparsify import Array, Rescale


def combine(
    base: Array,
    sparse: Sequence[Array],
    *,
    weights: Sequence[float],
    elect: bool,
    normalize: bool,
    lambda_: float,
) -> Array:
    """Return ``base + λ·m``, where ``m`` is the weighted sum of sparse task vectors.

    With ``z_i = w_i·s_i``:

    - without election ``m = Σ z_i``, divided by ``Σ w_i`` if ``normalize``, unless
      ``|Σ w_i| < 1e-8``;
    - with election the majority sign of an element is + iff ``Σ z_i >= 0``; a model agrees iff
      ``z_i`` has that sign, and an exact zero never does; ``m = Σ_agree z_i``, divided by
      ``Σ_agree w_i`` if ``normalize``, unless that sum is exactly 0.

    Reference: Ilharco et al. 2023, arXiv 2212.04089; Yadav et al. 2023, arXiv 2306.01708,
        section 4.1 (elect, disjoint merge).
    Differs: the paper elects on unweighted task vectors and divides by the number of agreeing
        models; with equal weights that is the same. mergekit elects on weighted ones, as here.
    """
    scaled = np.stack([w * s for w, s in zip(weights, sparse, strict=True)])
    if not elect:
        mixed: Array = scaled.sum(axis=0)
        total = sum(weights)
        if normalize and abs(total) >= 1e-8:
            mixed = mixed / total
        return base + lambda_ * mixed
    majority = np.where(scaled.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = np.sign(scaled) == majority
    mixed = np.where(agrees, scaled, 0.0).sum(axis=0)
    if normalize:
        column = np.asarray(weights, dtype=np.float64).reshape(-1, *[1] * base.ndim)
        total_X = np.where(agrees, column, 0.0).sum(axis=0)
        mixed = mixed / np.where(total_X == 0, 1.0, total_X)
    return base + lambda_ * mixed


def task_arithmetic(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    normalize: bool = False,
    lambda_: float = 1.0,
) -> Array:
    """Return ``base + λ Σ w·δ``.

    Reference: Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv 2212.04089.
    """
    deltas = [x - base for x in tensors]
    return combine(base, deltas, weights=weights, elect=False, normalize=normalize, lambda_=lambda_)


def ties(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Array:
    """Trim to the largest magnitudes, elect a sign, merge the agreeing.

    ``rescale`` restores each trimmed task vector's L1 norm (mergekit's option, not the paper's).

    Reference: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708, algorithm 1.
    """
    sparse = [
        sparsify.magnitude(x - base, d, rescale=rescale)
        for x, d in zip(tensors, densities, strict=True)
    ]
    return combine(base, sparse, weights=weights, elect=True, normalize=normalize, lambda_=lambda_)


def _dare(
    base: Array,
    tensors: Sequence[Array],
    densities: Sequence[float],
    uniforms: Sequence[Array],
    rescale: Rescale,
) -> list[Array]:
    return [
        sparsify.dare(x - base, d, u, rescale=rescale)
        for x, d, u in zip(tensors, densities, uniforms, strict=True)
    ]


def dare_linear(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    uniforms: Sequence[Array],
    normalize: bool = False,
    rescale: Rescale = "density",
    lambda_: float = 1.0,
) -> Array:
    """Drop at random, rescale, and sum: ``base + λ Σ w·δ·[u < d]/d``.

    Reference: Yu et al. 2024, arXiv 2311.03099.
    Differs: mergekit's rescale is ``"l1"``.
    """
    sparse = _dare(base, tensors, densities, uniforms, rescale)
    return combine(base, sparse, weights=weights, elect=False, normalize=normalize, lambda_=lambda_)


def dare_ties(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    uniforms: Sequence[Array],
    normalize: bool = False,
    rescale: Rescale = "density",
    lambda_: float = 1.0,
) -> Array:
    """Drop at random and rescale, then elect a sign and merge the agreeing.

    Reference: Yu et al. 2024, arXiv 2311.03099; Yadav et al. 2023, arXiv 2306.01708.
    Differs: mergekit's rescale is ``"l1"``.
    """
    sparse = _dare(base, tensors, densities, uniforms, rescale)
    return combine(base, sparse, weights=weights, elect=True, normalize=normalize, lambda_=lambda_)


def _breadcrumbs(
    base: Array,
    tensors: Sequence[Array],
    densities: Sequence[float],
    gammas: Sequence[float],
    rescale: bool,
) -> list[Array]:
    return [
        sparsify.breadcrumbs(x - base, d, g, rescale=rescale)
        for x, d, g in zip(tensors, densities, gammas, strict=True)
    ]


def breadcrumbs(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Array:
    """Sum task vectors without their largest and smallest magnitudes.

    Reference: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795.
    """
    sparse = _breadcrumbs(base, tensors, densities, gammas, rescale)
    return combine(base, sparse, weights=weights, elect=False, normalize=normalize, lambda_=lambda_)


def breadcrumbs_ties(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Array:
    """As ``breadcrumbs``, with sign election.

    Reference: Davari and Belilovsky 2023, arXiv 2312.06795; Yadav et al. 2023, arXiv 2306.01708.
    """
    sparse = _breadcrumbs(base, tensors, densities, gammas, rescale)
    return combine(base, sparse, weights=weights, elect=True, normalize=normalize, lambda_=lambda_)


def _della(
    base: Array,
    tensors: Sequence[Array],
    densities: Sequence[float],
    epsilons: Sequence[float],
    uniforms: Sequence[Array],
    rescale: Rescale,
) -> list[Array]:
    return [
        sparsify.della(x - base, d, e, u, rescale=rescale)
        for x, d, e, u in zip(tensors, densities, epsilons, uniforms, strict=True)
    ]


def della(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    uniforms: Sequence[Array],
    normalize: bool = True,
    rescale: Rescale = "density",
    lambda_: float = 1.0,
) -> Array:
    """Drop at random by magnitude rank and rescale, then elect a sign and merge the agreeing.

    Reference: Deep et al. 2024, DELLA-Merging, arXiv 2406.11617.
    Differs: mergekit's rescale is ``"l1"``.
    """
    sparse = _della(base, tensors, densities, epsilons, uniforms, rescale)
    return combine(base, sparse, weights=weights, elect=True, normalize=normalize, lambda_=lambda_)


def della_linear(
    base: Array,
    tensors: Sequence[Array],
    *,
    weights: Sequence[float],
    densities: Sequence[float],
    epsilons: Sequence[float],
    uniforms: Sequence[Array],
    normalize: bool = False,
    rescale: Rescale = "density",
    lambda_: float = 1.0,
) -> Array:
    """As ``della``, without sign election.

    Reference: Deep et al. 2024, DELLA-Merging, arXiv 2406.11617.
    Differs: mergekit's rescale is ``"l1"``.
    """
    sparse = _della(base, tensors, densities, epsilons, uniforms, rescale)
    return combine(base, sparse, weights=weights, elect=False, normalize=normalize, lambda_=lambda_)
