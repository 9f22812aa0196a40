"""The task-arithmetic family for one or two models beside the base: everything in one loop.

Nearly all merges are of one or two models. Here the loop over elements subtracts, sparsifies,
elects, sums, adds and rounds in registers, and sums the diagnostics on the way; a sparsifier only
has to settle beforehand what it knows of a block. ``task_vectors`` does the same for more models,
by rows.

A block of ``band`` ends early where one of a bound's equal elements is the last that is kept, so
that within a block one comparison tells what is kept.

Imported only to compile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import carray

from forge.kernels.cpu.elements import added, is_not_finite, target_maker, value_of, view_maker
from forge.kernels.cpu.layout import (
    BLOCK,
    DENSE,
    PARAMS_HEAD,
    SCALED,
    SETTINGS,
    TOTAL,
    WORDS,
    WORK_HEAD,
)
from forge.kernels.cpu.memory import inlined, is_double, pointer, words_of
from forge.kernels.cpu.philox import LOWER, UPPER, fill
from forge.kernels.cpu.selection import magnitude_bits

_HALF = np.uint32(16)
_MOST32 = 0x7FFFFFFE
_MOST64 = (1 << 63) - 3
_WORDS, _OTHER, _SPARE = np.int64(WORDS), np.int64(4), np.int64(6)
"""Work rows: random words or factors of either model, lower halves of words."""
_BASE, _FIRST, _SECOND, _THIRD = np.int64(0), np.int64(1), np.int64(2), np.int64(3)
"""Inputs. numba compiles a function anew for each plain constant that it is given."""
_FIRST_ROW, _SECOND_ROW = np.int64(WORK_HEAD), np.int64(WORK_HEAD + 1)


@inlined
def _keep_all(value, zero, beside, least, span):
    return value, np.int32(1)


@inlined
def _keep_words(value, zero, beside, least, span):
    """Keep an element whose random word lies below ``span``."""
    keep = beside < np.uint32(span)
    return (value if keep else zero), np.int32(keep)


@inlined
def _keep_band(value, zero, beside, least, span):
    """Keep an element whose magnitude lies less than ``span`` above ``least``."""
    here = magnitude_bits(value)
    if is_double(value):
        keep = np.uint64(np.uint64(here) - np.uint64(least)) < np.uint64(span)
    else:
        keep = np.uint32(np.uint32(here) - np.uint32(least)) < np.uint32(span)
    return (value if keep else zero), np.int32(keep)


@inlined
def _keep_scaled(value, zero, beside, least, span):
    """Multiply by a factor; 0 drops."""
    return value * beside, np.int32(beside != 0)


_KEEP = {"dense": _keep_all, "drop": _keep_words, "band": _keep_band, "scaled": _keep_scaled}
"""What is kept of an element of a task vector, and 1 when it is kept."""


@inlined
def _magnitude(x, base, i):
    return np.int64(magnitude_bits(value_of(x[i]) - value_of(base[i])))


@inlined
def _count_equal(x, base, size, bits):
    """Return how many elements of a task vector have exactly these magnitude bits."""
    found = np.int32(0)
    for i in range(size):
        found += np.int32(_magnitude(x, base, i) == bits)
    return np.int64(found)


@inlined
def _end_of_ties(x, base, size, counts, at):
    """Return how far a block goes until an element is the last on the inner side of a bound.

    ``counts`` holds the model's settings from ``at``.
    """
    for bound in range(2):
        bits = counts[at + 1 + 2 * bound]
        left = counts[at + 2 + 2 * bound] - counts[at + 5 + bound]
        if (bits < 0) | (left <= 0) | (size <= left):
            continue
        if _count_equal(x, base, size, bits) <= left:
            continue
        for i in range(size):
            if _magnitude(x, base, i) == bits:
                left -= 1
                if left == 0:
                    size = i + 1
                    break
    return size


@inlined
def _side(x, base, size, counts, at, passed):
    """Return the least magnitude that lies inside a bound, for all of a block.

    ``counts`` holds the bits and the quota of the bound from ``at``, and at ``passed`` how many
    elements of these bits came before, which is brought up to the end of the block.
    """
    if counts[passed] >= counts[at + 1]:
        return counts[at] + 1
    counts[passed] += _count_equal(x, base, size, counts[at])
    return counts[at]


@inlined
def _span_of_band(x, base, size, counts, at):
    """Return the least magnitude that is kept, and how many from there are."""
    least = np.int64(1)  # of a zero nothing can be kept
    greatest = np.int64(_MOST64 if is_double(value_of(x[0])) else _MOST32)
    beyond = greatest + 1
    if counts[at] == DENSE:
        return np.int64(0), beyond
    if counts[at + 1] >= 0:
        least = max(least, min(_side(x, base, size, counts, at + 1, at + 5), beyond))
    if counts[at + 3] >= 0:
        beyond = min(_side(x, base, size, counts, at + 3, at + 6), beyond)
    return least, max(beyond - least, 0)


@inlined
def _words_below(words, lower, position, size, counts, at):
    """Write random words of a model's elements; return the number that those kept lie below."""
    if counts[at] == DENSE:
        for i in range(size):
            words[i] = np.uint32(0)
        return np.int64(1)
    threshold = counts[at + 3]
    fill(words, counts[at + 1], counts[at + 2], position, size, UPPER)
    if threshold & 0xFFFF == 0:
        return threshold >> 16
    border = np.uint32(threshold >> 16)
    undecided = np.int32(0)
    for i in range(size):
        undecided += np.int32(words[i] == border)
    if undecided == 0:
        return threshold >> 16
    fill(lower, counts[at + 1], counts[at + 2], position, size, LOWER)
    for i in range(size):
        words[i] = np.uint32(np.uint32(words[i] << _HALF) | lower[i])
    return threshold  # has lower bits, so it is less than 2**32


