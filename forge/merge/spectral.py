"""Singular vectors of task vectors without a singular value decomposition: the spectral methods.

Let D_i (L×r, r ≤ L) be the task vector of model i as a matrix, transposed where it is wide. All
that the spectral methods do to it is a product from the right, y = base + Σ D_i K_i with K_i r×r,
and every K_i follows from the inner products G_ij = D_iᵀ D_j. So one pass over the long side sums
the Gram matrices, the method works on r×r matrices in float64, and a second pass writes the result;
neither holds a second copy of a tall matrix. A symmetric eigenproblem in float64 costs a third of
a singular value decomposition in float32, and its singular values are good to about
√(r·2⁻⁵²) of the greatest: what lies below counts as zero.

Directions of singular value zero (of an adapter's task vector, say, or shared by two models)
have no direction of their own. LAPACK would return some orthonormal completion, which here is
left out: an orthogonal factor is the partial isometry on what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from forge.core.errors import IncompatibleError
from forge.kernels.operands import CHUNK, Float64s, Operands
from forge.merge import consensus, span
from forge.merge.contract import MethodCall, TensorStatistics

SAME_DIRECTION = 1e-10
"""Eigenvalue of a Gram matrix of unit vectors below which they count as dependent: 1e-5 radians."""

ROWS = 1024
"""Least length of a run along the long side: shorter products are bound by their r×r result."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values and right singular vectors.

    Attributes:
        values: float64[r], from the greatest to the least, exactly 0 where they are noise.
        vectors: float64[r, r], one column for each value, 0 for those that are 0.
    """

    values: Float64s
    vectors: Float64s

    def inverses(self, count: int) -> Float64s:
        """Return the reciprocals of the first ``count`` values, 0 for those that are 0."""
        values = self.values[:count]
        return np.divide(1.0, values, out=np.zeros(count), where=values > 0)


def spectrum(gram: Float64s, *, energy: float = 0.0) -> Spectrum:
    """Return singular values and right singular vectors of D from DᵀD.

    Args:
        gram: float64[r, r], symmetric.
        energy: Squared norm of that from which D was computed by subtraction, where it was.
    """
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    noise = max(float(squares[0]), energy) * len(gram) * np.finfo(np.float64).eps
    values = np.sqrt(np.where(squares > noise, squares, 0.0))
    return Spectrum(values, np.ascontiguousarray(vectors * (values > 0)))


def inverse_root(gram: Float64s) -> Float64s:
    """Return C^(-1/2) of a Gram matrix of unit vectors, on the directions that they span.

    U C^(-1/2) with C = UᵀU is the orthogonal matrix that is nearest to U (Procrustes).

    Args:
        gram: float64[k, k], with ones on its diagonal.
    """
    squares, vectors = np.linalg.eigh(gram)
    is_there = squares > SAME_DIRECTION
    fourth_roots = np.where(is_there, np.where(is_there, squares, 1.0) ** -0.25, 0.0)
    return symmetric(vectors * fourth_roots)


def symmetric(half: Float64s) -> Float64s:
    """Return H Hᵀ, which BLAS computes at half the price of a product of two matrices."""
    return np.asarray(half @ half.T)


class TaskMatrices:
    """The weighted task vectors of one tensor, as matrices whose long side comes first.

    Args:
        operands: The base and the models; a tensor of two axes.
        weights: Factor of each model's task vector.
    """

    def __init__(self, operands: Operands, weights: Sequence[float]) -> None:
        self._operands = operands
        self._weights = tuple(weights)
        rows, columns = operands.shape
        self.is_wide = rows < columns
        self.rank, self._length = min(rows, columns), max(rows, columns)
        self._step = max(ROWS, CHUNK // self.rank)

    @property
    def count(self) -> int:
        """Number of models."""
        return len(self._weights)

    def grams(self) -> list[list[Float64s]]:
        """Return G_ij = D_iᵀ D_j, float64[r, r], for all i and j ≤ i.

        Memory: r² numbers for each of the N(N+1)/2 pairs.
        """
        found = [[np.zeros((self.rank,) * 2) for _ in range(i + 1)] for i in range(self.count)]
        for start in range(0, self._length, self._step):
            blocks = self._blocks(start)
            for i, left in enumerate(blocks):
                for j in range(i + 1):
                    found[i][j] += left.T @ blocks[j]
        return found

    def gram_of_sum(self) -> Float64s:
        """Return SᵀS of S = Σ D_i, float64[r, r]."""
        total = np.zeros((self.rank,) * 2)
        for start in range(0, self._length, self._step):
            block = np.sum(self._blocks(start), axis=0)
            total += block.T @ block
        return total

    def write(self, factors: Sequence[Float64s]) -> bool:
        """Write base + Σ D_i K_i, rounded once; return whether a result is NaN or Inf.

        Args:
            factors: K_i, float64[r, r]: one for each model, or one that holds for all.
        """

        def product(start: int) -> Float64s:
            blocks = self._blocks(start)
            if len(factors) == 1:
                return np.asarray(np.sum(blocks, axis=0) @ factors[0])
            terms = [block @ factor for block, factor in zip(blocks, factors, strict=True)]
            return np.asarray(np.sum(terms, axis=0))

        if not self.is_wide:
            return _add(self._operands, self._step, product)
        # The rows of the tensor are the columns of the product: it is held whole, once.
        whole = np.empty(self._operands.shape)
        for start in range(0, self._length, self._step):
            whole[:, start : start + self._step] = product(start).T
        rows = max(1, CHUNK // self._length)
        return _add(self._operands, rows, lambda start: whole[start : start + rows])

    def _blocks(self, start: int) -> list[Float64s]:
        """Return a run along the long side of every D_i, float64[≤ step, r]."""
        stop = min(start + self._step, self._length)
        base, *models = [self._block(i, start, stop) for i in range(self.count + 1)]
        return [
            weight * (model - base) for weight, model in zip(self._weights, models, strict=True)
        ]

    def _block(self, index: int, start: int, stop: int) -> Float64s:
        if self.is_wide:
            return self._operands.columns(index, start, stop).astype(np.float64).T
        count = (stop - start) * self.rank
        values = self._operands.values(index, start * self.rank, count)
        return values.astype(np.float64).reshape(-1, self.rank)


def _add(operands: Operands, step: int, product: Callable[[int], Float64s]) -> bool:
    """Write base + product, ``step`` rows at a time."""
    rows, width = operands.shape
    base = np.frombuffer(operands.inputs[0], np.uint8)
    read = len(base) // (rows * width) * width
    written = operands.out_itemsize * width
    is_bad = False
    for start in range(0, rows, step):
        added = np.ascontiguousarray(product(start))
        piece = replace(
            operands,
            inputs=(base[start * read : (start + len(added)) * read], added),
            dtypes=(operands.dtypes[0], "F64"),
            has_base=False,
            shape=added.shape,
            emit=lambda at, data, first=start * written: operands.emit(first + at, data),  # type: ignore[misc]
        )
        _, found = span.combine(piece, np.ones((1, 2)))
        is_bad |= found
    return is_bad


def merge_matrices(
    operands: Operands,
    call: MethodCall,
    factors: Callable[[TaskMatrices, dict[str, float]], Sequence[Float64s]],
    *,
    least: int = 1,
) -> TensorStatistics:
    """Merge one tensor by its singular vectors, or by the mean where it has no such structure.

    Args:
        operands: The base and the models.
        call: Needs ``weight`` of each model, and globally ``lambda`` and ``outside_layers``.
        factors: Computes K_i, without ``lambda``; may add numbers to the notes.
        least: Fewest directions that a matrix must have.

    Raises:
        IncompatibleError: Its values are too large to be squared.
    """
    weights = call.of_models("weight")
    inner = span.gram(operands)
    reason = _no_matrix(operands, call, inner.bad_inputs, least)
    if reason is not None:
        return _mean(operands, call, weights, reason)
    task_matrices = TaskMatrices(operands, weights)
    notes: dict[str, float] = {}
    scale = call.number("lambda")
    try:
        scaled = [scale * factor for factor in factors(task_matrices, notes)]
    except np.linalg.LinAlgError as error:
        raise IncompatibleError(
            f"its singular vectors cannot be computed ({error}): its values are too large to be "
            "squared in float64."
        ) from error
    bad_output = task_matrices.write(scaled)
    return TensorStatistics(
        inner.bad_inputs,
        bad_output,
        norms=span.norms_of(inner.matrices[0]),
        cosines=span.cosines_of(inner.matrices[0]),
        notes=notes,
    )


def _no_matrix(
    operands: Operands, call: MethodCall, bad_inputs: Sequence[bool], least: int
) -> str | None:
    """Say why a tensor has no singular vectors to merge by; ``None`` when it has."""
    if len(operands.shape) != 2:
        return "mean: no matrix"
    if call.depth is None and call.word("outside_layers") == "mean":
        return "mean: outside the layers"
    if min(operands.shape) < least:
        return "mean: fewer directions than models"
    return "mean: a NaN or an infinity" if any(bad_inputs) else None


def _mean(
    operands: Operands, call: MethodCall, weights: Sequence[float], reason: str
) -> TensorStatistics:
    """Write base + λ/N Σ w·δ."""
    plain = replace(
        call,
        values={"lambda": call.number("lambda") / operands.num_models, "normalize": False},
        models=tuple({"weight": weight} for weight in weights),
    )
    dense = [consensus.Sparsity()] * operands.num_models
    statistics = consensus.merge_task_vectors(operands, plain, dense, elect=False)
    return replace(statistics, fallback=reason)
