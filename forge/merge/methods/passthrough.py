"""Copy a tensor, optionally scaled.

    y = scale·x

Reference: mergekit documentation, Passthrough.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.operands import Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``scale``."""
    scales = np.array([call.of_models("scale")])
    bad_inputs, bad_output = span.combine(operands, scales)
    return TensorStatistics(bad_inputs, bad_output)
