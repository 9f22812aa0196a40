"""Arcee Fusion: take over the changes that matter, leave the rest.

    importance = |δ|·KL(softmax(model row) ‖ softmax(base row))
    y = model where importance ≥ median + 1.5·(Q3 - Q1), base elsewhere

Quartiles are order statistics of the tensor: positions ⌊(n-1)/2⌋, ⌊(n-1)/4⌋ and ⌊3(n-1)/4⌋ of
the ascending importances.

Reference: Arcee AI 2025, MergeKit v0.1 release notes.
"""

from __future__ import annotations

import math

import numpy as np

from forge.kernels.operands import CHUNK, Operands
from forge.kernels.selection import Target, order_statistics
from forge.merge.contract import MethodCall, TensorStatistics

OUTLIER = 1.5


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; takes no parameters. The operands are the base and one model."""
    del call
    numel = operands.numel
    if numel == 0:
        return TensorStatistics((False, False), bad_output=False)
    chunk = max(1, CHUNK // operands.width) * operands.width
    divergences = np.zeros(operands.num_rows)
    flags = np.zeros(2, np.int64)
    operands.plan("fusion.divergence", rows=2).reduce(stats=divergences, counts=flags, chunk=chunk)

    digits = operands.plan("fusion.digits", rows=3)
    ascending = [(numel - 1) // 2, int(0.25 * (numel - 1)), int(0.75 * (numel - 1))]
    statistics = order_statistics(
        [Target(0, numel - place) for place in ascending],
        compute=operands.compute,
        digit_pass=lambda counts, stats: digits.reduce(
            params=divergences, counts=counts, stats=stats
        ),
    )
    median, low, high = (_value(statistic.bits, operands.compute) for statistic in statistics)
    threshold = median + OUTLIER * (high - low)

    energy = np.zeros(1)
    counts = np.zeros(2, np.int64)
    operands.plan("fusion.merge", rows=5).write(
        params=np.append(divergences, threshold), stats=energy, counts=counts
    )
    return TensorStatistics(
        bad_inputs=(bool(flags[0]), bool(flags[1])),
        bad_output=bool(counts[0]),
        norms=(math.sqrt(energy[0]),),
        kept_shares=(float(counts[1]) / numel,),
        notes={"threshold": threshold},
    )


def _value(bits: int, compute: str) -> float:
    if compute == "float32":
        return float(np.uint32(bits).view(np.float32))
    return float(np.uint64(bits).view(np.float64))
