"""DARE with the sign election of TIES.

    y = base + λ Σ_agreeing w·δ·[u < density]/density

u is uniform on [0, 1), drawn for each model, tensor and element from (seed, model, tensor name,
element index) alone. ``rescale`` divides by the density (the paper: the expectation stays), or
restores the former L1 norm of the tensor (mergekit), or does nothing.

Reference: Yu et al. 2024, Language models are super mario, arXiv 2311.03099;
Yadav et al. 2023, TIES-Merging, arXiv 2306.01708.
"""

from __future__ import annotations

from forge.kernels.operands import Operands
from forge.merge import consensus, sparsify
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight`` and ``density``, globally ``rescale``."""
    kept = sparsify.drop_at_random(
        call.of_models("density"), call.streams, by_density=call.word("rescale") == "density"
    )
    return consensus.merge_task_vectors(operands, call, kept, elect=True)
