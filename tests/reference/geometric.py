"""Float64 references of the methods that decide from the statistics of a tensor.

``sce``, ``model_stock``, ``nearswap``, ``arcee_fusion``, ``ram``, ``ramplus_tl``. All of them take
a base; δ = model - base.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from tests.reference.sparsify import Array, descending


def sce(base: Array, tensors: Sequence[Array], *, select_topk: float = 1.0) -> Array:
    """Select by variance, calculate weights by energy, erase minority signs.

    1. If ``select_topk < 1``: of the positions whose δ differ between models, keep the
       ``k = int(float32(select_topk)·float32(number of those positions))`` with the highest
       variance over the models (the lowest index among equals); zero elsewhere in every δ.
    2. ``e_i = mean(δ_i²)`` over the whole tensor, ``w_i = e_i/Σe``. Σe = 0: the result is the base.
    3. The majority sign is that of the *unweighted* ``Σ δ_i`` (+ when it is 0); a model agrees iff
       δ_i has that sign, and zero never does. ``y = base + Σ_agree w·δ / Σ_agree w`` (0 -> 1).

    Reference: Wan et al. 2024, FuseChat, arXiv 2408.07990, section 3.3 (SCE).
    Differs: the count k (of positions that differ, in single precision, possibly 0) is mergekit's,
        found by running it. With one model and ``select_topk < 1`` nothing differs: the base.
    """
    deltas = np.stack([x - base for x in tensors])
    if select_topk < 1:
        # Centred on the first model, so that equal values have a variance of exactly zero.
        variance = (deltas - deltas[0]).var(axis=0).ravel()
        k = int(np.float32(select_topk) * np.float32(np.count_nonzero(variance)))
        selected = np.zeros(variance.size, dtype=bool)
        selected[descending(variance)[:k]] = True
        deltas = np.where(selected.reshape(base.shape), deltas, 0.0)
    energy = np.array([(d**2).mean() for d in deltas])
    if energy.sum() == 0:
        return base.copy()
    weights: Array = (energy / energy.sum()).reshape(-1, *[1] * base.ndim)
    majority = np.where(deltas.sum(axis=0) >= 0, 1.0, -1.0)
    agrees = np.sign(deltas) == majority
    total_X = np.where(agrees, weights, 0.0).sum(axis=0)
    mixed: Array = np.where(agrees, weights * deltas, 0.0).sum(axis=0)
    return base + mixed / np.where(total_X == 0, 1.0, total_X)


def model_stock(base: Array, tensors: Sequence[Array], *, filter_wise: bool = False) -> Array:
    """Return ``t·mean(x) + (1-t)·base`` with ``t = N·c / (1 + (N-1)·c)``.

    ``c`` is the mean over all pairs of ``δ_i·δ_j / max(|δ_i||δ_j|, 1e-6)``; ``t = 0`` when
    ``|1 + (N-1)c| < 1e-6``; t is not clamped. ``filter_wise`` computes c and t for each row (last
    axis) instead of for the tensor.

    Reference: Jang et al. 2024, Model Stock, arXiv 2403.19522, section 4.
    Differs: the two guards are mergekit's. The first makes t small for task vectors with norms
        below 1e-3 (a zero one has c = 0), where the paper's ratio does not depend on the norm.
    """
    n = len(tensors)
    length = base.shape[-1] if filter_wise else base.size
    base_rows = base.reshape(-1, length)
    stacks = [x.reshape(-1, length) for x in tensors]
    merged = np.empty(base_rows.shape)
    for row, origin in enumerate(base_rows):
        deltas = [x[row] - origin for x in stacks]
        cosines = [
            (a @ b) / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-6)
            for a, b in combinations(deltas, 2)
        ]
        c = float(np.mean(cosines))
        denominator = 1 + (n - 1) * c
        t = 0.0 if abs(denominator) < 1e-6 else n * c / denominator
        merged[row] = t * np.mean([x[row] for x in stacks], axis=0) + (1 - t) * origin
    return merged.reshape(base.shape)


def nearswap(base: Array, other: Array, *, t: float) -> Array:
    """Return ``(1-g)·base + g·other`` with ``g = clamp(t/|other - base|, 0, 1)``.

    Where the two are equal the result is that value.

    Reference: alchemonaut, QuartetAnemoi-70B-t0.0001 (model card).
    """
    distance = np.abs(other - base)
    g = np.clip(t / np.where(distance == 0, 1.0, distance), 0.0, 1.0)
    return np.where(distance == 0, base, (1 - g) * base + g * other)


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def arcee_fusion(base: Array, other: Array) -> Array:
    """Take the other model's value where the change is important, else the base's.

    ``importance = |other - base| · KL(softmax(other) ‖ softmax(base))``, with softmax and
    divergence over the last axis, one divergence for each row. An element is taken iff its
    importance is at least ``median + 1.5·(Q3 - Q1)`` over the whole tensor.
    With ``s`` the ascending importances, the median is ``s[(n-1)//2]``,
    ``Q1 = s[int(0.25·(n-1))]`` and ``Q3 = s[int(0.75·(n-1))]``.

    Reference: Arcee AI 2025, Meet MergeKit v0.1: Arcee Fusion (release notes).
    Differs: the notes give neither quantile rule nor divergence; both were found by running
        mergekit.
    """
    log_p, log_q = _log_softmax(other), _log_softmax(base)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1, keepdims=True)
    importance = np.abs(other - base) * divergence
    s = np.sort(importance, axis=None)
    last = s.size - 1
    spread = s[int(0.75 * last)] - s[int(0.25 * last)]
    return np.where(importance >= s[last // 2] + 1.5 * spread, other, base)


def ramplus_tl(
    base: Array,
    tensors: Sequence[Array],
    *,
    epsilon: float = 1e-5,
    r: float = 0.1,
    alpha: float = 0.2,
) -> Array:
    """Keep changes that one model made, scaled up; average changes that several made.

    A model changed an element iff ``|δ| > epsilon``. With c the number of models that did:
    ``y = base + λ_i·δ_i`` (c = 1), ``base + Σ_changed δ/c`` (c > 1), ``base`` (c = 0).
    ``λ_i = 1 + r·clip(ρ_i, 0, alpha)``, ``ρ_i = shared_i/unique_i``: how many elements of this
    tensor model i changed together with others, and alone.

    Reference: Reinforced Agent Merging, arXiv 2601.13572.
    Differs: the paper's ρ is over the whole model; this variant is per tensor.
    """
    deltas = [x - base for x in tensors]
    changed = [np.abs(d) > epsilon for d in deltas]
    count = np.sum(changed, axis=0)
    unique = np.zeros_like(base)
    together = np.zeros_like(base)
    for delta, mine in zip(deltas, changed, strict=True):
        alone, shared = mine & (count == 1), mine & (count > 1)
        ratio = shared.sum() / max(int(alone.sum()), 1)
        unique += np.where(alone, (1 + r * np.clip(ratio, 0, alpha)) * delta, 0.0)
        together += np.where(shared, delta, 0.0)
    # Divided once, after the sum: a mean that falls between two bfloat16 values must stay there.
    return base + unique + together / np.maximum(count, 1)


def ram(base: Array, tensors: Sequence[Array], *, epsilon: float = 1e-5) -> Array:
    """Keep changes that one model made as they are; average changes that several made.

    ``ramplus_tl`` with λ = 1.

    Reference: Reinforced Agent Merging, arXiv 2601.13572.
    """
    return ramplus_tl(base, tensors, epsilon=epsilon, r=0.0, alpha=0.0)