def _settle_maker(kind: str) -> Callable[..., object]:
    """Make what tells of a block of one model what ``_KEEP`` must know: a row, least and span.

    Args:
        kind: How task vectors are sparsified.

    Returns:
        A function of the model's block, that of the base, the block's position in the tensor, its
        offset in the piece, its size, inputs, the place of the model's factors there, counts, the
        place of its settings there, work and a work row.
    """
    if kind == "band":

        @inlined
        def settle_band(x, base, position, offset, size, inputs, scales, counts, at, work, row):
            least, span = _span_of_band(x, base, size, counts, at)
            return work[row], least, span

        return settle_band
    if kind == "drop":

        @inlined
        def settle_drop(x, base, position, offset, size, inputs, scales, counts, at, work, row):
            words = words_of(work, row)
            below = _words_below(words, words_of(work, _SPARE), position, size, counts, at)
            return words, np.int64(0), below

        return settle_drop
    if kind == "scaled":

        @inlined
        def settle_scaled(x, base, position, offset, size, inputs, scales, counts, at, work, row):
            if counts[at] == SCALED:
                # They are of the work type, so nothing need be read into a row.
                address = inputs[scales] + offset * work.itemsize
                return carray(pointer(address), BLOCK, work.dtype), np.int64(0), np.int64(0)
            ones = carray(pointer(work[row].ctypes.data), BLOCK, work.dtype)
            for i in range(size):
                ones[i] = 1
            return ones, np.int64(0), np.int64(0)

        return settle_scaled

    @inlined
    def settle_nothing(x, base, position, offset, size, inputs, scales, counts, at, work, row):
        return work[row], np.int64(0), np.int64(0)

    return settle_nothing


