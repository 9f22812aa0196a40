"""Task arithmetic: add scaled task vectors to the base.

    y = base + λ Σ w·δ            (/ Σ w with ``normalize``)

Reference: Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089.
"""

from __future__ import annotations

from forge.kernels.operands import Operands
from forge.merge import consensus
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, globally ``normalize`` and ``lambda``."""
    dense = [consensus.Sparsity()] * operands.num_models
    return consensus.merge_task_vectors(operands, call, dense, elect=False)
