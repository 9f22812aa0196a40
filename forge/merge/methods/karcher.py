"""Karcher (Riemannian) mean of the models on the sphere, with equal weights.

    m <- exp_m( mean of log_m(u) )  until the step is shorter than tol or max_iter is reached,
    y = m · mean of |x|,    u = x/|x|

Every iterate is a combination of the u, so the iteration runs on their Gram matrix. Models
whose norm is at most tol have no direction; they count in the mean norm only.

Reference: Karcher 1977; Functionality-Oriented LLM Merging on the Fisher-Rao Manifold,
arXiv 2603.04972.
"""

from __future__ import annotations

import math

import numpy as np

from forge.kernels.operands import Float64s, Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; globally ``max_iter`` and ``tol``."""
    tol = call.number("tol")
    inner = span.gram(operands).matrices[0]
    norms = np.array(span.norms_of(inner))
    directed = np.flatnonzero(norms > tol)
    coefficients = np.zeros(len(norms))
    steps = 0
    if len(norms) == 1:
        coefficients[:] = 1.0
    elif len(directed):
        lengths = norms[directed]
        cosines = inner[np.ix_(directed, directed)] / np.outer(lengths, lengths)
        mean, steps = _mean_direction(cosines, int(call.number("max_iter")), tol)
        coefficients[directed] = mean / lengths * norms.mean()
    bad_inputs, bad_output = span.combine(operands, coefficients[None, :])
    return TensorStatistics(
        bad_inputs,
        bad_output,
        norms=tuple(float(norm) for norm in norms),
        cosines=span.cosines_of(inner),
        notes={"iterations": float(steps)},
    )


def _mean_direction(cosines: Float64s, max_iter: int, tol: float) -> tuple[Float64s, int]:
    """Iterate in coordinates of the unit vectors.

    Args:
        cosines: float64[K, K], their Gram matrix.
        max_iter: Most steps.
        tol: Length of the step that ends the iteration.

    Returns:
        Coordinates of the mean direction, and the number of steps taken.
    """
    count = len(cosines)
    mean = np.full(count, 1.0 / count)
    length = _length(mean, cosines)
    mean = np.eye(count)[0] if length < tol else mean / length
    for step in range(max_iter):
        along = np.clip(cosines @ mean, -1.0, 1.0)
        angles = np.arccos(along)
        sines = np.sin(angles)
        # A vector at the mean, or opposite to it, has no direction of its own.
        ratios = np.divide(angles, sines, out=np.zeros(count), where=sines > 1e-15) / count
        tangent = ratios - (ratios @ along) * mean
        length = _length(tangent, cosines)
        if length < tol:
            return mean, step
        mean = math.cos(length) * mean + math.sin(length) / length * tangent
    return mean, max_iter


def _length(coordinates: Float64s, cosines: Float64s) -> float:
    return math.sqrt(max(float(coordinates @ cosines @ coordinates), 0.0))
