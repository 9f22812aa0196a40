"""TSV-M: the main singular vectors of every task vector, made orthogonal to each other.

    w·δ_i = U_i Σ_i V_iᵀ, of which the first k = ⌊r/N⌋ singular values are kept
    U = [U_1 … U_N],  V = [V_1 … V_N],  Σ = diag(Σ_1 … Σ_N)
    y = base + λ U⊥ Σ V⊥ᵀ,    U⊥ = U (UᵀU)^(-1/2), V⊥ = V (VᵀV)^(-1/2)

for each matrix of the layers, r the shorter of its sides. Every other tensor becomes
base + λ/N Σ w·δ: those without two axes (norms, biases), those with fewer rows or columns than
there are models, and, unless `outside_layers` is `spectral`, embeddings and head.

Reference: Gargiulo et al. 2025, Task Singular Vectors, arXiv 2412.00081.
Differs: directions that two models share exactly count once (N copies of one model give its main
directions as strong as they are), where the paper's code completes them arbitrarily. The paper's
networks have no embedding of tokens; its code treats every tensor of two axes as a matrix,
as `outside_layers: spectral` does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forge.kernels.operands import Float64s, Operands
from forge.merge import spectral
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, globally ``lambda`` and ``outside_layers``."""
    return spectral.merge_matrices(operands, call, _factors, least=operands.num_models)


def _factors(matrices: spectral.TaskMatrices, notes: dict[str, float]) -> Sequence[Float64s]:
    grams = matrices.grams()
    count, kept = matrices.count, matrices.rank // matrices.count
    spectra = [spectral.spectrum(grams[i][i]) for i in range(count)]
    # U_i = D_i B_i
    to_left = [found.vectors[:, :kept] * found.inverses(kept) for found in spectra]
    strengths = np.concatenate([found.values[:kept] for found in spectra])
    left_gram = np.empty((count * kept,) * 2)
    for i in range(count):
        for j in range(i + 1):
            block = to_left[i].T @ grams[i][j] @ to_left[j]
            left_gram[i * kept : (i + 1) * kept, j * kept : (j + 1) * kept] = block
            left_gram[j * kept : (j + 1) * kept, i * kept : (i + 1) * kept] = block.T
    right = np.concatenate([found.vectors[:, :kept] for found in spectra], axis=1)
    core = (spectral.inverse_root(left_gram) * strengths) @ spectral.inverse_root(right.T @ right)
    core = core @ right.T
    energy = sum(float(np.square(found.values).sum()) for found in spectra)
    notes["energy_share"] = float(np.square(strengths).sum()) / energy if energy > 0 else 1.0
    return [to_left[i] @ core[i * kept : (i + 1) * kept] for i in range(count)]