def _combination(vote: str, *, even: bool) -> tuple[Callable[..., object], Callable[..., object]]:
    """Make the combination of one element of two task vectors, in float64.

    Args:
        vote: ``sum`` of all, ``elect`` of those that agree, or ``mean`` of these.
        even: Whether both models have one weight, above 0: then two numbers of one sign agree,
            and of others the greater counts when their sum is not negative, else the smaller;
            float32 tells that exactly.

    Returns:
        A function of params that gives five factors (what a loop read from memory would have to
        be read anew after each store), and one of both elements, a zero of their type, and these.
    """
    is_mean = vote == "mean"
    if vote == "sum":

        @inlined
        def weigh(params):
            first = params[PARAMS_HEAD] * params[PARAMS_HEAD + 1]
            second = params[PARAMS_HEAD + 2] * params[PARAMS_HEAD + 3]
            return first, second, params[0], 0.0, 0.0

        @inlined
        def combine(x, y, zero, factors):
            return factors[2] * (factors[0] * np.float64(x) + factors[1] * np.float64(y))

        return weigh, combine
    if even:

        @inlined
        def weigh_evenly(params):
            factor = params[0] * params[PARAMS_HEAD] * params[PARAMS_HEAD + 1]
            if is_mean:
                factor /= 2 * params[PARAMS_HEAD]
            return factor, 0.0, 0.0, 0.0, 0.0

        @inlined
        def elect_evenly(x, y, zero, factors):
            least = x if x < y else y
            greatest = x if x > y else y
            alone = greatest if x + y >= zero else least
            agree = (least > zero) | (greatest < zero)
            first = x if agree else alone
            # The mean divides by two weights, so one number alone counts twice.
            second = y if agree else (alone if is_mean else zero)
            return factors[0] * (np.float64(first) + np.float64(second))

        return weigh_evenly, elect_evenly

    @inlined
    def weigh_each(params):
        first = params[PARAMS_HEAD]
        second = params[PARAMS_HEAD + 2]
        scale = params[0]
        return (
            first * params[PARAMS_HEAD + 1],
            second * params[PARAMS_HEAD + 3],
            scale * _inverse(first) if is_mean else scale,
            scale * _inverse(second) if is_mean else scale,
            scale * _inverse(first + second) if is_mean else scale,
        )

    @inlined
    def elect(x, y, zero, factors):
        first = factors[0] * np.float64(x)
        second = factors[1] * np.float64(y)
        summed = first + second
        takes_first = (first > second) == (summed >= 0.0)
        alone = first * factors[2] if takes_first else second * factors[3]
        agree = ((first > 0.0) & (second > 0.0)) | ((first < 0.0) & (second < 0.0))
        return summed * factors[4] if agree else alone

    return weigh_each, elect


@inlined
def _inverse(value):
    return 1.0 / value if value != 0.0 else 1.0


