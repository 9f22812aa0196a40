"""Model Stock: as far from the base as the angle between the fine-tunes allows.

    t = N cos θ / (1 + (N-1) cos θ),    y = t·mean(x) + (1-t)·base = base + t·mean(δ)

cos θ is the mean cosine of all pairs of task vectors, of the tensor or of each row
(``filter_wise``). t = 0 where the denominator is below 1e-6.

Reference: Jang et al. 2024, Model Stock, arXiv 2403.19522, eq. 7.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.operands import Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics

SMALLEST = 1e-6


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; globally ``filter_wise``."""
    axis: span.Axis = "rows" if call.flag("filter_wise") and len(operands.shape) > 1 else "tensor"
    inner = span.gram(operands, axis).matrices
    count = operands.num_models
    norms = np.sqrt(np.maximum(np.diagonal(inner, axis1=1, axis2=2), 0.0))
    below, beside = np.tril_indices(count, -1)
    products = np.maximum(norms[:, below] * norms[:, beside], SMALLEST)
    cosines = (inner[:, below, beside] / products).mean(axis=1)
    denominators = 1.0 + (count - 1) * cosines
    is_open = np.abs(denominators) >= SMALLEST
    ratios = np.divide(count * cosines, denominators, out=np.zeros_like(cosines), where=is_open)
    coefficients = np.repeat(ratios[:, None] / count, count, axis=1)
    bad_inputs, bad_output = span.combine(operands, coefficients, axis)
    whole = inner.sum(axis=0)
    return TensorStatistics(
        bad_inputs,
        bad_output,
        norms=span.norms_of(whole),
        cosines=span.cosines_of(whole),
        notes={"t": float(ratios.mean()) if len(ratios) else 0.0},
    )
