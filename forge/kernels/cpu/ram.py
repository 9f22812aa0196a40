"""The loops of reinforced agent merging. Imported only to compile."""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.layout import BLOCK
from forge.kernels.cpu.memory import inlined, read_block, wide, write_block
from forge.kernels.cpu.reductions import quick_dot


@inlined
def _read(inputs, readers, position, size, epsilon, counts, work):
    """Read a block, zero the inactive parts of the task vectors, count the active ones in row 1."""
    base = work[0]
    active = work[1]
    zero = base.dtype.type(0)
    one = base.dtype.type(1)
    counts[0] |= read_block(readers[0], inputs[0], position, size, work, 0)
    for i in range(size):
        active[i] = zero
    for m in range(1, len(inputs)):
        counts[m] |= read_block(readers[m], inputs[m], position, size, work, 3 + m)
        x = work[3 + m]
        for i in range(size):
            delta = x[i] - base[i]
            is_active = np.float64(abs(delta)) > epsilon
            x[i] = delta if is_active else zero
            active[i] += one if is_active else zero


def overlap(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Count the unique and the shared active elements of each model.

    params: epsilon. counts: not finite in each input, then unique and shared of each model.
    """
    epsilon = params[0]
    num_inputs = len(inputs)
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        _read(inputs, readers, start + offset, size, epsilon, counts, work)
        active = work[1]
        for m in range(1, num_inputs):
            x = work[3 + m]
            unique = np.int32(0)
            shared = np.int32(0)
            for i in range(size):
                unique += np.int32((x[i] != 0) & (active[i] == 1))
                shared += np.int32((x[i] != 0) & (active[i] > 1))
            counts[num_inputs + 2 * (m - 1)] += unique
            counts[num_inputs + 2 * (m - 1) + 1] += shared


def merge(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write base + the unique parts (times their factor) + the mean of the shared parts.

    params: epsilon, then a factor of the unique parts of each model. stats: Σδ′² of each model.
    counts: not finite in each input, then in the result.
    """
    epsilon = params[0]
    base = work[0]
    active = work[1]
    total = wide(work, 2)
    num_inputs = len(inputs)
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        _read(inputs, readers, start + offset, size, epsilon, counts, work)
        for i in range(size):
            total[i] = 0.0
        for m in range(1, num_inputs):
            x = work[3 + m]
            factor = params[m]
            stats[m - 1] += quick_dot(x, x, size)
            for i in range(size):
                total[i] += np.float64(x[i]) * (factor if active[i] == 1 else 1.0)
        for i in range(size):
            shared = np.float64(active[i]) if active[i] > 1 else 1.0
            total[i] = np.float64(base[i]) + total[i] / shared
        counts[num_inputs] |= write_block(writer, output, offset, size, work, 2)
