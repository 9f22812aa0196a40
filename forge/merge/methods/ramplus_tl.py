"""Reinforced agent merging with rescaling, tensor by tensor.

As ``ram``, with the unique parts of model i multiplied by 1 + r·clip(ρ, 0, alpha), where
ρ = shared/unique counts its active elements in this tensor.

Reference: Reinforced Agent Merging, arXiv 2601.13572 (RAM+; the ratio taken for each tensor).
"""

from __future__ import annotations

from dataclasses import replace

from forge.kernels.operands import Operands
from forge.merge import reinforced
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; globally ``epsilon``, ``r`` and ``alpha``."""
    epsilon = call.number("epsilon")
    unique, shared = reinforced.overlap(operands, epsilon)
    factors = [
        1.0 + call.number("r") * min(max(many / one, 0.0), call.number("alpha")) if one else 1.0
        for one, many in zip(unique, shared, strict=True)
    ]
    statistics = reinforced.merge(operands, epsilon, factors)
    numel = max(operands.numel, 1)
    return replace(statistics, kept_shares=tuple(one / numel for one in unique))
