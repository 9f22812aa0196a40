"""Sum sparsified task vectors, with or without an elected sign: the body of eight methods.

    δ_m = x_m - base
    δ′_m = what a sparsifier keeps of δ_m, times its rescaling factor
    plain:    y = base + λ Σ w_m δ′_m                        (/ Σ w_m when normalized)
    elected:  y = base + λ Σ_agreeing w_m δ′_m               (/ Σ_agreeing w_m when normalized)

The elected sign of a position is that of Σ w_m δ′_m, + when the sum is 0; a model agrees when
its w_m δ′_m has that sign, and a zero never does (TIES-Merging, arXiv 2306.01708, §3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from forge.kernels.cpu.layout import (
    DENSE,
    KINDS,
    MOST_UNROLLED,
    PARAMS_HEAD,
    PARAMS_PER_MODEL,
    SETTINGS,
    WORK_HEAD,
)
from forge.kernels.operands import CHUNK, Float64s, Int64s, KernelPass, Operands
from forge.merge.contract import MethodCall, TensorStatistics, norms_and_cosines

if TYPE_CHECKING:
    import numpy.typing as npt

FillFactors = Callable[[int, int, "npt.NDArray[Any]"], None]
"""Writes one factor for each of ``count`` elements from ``start`` into an array."""


@dataclass(frozen=True, slots=True)
class Sparsity:
    """How one task vector is sparsified.

    Attributes:
        words: The settings of ``kernels/cpu/layout.py``: a code and its arguments.
        scale: Factor of what is kept, before any rescaling to the former L1 norm.
        fill: For ``SCALED``: computes the factors of whole rows.
    """

    words: tuple[int, ...] = (DENSE,)
    scale: float = 1.0
    fill: FillFactors | None = None


def merge_task_vectors(
    operands: Operands, call: MethodCall, sparsities: Sequence[Sparsity], *, elect: bool
) -> TensorStatistics:
    """Run the fused kernel over one tensor.

    Args:
        operands: The base and M models.
        call: Needs ``weight`` of each model, and globally ``normalize``, ``lambda`` and, when
            the method has it, ``rescale``.
        sparsities: One for each model.
        elect: Whether signs are elected.
    """
    num_models = operands.num_models
    weights = call.of_models("weight")
    factor = call.number("lambda")
    normalize = call.flag("normalize")
    if elect and num_models == 1:
        # A single model agrees with itself, so an election only cancels its weight.
        weights = [float(weights[0] != 0)] if normalize else weights
        elect = normalize = False
    elif normalize and not elect:
        total = sum(weights)
        factor /= total if abs(total) >= 1e-8 else 1.0
    params = np.zeros(PARAMS_HEAD + PARAMS_PER_MODEL * num_models)
    params[0] = factor
    params[PARAMS_HEAD::PARAMS_PER_MODEL] = weights
    params[PARAMS_HEAD + 1 :: PARAMS_PER_MODEL] = [sparsity.scale for sparsity in sparsities]
    counts = np.zeros(3 + (2 + SETTINGS) * num_models, np.int64)
    settings = counts[3 + 2 * num_models :].reshape(num_models, SETTINGS)
    for row, sparsity in zip(settings, sparsities, strict=True):
        row[: len(sparsity.words)] = sparsity.words

    run = _Passes(operands, sparsities)
    if call.values.get("rescale") == "l1":
        sums = np.zeros(2 * num_models)
        run.measure(sums, counts.copy())
        before, after = sums[:num_models], sums[num_models:]
        scales = np.divide(before, after, out=np.ones(num_models), where=after > 0)
        dense = settings[:, 0] == DENSE
        params[PARAMS_HEAD + 1 :: PARAMS_PER_MODEL] = np.where(dense, 1.0, scales)
    triangle = np.zeros(num_models * (num_models + 1) // 2)
    vote = "sum" if not elect else "mean" if normalize else "elect"
    run.write(vote, params, triangle, counts)

    numel = max(operands.numel, 1)
    norms, cosines = norms_and_cosines(triangle, num_models)
    kept = counts[3 + num_models : 3 + 2 * num_models]
    kept_shares = tuple(
        1.0 if words[0] == DENSE else float(count) / numel
        for words, count in zip(settings, kept, strict=True)
    )
    return TensorStatistics(
        bad_inputs=tuple(bool(flag) for flag in counts[: 1 + num_models]),
        bad_output=bool(counts[1 + num_models]),
        norms=norms,
        cosines=cosines,
        conflict_share=float(counts[2 + num_models]) / numel if num_models > 1 else None,
        kept_shares=kept_shares,
    )


class _Passes:
    """Runs kernels over a tensor, in chunks of whole rows when factors must be computed."""

    def __init__(self, operands: Operands, sparsities: Sequence[Sparsity]) -> None:
        self._operands = operands
        codes = {sparsity.words[0] for sparsity in sparsities} - {DENSE}
        self._kind = KINDS[max(codes, default=DENSE)]
        self._fills = [sparsity.fill for sparsity in sparsities if sparsity.fill is not None]
        width = max(operands.width, 1) if self._fills else 1
        self._chunk = max(1, CHUNK // width) * width
        size = min(self._chunk, operands.numel)
        real = np.dtype(operands.compute)
        self._factors = [
            operands.workspace.bytes(f"factors {m}", size * real.itemsize).view(real)
            for m in range(len(self._fills))
        ]
        dtype = "F64" if operands.compute == "float64" else "F32"
        self._num_models = operands.num_models
        self._extended = replace(
            operands,
            inputs=(*operands.inputs, *self._factors),
            dtypes=(*operands.dtypes, *[dtype] * len(self._fills)),
        )

    def measure(self, sums: Float64s, counts: Int64s) -> None:
        """Sum Σ|δ| and Σ|δ′| of each model."""
        run = self._plan(f"task_vectors.magnitudes_{self._kind}")
        for start, count in self._pieces():
            run.reduce(stats=sums, counts=counts, start=start, count=count, chunk=count)

    def write(self, vote: str, params: Float64s, triangle: Float64s, counts: Int64s) -> None:
        """Write the result."""
        run = self._plan(self._merge_kernel(vote, params))
        for start, count in self._pieces():
            run.write(
                params=params,
                stats=triangle,
                counts=counts,
                start=start,
                count=count,
                chunk=count,
            )

    def _merge_kernel(self, vote: str, params: Float64s) -> str:
        place = "stored" if self._operands.is_stored_whole else "rows"
        if self._num_models == 1:
            return f"pairs.merge_1_{self._kind}_{place}"
        if self._num_models == 2:
            first, second = params[PARAMS_HEAD:].reshape(2, PARAMS_PER_MODEL)
            is_even = vote != "sum" and first.min() > 0 and (first == second).all()
            weights = "even" if is_even else "uneven"
            return f"pairs.merge_2_{vote}_{weights}_{self._kind}_{place}"
        models = self._num_models if self._num_models <= MOST_UNROLLED else "any"
        return f"task_vectors.merge_{models}_{vote}_{self._kind}"

    def _plan(self, kernel: str) -> KernelPass:
        return self._extended.plan(kernel, rows=WORK_HEAD + self._num_models)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        """Yield pieces that are never cut again, because factors begin at their start."""
        for start in range(0, self._operands.numel, self._chunk):
            count = min(self._chunk, self._operands.numel - start)
            for fill, factors in zip(self._fills, self._factors, strict=True):
                fill(start, count, factors[:count])
            yield start, count
