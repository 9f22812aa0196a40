"""Inner products and combinations of the inputs: the body of the geometric methods.

Everything is decided on Gram matrices in float64; see ``kernels/cpu/spans.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from forge.kernels.cpu.layout import MOST_UNROLLED
from forge.kernels.operands import CHUNK, Float64s, Operands

Axis = Literal["tensor", "rows", "columns"]


def _gram_kernel(operands: Operands, axis: Axis) -> str:
    if axis != "tensor":
        return f"spans.gram_{axis}"
    if operands.num_models != 2:
        return "spans.gram_any"
    in_place = operands.are_stored and not operands.has_base
    return "spans.gram_2_stored" if in_place else "spans.gram_2"


def _combine_kernel(operands: Operands, axis: Axis) -> str:
    num_models = operands.num_models
    if axis != "tensor":
        return f"spans.combine_{axis}"
    if num_models in (2, 3) and operands.is_stored_whole and not operands.has_base:
        return f"spans.combine_{num_models}_stored"
    return f"spans.combine_{num_models if num_models <= MOST_UNROLLED else 'any'}"


@dataclass(frozen=True, slots=True)
class Gram:
    """Inner products of the models (of the task vectors, when there is a base).

    Attributes:
        matrices: float64[V, M, M], one matrix for each of V vectors: 1 for the whole tensor, else
            the number of rows or columns.
        bad_inputs: Whether each input, the base first, holds a NaN or Inf.
    """

    matrices: Float64s
    bad_inputs: tuple[bool, ...]


def _width(operands: Operands, axis: Axis) -> int:
    if axis == "columns":
        return operands.numel // max(operands.shape[0], 1)
    return operands.width


def _chunk(operands: Operands, axis: Axis) -> int:
    if axis == "tensor":
        return CHUNK
    width = max(_width(operands, axis), 1)
    return max(1, CHUNK // width) * width


def gram(operands: Operands, axis: Axis = "tensor") -> Gram:
    """Sum the inner products of all pairs of models in one pass.

    Args:
        operands: The models, and the base when task vectors are meant.
        axis: What counts as a vector: the tensor, a row (last axis) or a column (first axis).
    """
    count = operands.num_models
    num_pairs = count * (count + 1) // 2
    num_vectors = {"tensor": 1, "rows": operands.num_rows, "columns": _width(operands, axis)}[axis]
    stats = np.zeros(num_pairs * num_vectors)
    counts = np.zeros(len(operands.inputs), np.int64)
    run = operands.plan(
        _gram_kernel(operands, axis), rows=len(operands.inputs), width=_width(operands, axis)
    )
    run.reduce(stats=stats, counts=counts, chunk=_chunk(operands, axis))
    order = (num_pairs, num_vectors) if axis == "columns" else (num_vectors, num_pairs)
    triangles = stats.reshape(order)
    if axis == "columns":
        triangles = triangles.T
    matrices = np.zeros((num_vectors, count, count))
    below, beside = np.tril_indices(count)
    matrices[:, below, beside] = triangles
    matrices[:, beside, below] = triangles
    return Gram(matrices, tuple(bool(flag) for flag in counts))


def combine(
    operands: Operands,
    coefficients: Float64s,
    axis: Axis = "tensor",
    *,
    divisor: float = 1.0,
) -> tuple[tuple[bool, ...], bool]:
    """Write Σ c·x / d, or base + Σ c·δ / d when there is a base.

    Args:
        operands: As for ``gram``.
        coefficients: float64[V, M], one row for each vector along ``axis``.
        axis: What counts as a vector.
        divisor: d, for whole tensors only.

    Returns:
        Whether each input and whether the result holds a NaN or Inf.
    """
    params = np.ascontiguousarray(coefficients.T if axis == "columns" else coefficients)
    params = np.append(params.reshape(-1), divisor)
    counts = np.zeros(len(operands.inputs) + 1, np.int64)
    run = operands.plan(
        _combine_kernel(operands, axis),
        rows=len(operands.inputs) + 2,
        width=_width(operands, axis),
    )
    run.write(
        params=params,
        counts=counts,
        chunk=_chunk(operands, axis),
    )
    return tuple(bool(flag) for flag in counts[:-1]), bool(counts[-1])


def norms_of(matrix: Float64s) -> tuple[float, ...]:
    """Return the norms of the vectors behind one Gram matrix."""
    return tuple(math.sqrt(max(float(square), 0.0)) for square in np.diag(matrix))


def cosines_of(matrix: Float64s) -> tuple[float, ...]:
    """Return the cosines of the pairs (1,0), (2,0), (2,1), …; 0 with a zero vector."""
    norms = norms_of(matrix)
    return tuple(
        max(-1.0, min(1.0, float(matrix[m, other]) / (norms[m] * norms[other])))
        if norms[m] * norms[other] > 0
        else 0.0
        for m in range(len(norms))
        for other in range(m)
    )
