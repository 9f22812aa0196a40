"""Slerp whose position follows from two weights, of models or of their task vectors.

    t = w1/(w0 + w1)  (0.5 when the weights cancel),    y = slerp(t, a, b)
    with a base:      y = base + slerp(t, δa, δb)

over the flattened tensor, or vector by vector (``nuslerp_flatten: false``): along the last axis
each, or along the first with ``nuslerp_row_wise: true``. Linear only where |sin θ| < 1e-8.

Reference: Shoemake 1985; mergekit documentation, NuSLERP.
Differs: mergekit's documentation swaps the words row and column; this is what it computes.
"""

from __future__ import annotations

import math

import numpy as np

from forge.kernels.operands import Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics

SMALLEST_NORM = 1e-7
SMALLEST_WEIGHT = 1e-6
SMALLEST_SINE = 1e-8


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, globally the two flags."""
    first, second = call.of_models("weight")
    t = second / (first + second) if abs(first + second) >= SMALLEST_WEIGHT else 0.5
    axis: span.Axis = "tensor"
    if not call.flag("nuslerp_flatten") and len(operands.shape) > 1:
        axis = "columns" if call.flag("nuslerp_row_wise") else "rows"
    gram = span.gram(operands, axis)
    inner = gram.matrices
    norms = np.sqrt(np.maximum(np.diagonal(inner, axis1=1, axis2=2), 0.0))
    lengths = np.maximum(norms, SMALLEST_NORM)
    cosines = np.clip(inner[:, 1, 0] / (lengths[:, 0] * lengths[:, 1]), -1.0, 1.0)
    angles = np.arccos(cosines)
    sines = np.sin(angles)
    is_linear = np.abs(sines) < SMALLEST_SINE
    divisors = np.where(is_linear, 1.0, sines)
    coefficients = np.stack(
        [
            np.where(is_linear, 1.0 - t, np.sin((1.0 - t) * angles) / divisors),
            np.where(is_linear, t, np.sin(t * angles) / divisors),
        ],
        axis=1,
    )
    bad_inputs, bad_output = span.combine(operands, coefficients, axis)
    return TensorStatistics(
        bad_inputs,
        bad_output,
        norms=tuple(float(value) for value in np.sqrt(np.square(norms).sum(axis=0))),
        cosines=(float(cosines.mean()),) if len(cosines) else (),
        angle_degrees=math.degrees(float(angles.mean())) if len(angles) else None,
        fallback="linear: no angle" if bool(is_linear.any()) else None,
        notes={"t": t},
    )
