"""TIES: trim each task vector to its greatest magnitudes, elect a sign, merge the agreeing.

    y = base + λ Σ_agreeing w·top(δ, density) / Σ_agreeing w

k = max(1, ⌊density·n⌋) elements of each tensor are kept, exactly; among equal magnitudes the
lowest index wins.

Reference: Yadav et al. 2023, TIES-Merging, arXiv 2306.01708.
Differs: the paper trims whole models, mergekit and forge trim tensor by tensor.
"""

from __future__ import annotations

from forge.kernels.operands import Operands
from forge.merge import consensus, sparsify
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight`` and ``density``."""
    kept = sparsify.keep_largest(operands, call.of_models("density"))
    return consensus.merge_task_vectors(operands, call, kept, elect=True)