def _merge_of_one(kind: str, *, stored: bool) -> Callable[..., object]:
    view = view_maker(stored=stored)
    begin, settled, end = target_maker(stored=stored)
    settle = _settle_maker(kind)
    keep = _KEEP[kind]
    has_ties = kind == "band"

    @inlined
    def merge_block(base, first, target, size, params, stats, counts, work, row, least, span):
        zero = work.dtype.type(0)
        factor = params[0] * params[PARAMS_HEAD] * params[PARAMS_HEAD + 1]
        square = zero
        kept = np.int32(0)
        for i in range(size):
            origin = value_of(base[i])
            x = value_of(first[i]) - origin
            square = added(square, x * x)
            x, keeps = keep(x, zero, row[i], least, span)
            kept = np.int32(kept + keeps)
            target[i] = settled(np.float64(origin) + factor * np.float64(x))
        stats[0] += square
        counts[4] += kept
        return square

    def merge(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        at = np.int64(5)
        offset = np.int64(0)
        while offset < count:
            size = min(BLOCK, count - offset)
            place = start + offset
            base, bad = view(inputs, readers, _BASE, place, size, work, _BASE)
            first, first_bad = view(inputs, readers, _FIRST, place, size, work, _FIRST_ROW)
            counts[0] |= bad
            counts[1] |= first_bad
            if has_ties:
                size = _end_of_ties(first, base, size, counts, at)
            row, least, span = settle(
                first, base, place, offset, size, inputs, _SECOND, counts, at, work, _WORDS
            )
            target = begin(output, offset, size, work, TOTAL)
            energy = merge_block(
                base, first, target, size, params, stats, counts, work, row, least, span
            )
            if stored and not energy < np.inf:
                counts[0] |= is_not_finite(base)
                counts[1] |= is_not_finite(first)
            counts[2] |= end(writer, output, offset, size, work, TOTAL, target)
            offset += size

    return merge


def _merge_of_two(vote: str, kind: str, *, even: bool, stored: bool) -> Callable[..., object]:
    view = view_maker(stored=stored)
    begin, settled, end = target_maker(stored=stored)
    settle = _settle_maker(kind)
    keep = _KEEP[kind]
    weigh, combine = _combination(vote, even=even)
    has_ties = kind == "band"

    @inlined
    def merge_block(
        base, first, second, target, size, params, stats, counts, work, of_first, of_second
    ):
        zero = work.dtype.type(0)
        factors = weigh(params)
        row, least, span = of_first
        other_row, other_least, other_span = of_second
        square = zero
        inner = zero
        other_square = zero
        conflicts = np.int32(0)
        kept = np.int32(0)
        other_kept = np.int32(0)
        for i in range(size):
            origin = value_of(base[i])
            x = value_of(first[i]) - origin
            y = value_of(second[i]) - origin
            product = x * y
            square = added(square, x * x)
            inner = added(inner, product)
            other_square = added(other_square, y * y)
            conflicts = np.int32(conflicts + np.int32(product < zero))
            x, keeps = keep(x, zero, row[i], least, span)
            y, other_keeps = keep(y, zero, other_row[i], other_least, other_span)
            kept = np.int32(kept + keeps)
            other_kept = np.int32(other_kept + other_keeps)
            target[i] = settled(np.float64(origin) + combine(x, y, zero, factors))
        stats[0] += square
        stats[1] += inner
        stats[2] += other_square
        counts[4] += conflicts
        counts[5] += kept
        counts[6] += other_kept
        return square + other_square

    def merge(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        at = np.int64(7)
        other_at = at + SETTINGS
        scales = 3 + np.int64(counts[at] == SCALED)
        offset = np.int64(0)
        while offset < count:
            size = min(BLOCK, count - offset)
            place = start + offset
            base, bad = view(inputs, readers, _BASE, place, size, work, _BASE)
            first, first_bad = view(inputs, readers, _FIRST, place, size, work, _FIRST_ROW)
            second, second_bad = view(inputs, readers, _SECOND, place, size, work, _SECOND_ROW)
            counts[0] |= bad
            counts[1] |= first_bad
            counts[2] |= second_bad
            if has_ties:
                size = _end_of_ties(first, base, size, counts, at)
                size = _end_of_ties(second, base, size, counts, other_at)
            of_first = settle(
                first, base, place, offset, size, inputs, _THIRD, counts, at, work, _WORDS
            )
            of_second = settle(
                second, base, place, offset, size, inputs, scales, counts, other_at, work, _OTHER
            )
            target = begin(output, offset, size, work, TOTAL)
            energy = merge_block(
                base, first, second, target, size, params, stats, counts, work, of_first, of_second
            )
            if stored and not energy < np.inf:
                counts[0] |= is_not_finite(base)
                counts[1] |= is_not_finite(first)
                counts[2] |= is_not_finite(second)
            counts[3] |= end(writer, output, offset, size, work, TOTAL, target)
            offset += size

    return merge


def __getattr__(name: str) -> Callable[..., object]:
    """Make a kernel from its name.

    ``merge_1_<kind>_<place>`` and ``merge_2_<vote>_<weights>_<kind>_<place>`` write
    base + λ Σ w·δ′: ``vote`` is ``sum`` over both models, ``elect`` over those that agree with the
    elected sign, or ``mean`` over those divided by the sum of their weights; ``weights`` are
    ``even`` (one weight and one scale, above 0) or ``uneven``; ``kind`` is that of
    ``task_vectors``; ``place`` is ``stored`` where all inputs and the result are bfloat16, else
    ``rows``.

    inputs, params, counts, stats: as for ``task_vectors``.
    """
    words = name.split("_")
    if words[:2] == ["merge", "1"] and len(words) == 4:
        return _merge_of_one(words[2], stored=words[3] == "stored")
    if words[:2] == ["merge", "2"] and len(words) == 6:
        return _merge_of_two(
            words[2], words[4], even=words[3] == "even", stored=words[5] == "stored"
        )
    raise AttributeError(name)
