"""The loop of nearswap. Imported only to compile."""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.layout import BLOCK
from forge.kernels.cpu.memory import read_block, wide, write_block
from forge.kernels.cpu.reductions import quick_dot


def merge(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write base + min(t/|δ|, 1)·δ, which is the other model wherever |δ| ≤ t.

    params: t ≥ 0. stats: Σδ². counts: not finite in base, model, result; elements taken whole.
    """
    t = params[0]
    base = work[0]
    other = work[1]
    delta = work[2]
    result = wide(work, 3)
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        counts[0] |= read_block(readers[0], inputs[0], start + offset, size, work, 0)
        counts[1] |= read_block(readers[1], inputs[1], start + offset, size, work, 1)
        whole = np.int32(0)
        for i in range(size):
            delta[i] = other[i] - base[i]
        stats[0] += quick_dot(delta, delta, size)
        for i in range(size):
            # Beyond t the step is t itself, with the sign of δ.
            step = t if delta[i] > 0 else -t
            near = abs(np.float64(delta[i])) <= t
            result[i] = np.float64(other[i]) if near else np.float64(base[i]) + step
            whole += np.int32(near)
        counts[3] += whole
        counts[2] |= write_block(writer, output, offset, size, work, 3)
