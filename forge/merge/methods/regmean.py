"""RegMean: the linear layer whose outputs are nearest to those of all models on their own inputs.

    W = (Σ w·W_i Ĝ_i) (Σ w·Ĝ_i)^(-1),    Ĝ_i = α G_i + (1-α) diag(G_i),    G_i = mean of x xᵀ

W minimises Σ w |W x - W_i x|² over the inputs x that layer i read, which `forge calibrate
--statistics regmean` sums up; α (`alpha`) shrinks what lies beside the diagonal. A weight without
statistics (embeddings, norms, biases, head) becomes the mean Σ w·W_i / Σ w, and so does what an
input that was never active is multiplied with.

Reference: Jin et al. 2023, Dataless Knowledge Fusion, arXiv 2212.09849, eq. 2.
Differs: G_i is a mean over tokens instead of a sum, so that models count alike whatever they were
calibrated on; `weight` says otherwise. α is 1 - 1e-7 at most, because without shrinking fewer
tokens than inputs would leave W undetermined.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forge.core.errors import IncompatibleError
from forge.kernels.operands import Float64s, Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics

LARGEST_ALPHA = 1.0 - 1e-7


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, globally ``alpha``."""
    weights = np.array(call.of_models("weight"))
    inner = span.gram(operands).matrices[0]
    norms, cosines = span.norms_of(inner), span.cosines_of(inner)
    grams = [operands.companion(index) for index in range(len(weights))]
    if any(gram is None for gram in grams) or len(operands.shape) != 2:
        divisor = float(weights.sum())
        bad_inputs, bad_output = span.combine(operands, weights[None, :], divisor=divisor)
        return TensorStatistics(
            bad_inputs, bad_output, norms, cosines, fallback="mean: no statistics"
        )
    side = operands.shape[0 if call.transposed else 1]
    if any(gram is not None and gram.size != side * side for gram in grams):
        raise IncompatibleError(
            "the models' statistics say different things about which side of it reads. Collect "
            "them anew."
        )
    alpha = min(call.number("alpha"), LARGEST_ALPHA)
    squares = [gram.reshape(side, side).astype(np.float64) for gram in grams if gram is not None]
    values = [
        operands.values(index).astype(np.float64).reshape(operands.shape)
        for index in range(len(weights))
    ]
    values = [value.T if call.transposed else value for value in values]
    merged = _solved(values, squares, weights, alpha)
    merged = np.ascontiguousarray(merged.T if call.transposed else merged)
    bad_inputs = tuple(not bool(np.isfinite(value).all()) for value in values)
    extended = replace(operands, inputs=(merged,), dtypes=("F64",), has_base=False, companions=())
    _, bad_output = span.combine(extended, np.ones((1, 1)))
    return TensorStatistics(bad_inputs, bad_output, norms, cosines)


def _solved(
    values: list[Float64s], grams: list[Float64s], weights: Float64s, alpha: float
) -> Float64s:
    """Return (Σ w·W_i Ĝ_i)(Σ w·Ĝ_i)^(-1), [O, I].

    Solved for the difference to the mean of the models, and with inputs scaled to one size: the
    matrix is then α C + (1-α) 1 with the correlations C, so that (1-α) bounds its condition.
    """
    mean = np.sum([w * value for w, value in zip(weights, values, strict=True)], axis=0)
    mean /= weights.sum()
    sizes = np.sum(
        [weight * np.diagonal(gram) for weight, gram in zip(weights, grams, strict=True)], axis=0
    )
    scales = np.divide(1.0, np.sqrt(sizes, where=sizes > 0, out=np.ones_like(sizes)))
    scales[sizes <= 0] = 0.0
    total = np.diag((sizes <= 0).astype(np.float64))
    moved = np.zeros_like(mean)
    for weight, value, gram in zip(weights, values, grams, strict=True):
        shrunk = alpha * gram
        np.fill_diagonal(shrunk, np.diagonal(gram))
        shrunk *= weight * scales[:, None]
        moved += (value - mean) @ shrunk.T
        shrunk *= scales
        total += shrunk
    return np.asarray(mean + np.linalg.solve(total, moved.T).T * scales)
