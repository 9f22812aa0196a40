"""The loops of DELLA: drop by rank within a row; ``ranks`` finds the ranks.

Imported only to compile.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from forge.kernels.cpu.lanes import F32, F64, I16, I32, I64, Emitter, Lanes, emitted
from forge.kernels.cpu.layout import BLOCK, GROUP, PADDING, STRIPES
from forge.kernels.cpu.memory import inlined, pointer, words_of
from forge.kernels.cpu.philox import LOWER, UPPER, fill, fill_at
from forge.kernels.cpu.ranks import rank, shorts_at, survey_shorts, survey_singles, words_at

_RANGE = 4294967296.0
_HALF_RANGE = 65536.0
_HALF = np.uint32(16)
_LANES = 16


@emitted
def _read(
    emitter: Emitter, reader: Lanes, address: Lanes, start: Lanes, count: Lanes, target: Lanes
) -> None:
    """Widen a row of any format."""
    emitter.call(reader, address, start, count, target)


@emitted
def _copy(emitter: Emitter, count: Lanes, source: Lanes, target: Lanes) -> None:
    """Copy an even number of bytes: the few that do not fill a vector."""
    with emitter.steps(count, 2) as (i,):
        emitter.load(source + i, I16).store(target + i)


def _drop_ranked(
    emitter: Emitter, count: Lanes, whole: Lanes, ranks: Lanes, halves: Lanes, target: Lanes,
    rest: Lanes, inverse: Lanes, lowest: Lanes, step: Lanes,
) -> Lanes:  # fmt: skip
    """Write factors by rank and the upper halves of random words; tell where those do not decide.

    From element ``whole`` on, they are written to ``rest``.
    """
    one, zero = (emitter.number(value, F32).splat(_LANES) for value in (1.0, 0.0))
    with emitter.steps(count, _LANES, emitter.number(0, I16)) as (i, undecided):
        # As the table of ``sparsify`` is made: in float64, rounded once more.
        ends = (ranks + (i << 1), ranks + (i << 1) + _LANES)
        whole_ranks = (emitter.load(end, I16, _LANES // 2).to(I32).to(F64) for end in ends)
        left, right = ((rank * step + lowest).to(F32) for rank in whole_ranks)
        p = left.joined(right)
        scaled = inverse.differs(0).choose(one / p, one)
        border = (p * _HALF_RANGE).to(I32)
        half = emitter.load(halves + (i << 2), I32, _LANES)
        at = (i < whole).choose(target + (i << 2), rest)
        (half < border).choose(scaled, zero).store(at)
        undecided[0] |= half.equals(border).bits_as(I16)
    return undecided[0].to(I64)


_drop_ranked = emitted(_drop_ranked, reals=2)


@inlined
def _settle(ranks, chances, halves, lower, size, result, inverse):
    """Decide from all 32 bits where the upper halves did not."""
    zero = np.float32(0)
    one = np.float32(1)
    for i in range(size):
        p = chances[np.uint64(ranks[i])]
        if halves[i] == np.uint32(p * np.float32(_HALF_RANGE)):
            word = np.float64(np.uint32(np.uint32(halves[i] << _HALF) | lower[i]))
            kept = one / p if inverse else one
            result[i] = kept if word < np.float64(p) * _RANGE else zero


@inlined
def _drop_rows(ranks_at, chances, target, start, count, key, stream, params, upper_at, rest, work):
    """Write the factors of ``count`` elements from ``start``."""
    lower_at = np.int64(work.ctypes.data)
    inverse = np.int64(params[0] != 0.0)
    for offset in range(0, count, BLOCK):
        left = count - offset
        size = left if left < BLOCK else BLOCK
        lead = (start + offset) % GROUP
        first = start + offset - lead
        fill_at(upper_at, key, stream, first, lead + size, UPPER)
        whole = size // _LANES * _LANES
        padded = (size + _LANES - 1) // _LANES * _LANES
        ranks = ranks_at + 2 * offset
        to = target + 4 * offset
        undecided = _drop_ranked(
            padded, whole, ranks, upper_at + 4 * lead, to, rest, inverse, params[1], params[2]
        )
        _copy(4 * (size - whole), rest, to + 4 * whole)
        if undecided:
            fill_at(lower_at, key, stream, first, lead + size, LOWER)
            result = carray(pointer(to), size, np.float32)
            halves = words_at(upper_at + 4 * lead, size)
            lower = words_at(lower_at + 4 * lead, size)
            _settle(shorts_at(ranks, size), chances, halves, lower, size, result, inverse)


@inlined
def _is_decided(chances, halves, size):
    """Tell whether the upper halves alone tell on which side of p every random word lies."""
    whole = chances.dtype.type(_HALF_RANGE)
    undecided = np.int32(0)
    for i in range(size):
        above = chances[i] * whole - chances.dtype.type(halves[i])
        undecided += np.int32((above > 0) & (above < 1))
    return undecided == 0


@inlined
def _drop(chances, halves, size, inverse):
    """Turn the chance p of each element into its factor."""
    zero = chances.dtype.type(0)
    one = chances.dtype.type(1)
    whole = chances.dtype.type(_HALF_RANGE)
    for i in range(size):
        p = chances[i]
        kept = one / p if inverse else one
        chances[i] = kept if chances.dtype.type(halves[i]) < p * whole else zero


@inlined
def _drop_exactly(chances, halves, lower, size, inverse):
    """As ``_drop``, from all 32 bits."""
    zero = chances.dtype.type(0)
    one = chances.dtype.type(1)
    for i in range(size):
        p = chances[i]
        kept = one / p if inverse else one
        word = np.float64(np.uint32(np.uint32(halves[i] << _HALF) | lower[i]))
        chances[i] = kept if word < np.float64(p) * _RANGE else zero


def factors(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write one factor for each element: 0 when it is dropped, else 1/p or 1.

    inputs: the base and one model, of rows of ``width`` elements. params: 1 to divide by p · p of
    rank 0 · what p grows by with each rank. counts: address of the factors (float32[count]) · key ·
    stream · address of p of every rank (float32[width]) · of scratch (see ``sparsify``) · binary
    logarithm of the steps of a stripe · rows that are worked on together · 1 when both inputs are
    bfloat16 · 1 when a step has two buckets. ``start`` is the position of the first row in the
    tensor, and cuts fall between rows. float32 only.
    """
    num_rows = count // width
    whole = width // PADDING * PADDING
    padded = (width + PADDING - 1) // PADDING * PADDING
    target, key, stream = counts[0], counts[1], counts[2]
    chances = carray(pointer(counts[3]), width, np.float32)
    found_at, stripe_bits, together = counts[4], counts[5], counts[6]
    is_short, pairs = counts[7], counts[8]
    rest = found_at + 64
    ends = rest + 64
    halves = ends + 4 * PADDING
    magnitudes = halves + 4 * (BLOCK + GROUP)
    widened = magnitudes + 4 * padded
    scratch = widened + 8 * padded
    ranks = scratch + (6 * padded + 2 * PADDING) + (2 * STRIPES << stripe_bits)
    found = carray(pointer(found_at), 4, np.int64)
    for first in range(0, num_rows, together):
        left = num_rows - first
        rows = left if left < together else together
        for row in range(rows):
            place = start + (first + row) * width
            if is_short:
                base = inputs[0] + 2 * place
                model = inputs[1] + 2 * place
                # The zeros behind what is copied stay, because all rows are of one width.
                _copy(2 * (width - whole), base + 2 * whole, ends)
                _copy(2 * (width - whole), model + 2 * whole, ends + 2 * PADDING)
                survey_shorts(
                    padded, whole, base, model, ends, ends + 2 * PADDING, magnitudes, found_at
                )
            else:
                base = widened
                model = widened + 4 * padded
                _read(readers[0], inputs[0], place, width, base)
                _read(readers[1], inputs[1], place, width, model)
                survey_singles(padded, padded, base, model, 0, 0, magnitudes, found_at)
            to = ranks + 2 * row * width
            rank(magnitudes, width, padded, found, scratch, pairs, stripe_bits, to)
        _drop_rows(
            ranks, chances, target + 4 * first * width, start + first * width, rows * width, key,
            stream, params, halves, rest, work,
        )  # fmt: skip


def drop(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Turn p of every element into its factor: 0 when it is dropped, else 1/p or 1.

    params: 1 to divide by p. counts: address of the elements (work type) · key · stream.
    """
    result = carray(pointer(counts[0]), count, work.dtype)
    inverse = params[0] != 0.0
    words = words_of(work, 2)
    stride = BLOCK - GROUP  # room for a first group that begins before the block
    for offset in range(0, count, stride):
        size = min(stride, count - offset)
        lead = (start + offset) % GROUP
        first = start + offset - lead
        fill(words, counts[1], counts[2], first, lead + size, UPPER)
        chances = result[offset : offset + size]
        halves = words[lead : lead + size]
        if _is_decided(chances, halves, size):
            _drop(chances, halves, size, inverse)
        else:
            rest = words_of(work, 1)
            fill(rest, counts[1], counts[2], first, lead + size, LOWER)
            _drop_exactly(chances, halves, rest[lead : lead + size], size, inverse)
