"""The fused loop of the task-arithmetic family: subtract, sparsify, elect, sum, add, round.

One kernel serves task_arithmetic, ties, dare, breadcrumbs and della: they differ in how a task
vector is sparsified (a code of ``layout.py`` for each model) and in whether signs are elected.
The diagnostics of a merge (norms, cosines, conflicts, share kept) are summed on the way,
because the task vectors are in the cache there and nowhere else.

The number of models (up to ``layout.MOST_UNROLLED``), the kind of vote and that of sparsifying are
constants of the compiled code: the loop over models is unrolled inside the loop over elements,
sums and votes stay in registers, which takes half the time of keeping them in rows, and less code
is compiled. Merges of more models use rows; those of one or two have ``pairs``.

Imported only to compile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import carray

from forge.kernels.cpu.compiler import reordered
from forge.kernels.cpu.layout import (
    BASE,
    BLOCK,
    DENSE,
    DIVISOR,
    ELECTED,
    PARAMS_HEAD,
    PARAMS_PER_MODEL,
    SCALED,
    SETTINGS,
    TOTAL,
    WORDS,
    WORK_HEAD,
)
from forge.kernels.cpu.memory import inlined, pointer, read_block, wide, words_of, write_block
from forge.kernels.cpu.philox import LOWER, UPPER, fill
from forge.kernels.cpu.reductions import absolute_sum, quick_dot
from forge.kernels.cpu.selection import drop_inside, keep_inside

_HALF = np.uint32(16)


@inlined
def _drop(x, factors, size, position, counts, at, work):
    """Keep elements whose random word is below a threshold in 0 … 2**32."""
    zero = x.dtype.type(0)
    kept = np.int32(0)
    threshold = counts[at + 3]
    halves = words_of(work, WORDS)
    fill(halves, counts[at + 1], counts[at + 2], position, size, UPPER)
    border = np.uint32(threshold >> 16)
    undecided = np.int32(0)
    if threshold & 0xFFFF:
        for i in range(size):
            undecided += np.int32(halves[i] == border)
    if undecided == 0:
        for i in range(size):
            keep = halves[i] < border
            x[i] = x[i] if keep else zero
            kept += np.int32(keep)
        return kept
    lower = words_of(work, TOTAL)  # the sums come later
    fill(lower, counts[at + 1], counts[at + 2], position, size, LOWER)
    below = np.uint32(threshold)  # has lower bits, so it is less than 2**32
    for i in range(size):
        keep = np.uint32(np.uint32(halves[i] << _HALF) | lower[i]) < below
        x[i] = x[i] if keep else zero
        kept += np.int32(keep)
    return kept


@inlined
def _band(x, factors, size, position, counts, at, work):
    """Keep elements inside one bound and outside another."""
    kept = np.int32(0)
    if counts[at + 1] >= 0:
        counts[at + 5], kept = keep_inside(x, size, counts[at + 1], counts[at + 2], counts[at + 5])
    if counts[at + 3] >= 0:
        counts[at + 6] = drop_inside(x, size, counts[at + 3], counts[at + 4], counts[at + 6])
        kept = np.int32(0)
        for i in range(size):
            kept += np.int32(x[i] != 0)
    return kept


@inlined
def _scale(x, factors, size, position, counts, at, work):
    """Multiply by one factor for each element; a factor of 0 drops it."""
    kept = np.int32(0)
    for i in range(size):
        x[i] *= factors[i]
        kept += np.int32(factors[i] != 0)
    return kept


@inlined
def _read(inputs, readers, position, size, counts, work):
    """Read a block of the base and of every model, and turn the models into task vectors."""
    models = (len(counts) - 3) // (2 + SETTINGS)
    base = work[BASE]
    counts[0] |= read_block(readers[0], inputs[0], position, size, work, BASE)
    for m in range(models):
        row = WORK_HEAD + m
        counts[1 + m] |= read_block(readers[1 + m], inputs[1 + m], position, size, work, row)
        x = work[row]
        for i in range(size):
            x[i] -= base[i]


def _sparsifier(kind: str) -> Callable[..., object]:
    """Make what sparsifies all task vectors of a block and counts what is kept of each."""
    if kind == "dense":

        @inlined
        def keep_all(inputs, readers, offset, position, size, counts, work):
            pass

        return keep_all
    sparsify = {"drop": _drop, "band": _band, "scaled": _scale}[kind]
    is_scaled = kind == "scaled"

    @inlined
    def sparsify_all(inputs, readers, offset, position, size, counts, work):
        models = (len(counts) - 3) // (2 + SETTINGS)
        factors = models + 1
        for m in range(models):
            at = 3 + 2 * models + SETTINGS * m
            if counts[at] == DENSE:
                continue
            scales = work[WORDS]
            if is_scaled and counts[at] == SCALED:
                # They are of the work type, so nothing need be read into a row.
                address = inputs[factors] + offset * work.itemsize
                scales = carray(pointer(address), BLOCK, work.dtype)
                factors += 1
            x = work[WORK_HEAD + m]
            kept = sparsify(x, scales, size, position, counts, at, work)
            counts[3 + models + m] += kept

    return sparsify_all


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
def _sum_rows(work, num_models, size, params):
    """Put Σ w·δ′ into ``total``."""
    total = wide(work, TOTAL)
    for i in range(size):
        total[i] = 0.0
    for m in range(num_models):
        x = work[WORK_HEAD + m]
        at = PARAMS_HEAD + PARAMS_PER_MODEL * m
        factor = params[at] * params[at + 1]
        for i in range(size):
            total[i] += factor * np.float64(x[i])


@inlined
def _elect_rows(work, num_models, size, params):
    """Reduce ``total`` to the agreeing; put the sum of their weights into ``divisor``."""
    total = wide(work, TOTAL)
    divisor = wide(work, DIVISOR)
    elected = wide(work, ELECTED)
    for i in range(size):
        elected[i] = total[i]
        total[i] = 0.0
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
            divisor[i] += weight if agrees else 0.0


def _combination_of_rows(vote: str) -> Callable[..., object]:
    elects = vote != "sum"
    normalizes = vote == "mean"

    @inlined
    def combine(work, num_models, size, params):
        total = wide(work, TOTAL)
        divisor = wide(work, DIVISOR)
        base = work[BASE]
        _sum_rows(work, num_models, size, params)
        if elects:
            _elect_rows(work, num_models, size, params)
        if normalizes:
            for i in range(size):
                total[i] /= divisor[i] if divisor[i] != 0.0 else 1.0
        for i in range(size):
            total[i] = np.float64(base[i]) + params[0] * total[i]

    return combine


def _unrolled_diagnosis(num_models: int) -> Callable[..., object]:
    # Sums may be reordered here: they are shown, not written.
    @reordered
    def diagnose(work, ignored, size, stats):
        rows = work[WORK_HEAD:]
        zero = work.dtype.type(0)
        conflicts = np.int32(0)
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


def _unrolled_combination(num_models: int, vote: str) -> Callable[..., object]:
    elects = vote != "sum"
    normalizes = vote == "mean"

    @inlined
    def combine(work, ignored, size, params):
        rows = work[WORK_HEAD:]
        base = work[BASE]
        total = wide(work, TOTAL)
        for i in range(size):
            summed = 0.0
            for m in range(num_models):
                at = PARAMS_HEAD + PARAMS_PER_MODEL * m
                summed += params[at] * params[at + 1] * np.float64(rows[m, i])
            if elects:
                agreeing = 0.0
                divisor = 0.0
                for m in range(num_models):
                    at = PARAMS_HEAD + PARAMS_PER_MODEL * m
                    value = params[at] * params[at + 1] * np.float64(rows[m, i])
                    agrees = (value if summed >= 0.0 else -value) > 0.0
                    agreeing += value if agrees else 0.0
                    divisor += params[at] if agrees else 0.0
                summed = agreeing
                if normalizes:
                    summed /= divisor if divisor != 0.0 else 1.0
            total[i] = np.float64(base[i]) + params[0] * summed

    return combine


def _merge_kernel(num_models: int, vote: str, kind: str) -> Callable[..., object]:
    """Make the kernel for this many models, or for any number when it is 0."""
    sparsify = _sparsifier(kind)
    if num_models:
        diagnose = _unrolled_diagnosis(num_models)
        combine = _unrolled_combination(num_models, vote)
    else:
        diagnose = _diagnose_rows
        combine = _combination_of_rows(vote)

    def merge(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        models = (len(counts) - 3) // (2 + SETTINGS)
        for offset in range(0, count, BLOCK):
            size = min(BLOCK, count - offset)
            _read(inputs, readers, start + offset, size, counts, work)
            counts[2 + models] += diagnose(work, models, size, stats)
            sparsify(inputs, readers, offset, start + offset, size, counts, work)
            combine(work, models, size, params)
            counts[1 + models] |= write_block(writer, output, offset, size, work, TOTAL)

    return merge


def _magnitudes_kernel(kind: str) -> Callable[..., object]:
    sparsify = _sparsifier(kind)

    def magnitudes(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        models = (len(counts) - 3) // (2 + SETTINGS)
        for offset in range(0, count, BLOCK):
            size = min(BLOCK, count - offset)
            _read(inputs, readers, start + offset, size, counts, work)
            for m in range(models):
                stats[m] += absolute_sum(work[WORK_HEAD + m], size)
            sparsify(inputs, readers, offset, start + offset, size, counts, work)
            for m in range(models):
                stats[models + m] += absolute_sum(work[WORK_HEAD + m], size)

    return magnitudes


def __getattr__(name: str) -> Callable[..., object]:
    """Make a kernel from its name.

    ``merge_<models or any>_<sum, elect or mean>_<kind>`` writes base + λ Σ w·δ′: ``sum`` over all
    models, ``elect`` over those that agree with the elected sign, ``mean`` over those divided by
    the sum of their weights. ``magnitudes_<kind>`` sums Σ|δ| and Σ|δ′| of each model, which
    rescaling to the former L1 norm needs. ``kind`` is how task vectors are sparsified: ``dense``
    (not at all), ``drop``, ``band`` or ``scaled``; some of them may still be kept whole.

    inputs: the base, then M models, then for every model with ``SCALED`` an array of factors that
    begins at ``start``. params, counts, stats: see ``layout.py``.
    """
    words = name.split("_")
    if words[0] == "merge" and len(words) == 4:
        return _merge_kernel(0 if words[1] == "any" else int(words[1]), words[2], words[3])
    if words[0] == "magnitudes" and len(words) == 2:
        return _magnitudes_kernel(words[1])
    raise AttributeError(name)
