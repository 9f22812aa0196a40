"""DELLA: drop at random, the small ones of a row more often, and sum.

    y = base + λ Σ w·δ·[u < p]/p,    p = density - ε + 2ε·rank/(C-1)

rank 0 is the smallest of the C magnitudes of a row (last axis). ``rescale`` divides by p (the
paper), restores the former L1 norm of the tensor (mergekit), or does nothing.

Reference: Deep et al. 2024, DELLA-Merging, arXiv 2406.11617.
Differs: among equal magnitudes the lowest column ranks highest; mergekit ranks it lowest.
"""

from __future__ import annotations

from forge.kernels.operands import Operands
from forge.merge import consensus, sparsify
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, ``density`` and ``epsilon``, globally ``rescale``."""
    kept = sparsify.drop_by_rank(
        operands,
        call.of_models("density"),
        call.of_models("epsilon"),
        call.streams,
        by_density=call.word("rescale") == "density",
    )
    return consensus.merge_task_vectors(operands, call, kept, elect=False)
