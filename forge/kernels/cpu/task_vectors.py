"""The fused loop of the task-arithmetic family: subtract, sparsify, elect, sum, add, round.

One kernel serves task_arithmetic, ties, dare, breadcrumbs and della: they differ in how a task
vector is sparsified (a code of ``layout.py`` for each model) and in whether signs are elected.
The diagnostics of a merge (norms, cosines, conflicts, share kept) are summed on the way,
because the task vectors are in the cache there and nowhere else.

Imported only to compile.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.layout import (
    BAND,
    BASE,
    DIVISOR,
    DROP,
    ELECTED,
    PARAMS_HEAD,
    PARAMS_PER_MODEL,
    SCALED,
    SETTINGS,
    TOTAL,
    WORDS,
    WORK_HEAD,
)
from forge.kernels.cpu.memory import inlined, read_block, wide, write_block
from forge.kernels.cpu.native import BLOCK
from forge.kernels.cpu.philox import fill
from forge.kernels.cpu.reductions import absolute_sum, quick_dot
from forge.kernels.cpu.selection import drop_inside, keep_inside


@inlined
def _sparsify(x, y, size, position, counts, at, words):
    """Zero what the settings at ``counts[at:]`` drop and return how many elements are left."""
    mode = counts[at]
    zero = x.dtype.type(0)
    kept = np.int32(0)
    if mode == DROP:
        fill(words, counts[at + 1], counts[at + 2], position, size)
        # Word < threshold, where the threshold may be 2**32; 0 is never asked for.
        last = np.uint32(counts[at + 3] - 1)
        for i in range(size):
            keep = words[i] <= last
            x[i] = x[i] if keep else zero
            kept += np.int32(keep)
        return kept
    if mode == BAND:
        if counts[at + 1] >= 0:
            keep_inside(x, size, position, counts[at + 1], counts[at + 2])
        if counts[at + 3] >= 0:
            drop_inside(x, size, position, counts[at + 3], counts[at + 4])
        return kept
    for i in range(size):
        x[i] *= y[i]
        kept += np.int32(y[i] != zero)
    return kept


@inlined
def _count_conflicts(work, num_models, size):
    """Count the positions where some task vector is positive and another negative."""
    least = work[TOTAL]
    greatest = work[DIVISOR]
    x = work[WORK_HEAD]
    for i in range(size):
        least[i] = x[i]
        greatest[i] = x[i]
    for m in range(1, num_models):
        x = work[WORK_HEAD + m]
        for i in range(size):
            value = x[i]
            least[i] = value if value < least[i] else least[i]
            greatest[i] = value if value > greatest[i] else greatest[i]
    conflicts = np.int32(0)
    for i in range(size):
        conflicts += np.int32((least[i] < 0) & (greatest[i] > 0))
    return conflicts


@inlined
def _elect(work, num_models, size, params):
    """Reduce ``total`` to the task vectors that agree with its sign; divide when asked to."""
    total = wide(work, TOTAL)
    divisor = wide(work, DIVISOR)
    elected = wide(work, ELECTED)
    normalize = params[2] != 0.0
    for i in range(size):
        elected[i] = total[i]
        total[i] = 0.0
    if normalize:
        for i in range(size):
            divisor[i] = 0.0
    for m in range(num_models):
        x = work[WORK_HEAD + m]
        at = PARAMS_HEAD + PARAMS_PER_MODEL * m
        weight = params[at]
        factor = params[at] * params[at + 1]
        for i in range(size):
            value = factor * np.float64(x[i])
            agrees = (value if elected[i] >= 0.0 else -value) > 0.0
            total[i] += value if agrees else 0.0
        if normalize:
            for i in range(size):
                value = factor * np.float64(x[i])
                agrees = (value if elected[i] >= 0.0 else -value) > 0.0
                divisor[i] += weight if agrees else 0.0
    if normalize:
        for i in range(size):
            total[i] /= divisor[i] if divisor[i] != 0.0 else 1.0


def merge(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write base + λ Σ w·δ′ (with elected signs: Σ over the agreeing), or only sum magnitudes.

    inputs: the base, then M models, then for every model with ``SCALED`` an array of factors
    that begins at ``start``. params, counts, stats: see ``layout.py``. With ``output`` 0
    nothing is written; only Σ|δ| and Σ|δ′| are summed, which rescaling to the former L1 norm
    needs.
    """
    num_models = (len(counts) - 3) // (2 + SETTINGS)
    settings = 3 + 2 * num_models
    base = work[BASE]
    total = wide(work, TOTAL)
    words = work[WORDS].view(np.uint32)
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        position = start + offset
        counts[0] |= read_block(readers[0], inputs[0], position, size, work, BASE)
        for m in range(num_models):
            row = WORK_HEAD + m
            counts[1 + m] |= read_block(readers[1 + m], inputs[1 + m], position, size, work, row)
            x = work[row]
            for i in range(size):
                x[i] -= base[i]
        if output != 0:
            pair = 0
            for m in range(num_models):
                for other in range(m + 1):
                    stats[pair] += quick_dot(work[WORK_HEAD + m], work[WORK_HEAD + other], size)
                    pair += 1
            if num_models > 1:
                counts[2 + num_models] += _count_conflicts(work, num_models, size)
        for i in range(size):
            total[i] = 0.0
        scaled = num_models + 1
        for m in range(num_models):
            x = work[WORK_HEAD + m]
            at = settings + SETTINGS * m
            if output == 0:
                stats[m] += absolute_sum(x, size)
            if counts[at] == SCALED:
                read_block(readers[scaled], inputs[scaled], offset, size, work, WORDS)
                scaled += 1
            if counts[at] != 0:
                kept = _sparsify(x, work[WORDS], size, position, counts, at, words)
                counts[3 + num_models + m] += kept
            if output == 0:
                stats[num_models + m] += absolute_sum(x, size)
            at = PARAMS_HEAD + PARAMS_PER_MODEL * m
            factor = params[at] * params[at + 1]
            for i in range(size):
                total[i] += factor * np.float64(x[i])
        if output == 0:
            continue
        if params[1] != 0.0:
            _elect(work, num_models, size, params)
        for i in range(size):
            total[i] = np.float64(base[i]) + params[0] * total[i]
        counts[1 + num_models] |= write_block(writer, output, offset, size, work, TOTAL)
