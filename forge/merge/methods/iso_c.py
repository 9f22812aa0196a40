"""Iso-C: give every direction of the summed task vectors the same strength.

    S = Σ w·δ = U Σ Vᵀ,    y = base + λ σ̄ U Vᵀ,    σ̄ = the mean singular value of S

for each matrix of the layers. Every other tensor becomes base + λ/N Σ w·δ: those without two axes
(norms, biases), and, unless `outside_layers` is `spectral`, embeddings and head.

U Vᵀ is S (SᵀS)^(-1/2), computed in float64 from one symmetric eigenproblem of the shorter side.

Reference: Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959.
Differs: the paper chooses λ on validation data; here it is 1 unless given. Singular values below
√(r·2⁻⁵²) of the greatest are 0, and their directions stay 0 instead of becoming arbitrary ones.
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
    """Merge one tensor; per model ``weight``, globally ``lambda`` and ``outside_layers``."""
    return spectral.merge_matrices(operands, call, _factors)


def _factors(matrices: spectral.TaskMatrices, notes: dict[str, float]) -> Sequence[Float64s]:
    found = spectral.spectrum(matrices.gram_of_sum())
    mean = float(found.values.mean())
    notes["singular_value"] = mean
    notes["directions"] = float(np.count_nonzero(found.values))
    return [spectral.symmetric(found.vectors * np.sqrt(mean * found.inverses(matrices.rank)))]
