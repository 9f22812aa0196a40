"""Reinforced agent merging: unique changes are kept whole, shared ones averaged.

    y = base + δ where one model is active, base + mean of the active δ where several are

A model is active where |δ| > epsilon.

Reference: Reinforced Agent Merging, arXiv 2601.13572.
"""

from __future__ import annotations

from forge.kernels.operands import Operands
from forge.merge import reinforced
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; globally ``epsilon``."""
    return reinforced.merge(operands, call.number("epsilon"), [1.0] * operands.num_models)
