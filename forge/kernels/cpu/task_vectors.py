"""The fused loop of the task-arithmetic family: subtract, sparsify, elect, sum, add, round.

One kernel serves task_arithmetic, ties, dare, breadcrumbs and della: they differ in how a task
vector is sparsified (a code of ``layout.py`` for each model) and in whether signs are elected.
The diagnostics of a merge (norms, cosines, conflicts, share kept) are summed on the way,
because the task vectors are in the cache there and nowhere else.

The number of models is a constant of the compiled code for up to ``MOST_UNROLLED`` of them, so
that the loop over models is unrolled inside the loop over elements, and sums and votes stay in
registers: half the time of keeping them in rows. Larger merges use rows.

Imported only to compile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from forge.kernels.cpu.layout import (
    BAND,
    BASE,
    DIVISOR,
    DROP,
    ELECTED,
    MOST_UNROLLED,
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
            counts[at + 5] = keep_inside(x, size, counts[at + 1], counts[at + 2], counts[at + 5])
        if counts[at + 3] >= 0:
            counts[at + 6] = drop_inside(x, size, counts[at + 3], counts[at + 4], counts[at + 6])
        for i in range(size):
            kept += np.int32(x[i] != zero)
        return kept
    for i in range(size):
        x[i] *= y[i]
        kept += np.int32(y[i] != zero)
    return kept


@inlined
def _subtract_base(work, num_models, size):
    base = work[BASE]
    for m in range(num_models):
        x = work[WORK_HEAD + m]
        for i in range(size):
            x[i] -= base[i]


@inlined
def _diagnose_rows(work, num_models, size, stats):
    """Add the Gram matrix to stats and return the number of sign conflicts."""
    pair = 0
    for m in range(num_models):
        for other in range(m + 1):
            stats[pair] += quick_dot(work[WORK_HEAD + m], work[WORK_HEAD + other], size)
            pair += 1
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
def _combine_rows(work, num_models, size, params):
    """Put base + λ Σ w·δ′ into ``total``, with elected signs when asked to."""
    total = wide(work, TOTAL)
    divisor = wide(work, DIVISOR)
    elected = wide(work, ELECTED)
    base = work[BASE]
    for i in range(size):
        total[i] = 0.0
        divisor[i] = 0.0
    for m in range(num_models):
        x = work[WORK_HEAD + m]
        at = PARAMS_HEAD + PARAMS_PER_MODEL * m
        factor = params[at] * params[at + 1]
        for i in range(size):
            total[i] += factor * np.float64(x[i])
    if params[1] != 0.0:
        for i in range(size):
            elected[i] = total[i]
            total[i] = 0.0
        for m in range(num_models):
            x = work[WORK_HEAD + m]
            at = PARAMS_HEAD + PARAMS_PER_MODEL * m
            weight = params[at]
            factor = params[at] * params[at + 1]
            for i in range(size):
                value = factor * np.float64(x[i])
                agrees = (value if elected[i] >= 0.0 else -value) > 0.0
                total[i] += value if agrees else 0.0
                divisor[i] += weight if agrees else 0.0
        if params[2] != 0.0:
            for i in range(size):
                total[i] /= divisor[i] if divisor[i] != 0.0 else 1.0
    for i in range(size):
        total[i] = np.float64(base[i]) + params[0] * total[i]


def _unrolled_diagnosis(num_models: int) -> Callable[..., object]:
    # Sums may be reordered here: they are shown, not written.
    @njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
    def diagnose(rows, size, stats):
        zero = rows.dtype.type(0)
        conflicts = np.int32(0)
        if num_models == 1:
            square = zero
            for i in range(size):
                square += rows[0, i] * rows[0, i]
            stats[0] += square
            return conflicts
        if num_models == 2:
            first = zero
            inner = zero
            second = zero
            for i in range(size):
                x = rows[0, i]
                y = rows[1, i]
                first += x * x
                inner += x * y
                second += y * y
                conflicts += np.int32(((x < zero) & (y > zero)) | ((x > zero) & (y < zero)))
            stats[0] += first
            stats[1] += inner
            stats[2] += second
            return conflicts
        pair = 0
        for m in range(num_models):
            for other in range(m + 1):
                stats[pair] += quick_dot(rows[m], rows[other], size)
                pair += 1
        for i in range(size):
            least = rows[0, i]
            greatest = rows[0, i]
            for m in range(1, num_models):
                value = rows[m, i]
                least = value if value < least else least
                greatest = value if value > greatest else greatest
            conflicts += np.int32((least < zero) & (greatest > zero))
        return conflicts

    return diagnose


def _unrolled_combination(num_models: int) -> Callable[..., object]:
    @njit(nogil=True, error_model="numpy")
    def combine(rows, base, total, size, params):
        factor = params[0]
        if params[1] == 0.0:
            for i in range(size):
                summed = 0.0
                for m in range(num_models):
                    at = PARAMS_HEAD + PARAMS_PER_MODEL * m
                    summed += params[at] * params[at + 1] * np.float64(rows[m, i])
                total[i] = np.float64(base[i]) + factor * summed
        elif params[2] == 0.0:
            for i in range(size):
                summed = 0.0
                for m in range(num_models):
                    at = PARAMS_HEAD + PARAMS_PER_MODEL * m
                    summed += params[at] * params[at + 1] * np.float64(rows[m, i])
                agreeing = 0.0
                for m in range(num_models):
                    at = PARAMS_HEAD + PARAMS_PER_MODEL * m
                    value = params[at] * params[at + 1] * np.float64(rows[m, i])
                    agrees = (value if summed >= 0.0 else -value) > 0.0
                    agreeing += value if agrees else 0.0
                total[i] = np.float64(base[i]) + factor * agreeing
        else:
            for i in range(size):
                summed = 0.0
                for m in range(num_models):
                    at = PARAMS_HEAD + PARAMS_PER_MODEL * m
                    summed += params[at] * params[at + 1] * np.float64(rows[m, i])
                agreeing = 0.0
                divisor = 0.0
                for m in range(num_models):
                    at = PARAMS_HEAD + PARAMS_PER_MODEL * m
                    value = params[at] * params[at + 1] * np.float64(rows[m, i])
                    agrees = (value if summed >= 0.0 else -value) > 0.0
                    agreeing += value if agrees else 0.0
                    divisor += params[at] if agrees else 0.0
                divisor = divisor if divisor != 0.0 else 1.0
                total[i] = np.float64(base[i]) + factor * (agreeing / divisor)

    return combine


def _kernel(unrolled: int) -> Callable[..., object]:
    """Make the kernel for ``unrolled`` models, or for any number when it is 0."""
    diagnose = _unrolled_diagnosis(unrolled) if unrolled else None
    combine = _unrolled_combination(unrolled) if unrolled else None

    def merge(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        num_models = (len(counts) - 3) // (2 + SETTINGS)
        settings = 3 + 2 * num_models
        words = work[WORDS].view(np.uint32)
        for offset in range(0, count, BLOCK):
            size = min(BLOCK, count - offset)
            position = start + offset
            counts[0] |= read_block(readers[0], inputs[0], position, size, work, BASE)
            for m in range(num_models):
                counts[1 + m] |= read_block(
                    readers[1 + m], inputs[1 + m], position, size, work, WORK_HEAD + m
                )
            _subtract_base(work, num_models, size)
            if output != 0:
                if unrolled:
                    conflicts = diagnose(work[WORK_HEAD:], size, stats)
                else:
                    conflicts = _diagnose_rows(work, num_models, size, stats)
                counts[2 + num_models] += conflicts
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
            if output == 0:
                continue
            if unrolled:
                combine(work[WORK_HEAD:], work[BASE], wide(work, TOTAL), size, params)
            else:
                _combine_rows(work, num_models, size, params)
            counts[1 + num_models] |= write_block(writer, output, offset, size, work, TOTAL)

    merge.__doc__ = """Write base + λ Σ w·δ′ (with elected signs: Σ over the agreeing).

    inputs: the base, then M models, then for every model with ``SCALED`` an array of factors
    that begins at ``start``. params, counts, stats: see ``layout.py``. With ``output`` 0
    nothing is written; only Σ|δ| and Σ|δ′| are summed, which rescaling to the former L1 norm
    needs.
    """
    return merge


merge_any = _kernel(0)
merge_1, merge_2, merge_3, merge_4 = (_kernel(count) for count in range(1, MOST_UNROLLED + 1))
