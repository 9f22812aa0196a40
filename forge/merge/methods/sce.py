"""SCE: select positions by variance, calculate weights by energy, erase minority signs.

    keep the ⌊select_topk·(positions where the models differ)⌋ positions of greatest variance
    e = mean δ′² / Σ mean δ′²
    y = base + Σ_agreeing e·δ′ / Σ_agreeing e

The elected sign is that of the unweighted Σ δ′, + when it is 0.

Reference: Wan et al. 2024, FuseChat, arXiv 2408.07990, §3.3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forge.kernels.operands import Operands
from forge.kernels.selection import ALL, NOTHING, Bound, Target, order_statistics
from forge.merge.contract import MethodCall, TensorStatistics, norms_and_cosines


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; globally ``select_topk``."""
    count = operands.num_models
    numel = max(operands.numel, 1)
    rows = 8 + count
    bound, kept_share = _select(operands, call.number("select_topk"), rows)
    # ALL needs no comparison at all: -1 tells the kernels so.
    head = (-1, 0) if bound == ALL else (bound.bits, bound.quota)

    energies = np.zeros(count)
    counts = np.zeros(3 + len(operands.inputs), np.int64)
    counts[:2] = head
    operands.plan("sce.energies", rows=rows).reduce(stats=energies, counts=counts)
    total = float(energies.sum())
    weights = energies / total if total > 0 else np.ones(count)

    triangle = np.zeros(count * (count + 1) // 2)
    counts = np.zeros(5 + len(operands.inputs), np.int64)
    counts[:2] = head
    operands.plan("sce.merge", rows=rows).write(params=weights, stats=triangle, counts=counts)
    norms, cosines = norms_and_cosines(triangle, count)
    statistics = TensorStatistics(
        bad_inputs=tuple(bool(flag) for flag in counts[3 : 3 + len(operands.inputs)]),
        bad_output=bool(counts[3 + len(operands.inputs)]),
        norms=norms,
        cosines=cosines,
        kept_shares=(kept_share,) * count,
        notes={f"energy_{m}": float(weight) for m, weight in enumerate(weights)},
    )
    conflicts = float(counts[4 + len(operands.inputs)]) / numel
    return replace(statistics, conflict_share=conflicts if count > 1 else None)


def _select(operands: Operands, topk: float, rows: int) -> tuple[Bound, float]:
    """Bound the positions of greatest variance; also return the share of positions kept."""
    if topk >= 1:
        return ALL, 1.0
    digits = operands.plan("sce.digits", rows=rows)
    first = np.zeros(1)
    # A pass without targets only counts the positions where the models differ.
    digits.reduce(counts=np.zeros(2, np.int64), stats=first)
    rank = int(np.float32(topk) * np.float32(first[0]))
    if rank == 0:
        return NOTHING, 0.0
    [statistic] = order_statistics(
        [Target(0, rank)],
        compute=operands.compute,
        digit_pass=lambda counts, stats: digits.reduce(counts=counts, stats=stats),
    )
    return Bound(statistic.bits, statistic.ordinal), rank / max(operands.numel, 1)
