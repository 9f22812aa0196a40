"""Spherical linear interpolation between the base (t = 0) and another model (t = 1).

    y = sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b,    cos θ = ⟨a, b⟩ / |a||b|

over the flattened tensors. Where |cos θ| > 0.9995, or a norm is at most 1e-8, the sines carry no
information and y = (1-t)·a + t·b.

Reference: Shoemake 1985, Animating rotation with quaternion curves.
"""

from __future__ import annotations

import math

import numpy as np

from forge.kernels.operands import Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics

PARALLEL = 0.9995
SMALLEST_NORM = 1e-8


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; globally ``t``. The operands are the base and one model."""
    t = call.number("t")
    pair = operands.select([0, 1], has_base=False)
    inner = span.gram(pair).matrices[0]
    norms = span.norms_of(inner)
    # A vector too short to be normalised enters the cosine as it is.
    lengths = [norm if norm > SMALLEST_NORM else 1.0 for norm in norms]
    cosine = max(-1.0, min(1.0, float(inner[1, 0]) / (lengths[0] * lengths[1])))
    angle = math.acos(cosine)
    fallback = None
    if abs(cosine) > PARALLEL:
        coefficients = (1.0 - t, t)
        fallback = "linear: the models are parallel"
    else:
        coefficients = (
            math.sin((1.0 - t) * angle) / math.sin(angle),
            math.sin(t * angle) / math.sin(angle),
        )
    bad_inputs, bad_output = span.combine(pair, np.array([coefficients]))
    return TensorStatistics(
        bad_inputs,
        bad_output,
        norms=norms,
        cosines=(cosine,),
        angle_degrees=math.degrees(angle),
        fallback=fallback,
        notes={"t": t},
    )
