"""Weighted average of models (a model soup).

    y = Σ w·x / Σ w               (without ``normalize``: Σ w·x)

Reference: Wortsman et al. 2022, Model soups, arXiv 2203.05482.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.operands import Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, globally ``normalize``."""
    weights = np.array([call.of_models("weight")])
    total = float(weights.sum()) if call.flag("normalize") else 1.0
    bad_inputs, bad_output = span.combine(operands, weights, divisor=total)
    return TensorStatistics(bad_inputs, bad_output)
