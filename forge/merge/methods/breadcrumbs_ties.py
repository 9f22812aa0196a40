"""Model Breadcrumbs with the sign election of TIES.

    y = base + λ Σ_agreeing w·mid(δ, γ, density)

The ⌊γ·n⌋ greatest magnitudes of a tensor are dropped and the next ⌊density·n⌋ kept.

Reference: Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795;
Yadav et al. 2023, TIES-Merging, arXiv 2306.01708.
"""

from __future__ import annotations

from forge.kernels.operands import Operands
from forge.merge import consensus, sparsify
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, ``density`` and ``gamma``."""
    kept = sparsify.keep_middle(operands, call.of_models("density"), call.of_models("gamma"))
    return consensus.merge_task_vectors(operands, call, kept, elect=True)
