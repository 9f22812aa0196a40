"""Barycentre of many models on the sphere, in one tangent step.

    u = x/(|x| + eps),    m = Σ W·u,    y = m/|m| · Σ W·|x|        (of δ, + base, with a base)

W are the weights, divided by their sum with ``normalize_weights``. The tangent step about m is
Σ W (u - ⟨u, m⟩m/|m|²), which vanishes for the weighted mean itself, so the barycentre is the
normalised mean; eps enters mergekit's step length as cos(eps), and here too. One model is
returned as it is. Two models whose mean vanishes are combined linearly, and so is a tensor that is
zero in all of them (that no fine-tune changed).

Reference: Buss and Fillmore 2001, Spherical averages; mergekit documentation, Multi-SLERP.
"""

from __future__ import annotations

import math

import numpy as np

from forge.core.errors import IncompatibleError
from forge.kernels.operands import Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, globally ``normalize_weights`` and ``eps``."""
    weights = np.array(call.of_models("weight"))
    eps = call.number("eps")
    if call.flag("normalize_weights"):
        weights = weights / weights.sum()
    count = len(weights)
    inner = span.gram(operands).matrices[0]
    norms = np.array(span.norms_of(inner))
    fallback = None
    if count == 1:
        coefficients = np.ones(1)
    else:
        directions = weights / (norms + eps)
        mean = math.sqrt(max(float(directions @ inner @ directions), 0.0))
        if mean >= eps and mean > 0:
            coefficients = math.cos(eps) * float(weights @ norms) / mean * directions
        elif not norms.any():
            coefficients = weights
            fallback = "linear: nothing to merge"
        elif count == 2:
            coefficients = weights
            fallback = "linear: the models cancel"
        else:
            raise IncompatibleError(
                "the weighted directions of the models cancel, so they have no barycentre; "
                "change the weights or use 'linear'"
            )
    bad_inputs, bad_output = span.combine(operands, coefficients[None, :])
    return TensorStatistics(
        bad_inputs,
        bad_output,
        norms=tuple(float(norm) for norm in norms),
        cosines=span.cosines_of(inner),
        fallback=fallback,
    )
