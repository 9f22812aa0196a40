"""Fisher merging: a mean in which each model counts by how much its likelihood hangs on a weight.

    y = Σ w·F_i·x_i / Σ w·F_i

F_i is the diagonal of model i's Fisher information, which `forge calibrate --statistics fisher`
collects. Where it is 0 in all models, and for tensors without statistics, y = Σ w·x_i / Σ w.

Reference: Matena and Raffel 2022, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from forge.kernels.operands import CHUNK, Operands
from forge.merge import span
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``."""
    weights = np.array(call.of_models("weight"))
    divisor = float(weights.sum())
    gram = span.gram(operands)
    norms, cosines = span.norms_of(gram.matrices[0]), span.cosines_of(gram.matrices[0])
    companions = [operands.companion(index) for index in range(len(weights))]
    if any(each is None for each in companions):
        bad_inputs, bad_output = span.combine(operands, weights[None, :], divisor=divisor)
        return TensorStatistics(
            bad_inputs, bad_output, norms, cosines, fallback="mean: no statistics"
        )
    is_bad = False
    num_flat = 0
    for start in range(0, operands.numel, CHUNK):
        count = min(CHUNK, operands.numel - start)
        values = [operands.values(i, start, count).astype(np.float64) for i in range(len(weights))]
        parts = [
            weight * each[start : start + count].astype(np.float64)
            for weight, each in zip(weights, companions, strict=True)
            if each is not None
        ]
        total = np.sum(parts, axis=0)
        is_there = total > 0
        num_flat += count - int(np.count_nonzero(is_there))
        mean = (
            np.sum([w * value for w, value in zip(weights, values, strict=True)], axis=0) / divisor
        )
        summed = np.sum([part * value for part, value in zip(parts, values, strict=True)], axis=0)
        merged = np.divide(summed, total, out=mean, where=is_there)
        piece = replace(
            operands,
            inputs=(merged,),
            dtypes=("F64",),
            has_base=False,
            shape=(count,),
            companions=(),
            emit=_shifted(operands, start),
        )
        _, found = span.combine(piece, np.ones((1, 1)))
        is_bad |= found
    return TensorStatistics(
        gram.bad_inputs,
        is_bad,
        norms,
        cosines,
        notes={"flat_share": num_flat / max(operands.numel, 1)},
    )


def _shifted(operands: Operands, start: int) -> Callable[[int, memoryview], None]:
    """Return what receives a piece that begins at an element."""
    first = start * operands.out_itemsize
    return lambda offset, data: operands.emit(first + offset, data)
