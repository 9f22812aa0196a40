"""The loops of SCE: select by variance, calculate weights by energy, erase minority signs.

The variance over M models is taken as Σ over pairs (δ_i - δ_j)², which is M² times the variance:
it orders the positions alike and is exactly zero where the models agree. Imported only to compile.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.layout import BLOCK
from forge.kernels.cpu.memory import inlined, read_block, wide, write_block
from forge.kernels.cpu.reductions import dot, quick_dot
from forge.kernels.cpu.selection import count_targets, keep_inside


@inlined
def _read(inputs, readers, position, size, counts, at, work):
    """Read a block as task vectors in rows 8…; note what is not finite from ``counts[at]``."""
    base = work[0]
    counts[at] |= read_block(readers[0], inputs[0], position, size, work, 0)
    for m in range(1, len(inputs)):
        counts[at + m] |= read_block(readers[m], inputs[m], position, size, work, 7 + m)
        x = work[7 + m]
        for i in range(size):
            x[i] -= base[i]


@inlined
def _spread(num_models, size, work):
    """Put Σ over pairs (δ_i - δ_j)² into row 1."""
    spread = work[1]
    for i in range(size):
        spread[i] = 0
    for m in range(num_models):
        for other in range(m):
            x = work[8 + m]
            y = work[8 + other]
            for i in range(size):
                gap = x[i] - y[i]
                spread[i] += gap * gap
    return spread


@inlined
def _select(size, num_models, counts, work):
    """Zero the task vectors outside the bound in ``counts[:3]`` (bits, quota, equals passed)."""
    bits = counts[0]
    if bits < 0:
        return
    spread = _spread(num_models, size, work)
    zero = spread.dtype.type(0)
    counts[2], _ = keep_inside(spread, size, bits, counts[1], counts[2])
    for m in range(num_models):
        x = work[8 + m]
        for i in range(size):
            # Only positions where the models differ are ever selected.
            x[i] = x[i] if spread[i] != zero else zero


def digits(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Count one digit of the spreads; counts: the digit layout. stats[0]: positions that differ."""
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        read_block(readers[0], inputs[0], start + offset, size, work, 0)
        base = work[0]
        for m in range(1, len(inputs)):
            read_block(readers[m], inputs[m], start + offset, size, work, 7 + m)
            x = work[7 + m]
            for i in range(size):
                x[i] -= base[i]
        spread = _spread(len(inputs) - 1, size, work)
        differing = np.int32(0)
        for i in range(size):
            differing += np.int32(spread[i] != 0)
        stats[0] += differing
        count_targets(spread, size, 0, counts)


def energies(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Add Σδ′² of each model to stats; counts: bound (bits, quota, 0), then not finite flags."""
    num_models = len(inputs) - 1
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        position = start + offset
        _read(inputs, readers, position, size, counts, 3, work)
        _select(size, num_models, counts, work)
        for m in range(num_models):
            stats[m] += dot(work[8 + m], work[8 + m], size)


def merge(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write base + Σ_agreeing e·δ′ / Σ_agreeing e; the sign elected is that of Σδ′.

    params: e of each model. counts: bound (bits, quota, 0), not finite flags of inputs and result,
    positions with a sign conflict. stats: lower triangle of the Gram matrix of δ′.
    """
    num_models = len(inputs) - 1
    base = work[0]
    elected = wide(work, 2)
    total = wide(work, 4)
    divisor = wide(work, 6)
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        position = start + offset
        _read(inputs, readers, position, size, counts, 3, work)
        _select(size, num_models, counts, work)
        pair = 0
        for i in range(size):
            elected[i] = 0.0
            total[i] = 0.0
            divisor[i] = 0.0
        for m in range(num_models):
            x = work[8 + m]
            for other in range(m + 1):
                stats[pair] += quick_dot(x, work[8 + other], size)
                pair += 1
            for i in range(size):
                elected[i] += np.float64(x[i])
        opposed = np.int32(0)
        for m in range(num_models):
            x = work[8 + m]
            energy = params[m]
            for i in range(size):
                value = np.float64(x[i])
                signed = value if elected[i] >= 0.0 else -value
                total[i] += energy * value if signed > 0.0 else 0.0
                divisor[i] += energy if signed > 0.0 else 0.0
                opposed += np.int32(signed < 0.0)
        counts[4 + len(inputs)] += opposed
        for i in range(size):
            total[i] = np.float64(base[i]) + total[i] / (divisor[i] if divisor[i] != 0.0 else 1.0)
        counts[3 + len(inputs)] |= write_block(writer, output, offset, size, work, 4)
