"""Iso-CTS: common and task-specific directions, all of the same strength.

    S = Σ w·δ,    U_c, V_c: its first k singular vectors (the common space)
    δ′_i = w·δ_i - U_c U_cᵀ w·δ_i,    U_i, V_i: the first s singular vectors of each (its own space)
    U = [U_1 … U_N U_c],  V = [V_1 … V_N V_c],  σ̄ = the mean of all their singular values
    y = base + λ σ̄ U⊥ V⊥ᵀ,    U⊥ = U (UᵀU)^(-1/2), V⊥ = V (VᵀV)^(-1/2)

for each matrix of the layers; r is the shorter of its sides, s = round((r - ⌊f·r⌋)/N), at most
⌊r/N⌋, and k = r - N·s, where f is `common_space_fraction`. Every other tensor becomes
base + λ/N Σ w·δ: those without two axes (norms, biases), those with fewer rows or columns than
there are models, and, unless `outside_layers` is `spectral`, embeddings and head.

Reference: Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959.
Differs: the paper chooses λ on validation data; here it is 1 unless given. Directions of no
strength, or that two models share exactly, stay 0 or count once, instead of being completed
arbitrarily.
The paper's networks have no embedding of tokens; its code treats every tensor of two axes as a
matrix, as `outside_layers: spectral` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forge.kernels.operands import Float64s, Operands
from forge.merge import spectral
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, globally the three parameters."""
    fraction = call.number("common_space_fraction")
    return spectral.merge_matrices(
        operands,
        call,
        lambda matrices, notes: _factors(matrices, fraction, notes),
        least=operands.num_models,
    )


def _factors(
    matrices: spectral.TaskMatrices, fraction: float, notes: dict[str, float]
) -> Sequence[Float64s]:
    grams = matrices.grams()
    count, rank = matrices.count, matrices.rank
    own = min(round((rank - int(rank * fraction)) / count), rank // count)
    common = rank - own * count
    crossed = [_with_sum(grams, i) for i in range(count)]
    total = spectral.spectrum(np.sum(crossed, axis=0))
    # U_c = S W and Y_i = U_cᵀ D_i
    to_common = total.vectors[:, :common] * total.inverses(common)
    inside = [to_common.T @ block for block in crossed]
    spectra = [
        spectral.spectrum(
            _outside(grams[i][i], inside[i], total.vectors[:, :common], is_wide=matrices.is_wide),
            energy=float(np.trace(grams[i][i])),
        )
        for i in range(count)
    ]
    # U_i = D_i B_i + S W Z_i. In a wide matrix D is transposed: the common space is then taken
    # away from the right, which leaves B_i as it is.
    to_own = [found.vectors[:, :own] * found.inverses(own) for found in spectra]
    touching = np.concatenate([inside[i] @ to_own[i] for i in range(count)], axis=1)
    removed = np.zeros_like(touching) if matrices.is_wide else -touching
    gram = np.empty((rank, rank))
    gram[: own * count, : own * count] = _own_gram(grams, to_own, touching, removed)
    gram[own * count :, : own * count] = touching + removed
    gram[: own * count, own * count :] = (touching + removed).T
    gram[own * count :, own * count :] = np.diag((total.values[:common] > 0).astype(np.float64))
    right = np.concatenate(
        [*[found.vectors[:, :own] for found in spectra], total.vectors[:, :common]], axis=1
    )
    strengths = np.concatenate([*[found.values[:own] for found in spectra], total.values[:common]])
    mean = float(strengths.mean())
    notes["singular_value"] = mean
    notes["common_directions"] = float(common)
    core = mean * (spectral.inverse_root(gram) @ spectral.inverse_root(right.T @ right) @ right.T)
    shared = to_common @ (core[own * count :] + removed @ core[: own * count])
    return [to_own[i] @ core[i * own : (i + 1) * own] + shared for i in range(count)]


def _with_sum(grams: list[list[Float64s]], index: int) -> Float64s:
    """Return Sᵀ D_i."""
    count = len(grams)
    blocks = [grams[i][index] if i >= index else grams[index][i].T for i in range(count)]
    return np.asarray(np.sum(blocks, axis=0))


def _outside(gram: Float64s, inside: Float64s, common: Float64s, *, is_wide: bool) -> Float64s:
    """Return the Gram matrix of a task vector without the common space."""
    if not is_wide:
        return gram - inside.T @ inside
    # (I - V_c V_cᵀ) G (I - V_c V_cᵀ)
    once = gram - common @ (common.T @ gram)
    return np.asarray(once - (once @ common) @ common.T)


def _own_gram(
    grams: list[list[Float64s]],
    to_own: Sequence[Float64s],
    touching: Float64s,
    removed: Float64s,
) -> Float64s:
    """Return the inner products of all task-specific left singular vectors."""
    count, own = len(to_own), to_own[0].shape[1]
    gram = touching.T @ removed + removed.T @ touching + removed.T @ removed
    for i in range(count):
        for j in range(i + 1):
            block = to_own[i].T @ grams[i][j] @ to_own[j]
            gram[i * own : (i + 1) * own, j * own : (j + 1) * own] += block
            if i != j:
                gram[j * own : (j + 1) * own, i * own : (i + 1) * own] += block.T
    return np.asarray(gram)
