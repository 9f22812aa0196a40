"""Gram matrices and linear combinations, for methods whose result lies in the span of the inputs.

Slerp, the Karcher mean, Model Stock and their kin look geometric, but every point they visit is
a combination of the inputs, so all their angles follow from inner products. One pass sums the
Gram matrix, the method decides on a handful of numbers, and a second pass writes the combination.
Each kernel comes for whole tensors, for rows (last axis) and for columns (first axis).

Imported only to compile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import carray

from forge.kernels.cpu.compiler import reordered
from forge.kernels.cpu.elements import is_not_finite, rounded, value_of
from forge.kernels.cpu.layout import BLOCK
from forge.kernels.cpu.memory import inlined, pointer, read_block, wide, write_block
from forge.kernels.cpu.reductions import dot


@inlined
def _read_all(inputs, readers, has_base, position, size, counts, work):
    """Read a block of every input; with a base, make the others task vectors."""
    for m in range(len(inputs)):
        counts[m] |= read_block(readers[m], inputs[m], position, size, work, m)
    if has_base:
        base = work[0]
        for m in range(1, len(inputs)):
            x = work[m]
            for i in range(size):
                x[i] -= base[i]


def _gram_kernel(num_models: int) -> Callable[..., object]:
    """Make ``gram`` for any number of vectors, 0, or for two of work rows."""

    def gram(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        for offset in range(0, count, BLOCK):
            size = min(BLOCK, count - offset)
            _read_all(inputs, readers, has_base, start + offset, size, counts, work)
            if num_models == 2:
                _triangle_of_two(work[has_base], work[has_base + 1], size, stats)
            else:
                pair = 0
                for m in range(has_base, len(inputs)):
                    for other in range(has_base, m + 1):
                        stats[pair] += dot(work[m], work[other], size)
                        pair += 1

    return gram


# The sums may be reordered: they are float64, see ``reductions``.
@reordered
def _triangle_of_two(x, y, size, stats):
    first = 0.0
    inner = 0.0
    second = 0.0
    for i in range(size):
        left = np.float64(value_of(x[i]))
        right = np.float64(value_of(y[i]))
        first += left * left
        inner += left * right
        second += right * right
    stats[0] += first
    stats[1] += inner
    stats[2] += second
    return first + second


def _stored_gram(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """As ``gram`` of two vectors without a base, from where they are stored."""
    x = carray(pointer(inputs[0] + 2 * start), count, np.uint16)
    y = carray(pointer(inputs[1] + 2 * start), count, np.uint16)
    if not _triangle_of_two(x, y, count, stats) < np.inf:
        counts[0] |= is_not_finite(x)
        counts[1] |= is_not_finite(y)


def gram_rows(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """As ``gram``, one triangle for each row: stats[row·P + pair]. Cuts fall between rows."""
    num_models = len(inputs) - has_base
    num_pairs = num_models * (num_models + 1) // 2
    for row in range(start // width, (start + count) // width):
        for column in range(0, width, BLOCK):
            size = min(BLOCK, width - column)
            _read_all(inputs, readers, has_base, row * width + column, size, counts, work)
            pair = row * num_pairs
            for m in range(has_base, len(inputs)):
                for other in range(has_base, m + 1):
                    stats[pair] += dot(work[m], work[other], size)
                    pair += 1


def gram_columns(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """As ``gram``, one triangle for each column: stats[pair·width + column].

    ``width`` is the number of columns when the first axis runs down. Cuts fall between rows.
    """
    for row in range(start // width, (start + count) // width):
        for column in range(0, width, BLOCK):
            size = min(BLOCK, width - column)
            _read_all(inputs, readers, has_base, row * width + column, size, counts, work)
            pair = column
            for m in range(has_base, len(inputs)):
                for other in range(has_base, m + 1):
                    x = work[m]
                    y = work[other]
                    sums = stats[pair : pair + size]
                    for i in range(size):
                        sums[i] += np.float64(x[i]) * np.float64(y[i])
                    pair += width


def _combine_kernel(num_models: int) -> Callable[..., object]:
    """Make ``combine`` for a number of models that is unrolled, or for any number (0)."""

    @inlined
    def sum_unrolled(rows, total, size, params, factor):
        for i in range(size):
            summed = 0.0
            for m in range(num_models):
                summed += params[m] * np.float64(rows[m, i])
            total[i] = summed * factor

    @inlined
    def sum_rows(rows, total, size, params, factor):
        for i in range(size):
            total[i] = 0.0
        for m in range(len(params) - 1):
            x = rows[m]
            coefficient = params[m]
            for i in range(size):
                total[i] += coefficient * np.float64(x[i])
        for i in range(size):
            total[i] *= factor

    add = sum_unrolled if num_models else sum_rows

    def combine(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        num_inputs = len(inputs)
        total = wide(work, num_inputs)
        # A division costs more than all the rest; the product is as good before one rounding.
        factor = 1.0 / params[num_inputs - has_base]
        for offset in range(0, count, BLOCK):
            size = min(BLOCK, count - offset)
            _read_all(inputs, readers, has_base, start + offset, size, counts, work)
            add(work[has_base:num_inputs], total, size, params, factor)
            if has_base:
                base = work[0]
                for i in range(size):
                    total[i] += np.float64(base[i])
            counts[num_inputs] |= write_block(writer, output, offset, size, work, num_inputs)

    return combine


def _stored_combination(num_models: int) -> Callable[..., object]:
    """Make ``combine`` without a base from where two or three models are stored."""

    @inlined
    def weighed(x, y, z, target, size, params, factor):
        first, second, third = params[0], params[1], params[num_models - 1]
        for i in range(size):
            total = first * np.float64(value_of(x[i])) + second * np.float64(value_of(y[i]))
            if num_models == 3:
                total += third * np.float64(value_of(z[i]))
            target[i] = np.uint16(rounded(total * factor))

    @inlined
    def averaged(x, y, z, target, size, factor):
        for i in range(size):
            total = np.float64(value_of(x[i])) + np.float64(value_of(y[i]))
            if num_models == 3:
                total += np.float64(value_of(z[i]))
            target[i] = np.uint16(rounded(total * factor))

    def combine(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        factor = 1.0 / params[num_models]
        # One weight for all, as a soup has, need not be multiplied with each.
        even = (params[0] == params[1]) & (params[0] == params[num_models - 1])
        for offset in range(0, count, BLOCK):
            size = min(BLOCK, count - offset)
            at = 2 * (start + offset)
            x = carray(pointer(inputs[0] + at), size, np.uint16)
            y = carray(pointer(inputs[1] + at), size, np.uint16)
            z = carray(pointer(inputs[num_models - 1] + at), size, np.uint16)
            target = carray(pointer(output + 2 * offset), size, np.uint16)
            if even:
                averaged(x, y, z, target, size, params[0] * factor)
            else:
                weighed(x, y, z, target, size, params, factor)
            # What is not finite makes no sum finite, not even with a weight of 0.
            if is_not_finite(target):
                counts[num_models] = 1
                counts[0] |= is_not_finite(x)
                counts[1] |= is_not_finite(y)
                counts[num_models - 1] |= is_not_finite(z)

    return combine


def combine_rows(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """As ``combine`` with coefficients of each row: params[row·M + m]. Cuts fall between rows."""
    num_inputs = len(inputs)
    num_models = num_inputs - has_base
    total = wide(work, num_inputs)
    for row in range(start // width, (start + count) // width):
        for column in range(0, width, BLOCK):
            size = min(BLOCK, width - column)
            position = row * width + column
            _read_all(inputs, readers, has_base, position, size, counts, work)
            for i in range(size):
                total[i] = 0.0
            for m in range(num_models):
                x = work[m + has_base]
                coefficient = params[row * num_models + m]
                for i in range(size):
                    total[i] += coefficient * np.float64(x[i])
            if has_base:
                base = work[0]
                for i in range(size):
                    total[i] += np.float64(base[i])
            counts[num_inputs] |= write_block(
                writer, output, position - start, size, work, num_inputs
            )


def combine_columns(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """As ``combine`` with coefficients of each column: params[m·width + column]."""
    num_inputs = len(inputs)
    total = wide(work, num_inputs)
    for row in range(start // width, (start + count) // width):
        for column in range(0, width, BLOCK):
            size = min(BLOCK, width - column)
            position = row * width + column
            _read_all(inputs, readers, has_base, position, size, counts, work)
            for i in range(size):
                total[i] = 0.0
            for m in range(num_inputs - has_base):
                x = work[m + has_base]
                first = m * width + column
                coefficients = params[first : first + size]
                for i in range(size):
                    total[i] += coefficients[i] * np.float64(x[i])
            if has_base:
                base = work[0]
                for i in range(size):
                    total[i] += np.float64(base[i])
            counts[num_inputs] |= write_block(
                writer, output, position - start, size, work, num_inputs
            )


def __getattr__(name: str) -> Callable[..., object]:
    """Make a kernel from its name.

    ``gram_2`` and ``gram_any`` add the lower triangle of the Gram matrix of the inputs (with a
    base: of δ) to stats. ``combine_<models or any>`` writes Σ c·x / d, or base + Σ c·δ / d when
    there is a base; params: one c for each model, then d (apart, so that sums which cancel stay
    zero). counts[m]: whether input m is not finite; counts[number of inputs]: whether the result
    is. ``gram_2_stored``, ``combine_2_stored`` and ``combine_3_stored`` are the same without a
    base, where all inputs, and for ``combine`` the result, are bfloat16.
    """
    if name == "gram_2_stored":
        return _stored_gram
    if name in ("combine_2_stored", "combine_3_stored"):
        return _stored_combination(int(name[len("combine_")]))
    word, _, models = name.partition("_")
    if word in ("gram", "combine") and (models == "any" or models.isdigit()):
        make = _gram_kernel if word == "gram" else _combine_kernel
        return make(0 if models == "any" else int(models))
    raise AttributeError(name)
