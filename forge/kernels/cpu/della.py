"""The loops of DELLA: rank within a row, drop by rank.

Each element becomes one 32-bit key, what fits of its magnitude above and its inverted column
below, so that a plain sort of the row ranks it: smallest first and, among equal magnitudes, the
lowest column last, which counts as the largest. The sort itself is numpy's, which takes half the
time for keys of 32 bits that it takes for keys of 64.

Beside the column there is no room for all 31 bits of a magnitude. But the magnitudes of a row
span few octaves, so the bits are counted from the smallest magnitude that is not zero, and
differences of bfloat16 numbers end in zeros. What still does not fit is cut off; the full
magnitudes wait in the place of the factors, and rows that lost a bit are put in order by them
after the sort. Imported only to compile.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from forge.kernels.cpu.layout import BLOCK
from forge.kernels.cpu.memory import bits_of, inlined, pointer, read_block
from forge.kernels.cpu.philox import GROUP, fill
from forge.kernels.cpu.selection import magnitude_bits

_RANGE = 4294967296.0
_HALF_RANGE = 65536.0
_ONE = np.uint32(1)
_ALIGNED = np.uint32(0xFFFF0000)
_WORD = np.uint64(32)
_HALF = np.uint32(16)
_MANTISSA = np.uint64(52)
_BIAS = 1022
_MOVES = 8


@inlined
def _part(address, start, count):
    """View uint32 numbers from ``start``; a view that begins at 0 needs no signed offsets.

    numba checks a signed sum for wrapping wherever it is an index, and then nothing vectorizes.
    """
    return carray(pointer(address + 4 * start), count, np.uint32)


@inlined
def _row_keys(magnitudes, target, width, column_bits):
    """Write the keys of one row; return the bits that they lack, 0 when they are exact."""
    greatest = np.uint32(0)
    below = np.uint32(0xFFFFFFFF)
    for i in range(width):
        magnitude = magnitudes[i]
        less = np.uint32(magnitude - _ONE)  # 0 wraps around and does not count
        greatest = max(greatest, magnitude)
        below = min(below, less)
    # Aligned beyond all that can be cut off, the floor leaves zeros at the end as they are.
    floor = np.uint32(below & _ALIGNED)
    span = np.int64(greatest) - np.int64(floor)
    # The exponent of a number tells how many bits it has.
    span_bits = np.int64(bits_of(np.float64(max(span, 0))) >> _MANTISSA) - _BIAS
    cut = max(span_bits + column_bits - 32, 0)
    scale = np.uint32(np.int64(1) << (column_bits - cut))
    lost = np.uint32((np.int64(1) << cut) - 1)
    high = np.uint32(0xFFFFFFFF - ((np.int64(1) << column_bits) - 1))
    missing = np.uint32(0)
    last = np.uint32(width - 1)
    for i in range(width):
        # numba widens uint32 arithmetic; LLVM narrows a product again, but not a shift.
        height = np.uint32(max(magnitudes[i], floor) - floor)
        missing |= np.uint32(height & lost)
        target[i] = np.uint32(height * scale) & high | np.uint32(last - np.uint32(i))
    return missing


def keys(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write the magnitudes of the rows of one task vector, and their keys.

    inputs: the base and one model. counts: address of the magnitudes (uint32[count]) · of the
    keys (uint32[count]), 0 for none · of one uint32 a row, not 0 when its keys are inexact · bits
    for the column, at most 16. Cuts fall between rows. float32 only.
    """
    missing = _part(counts[2], 0, count // width)
    base = work[0]
    x = work[1]
    row = 0
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        read_block(readers[0], inputs[0], start + offset, size, work, 0)
        read_block(readers[1], inputs[1], start + offset, size, work, 1)
        magnitudes = _part(counts[0], offset, size)
        for i in range(size):
            magnitudes[i] = magnitude_bits(x[i] - base[i])
        if counts[1] != 0:
            while (row + 1) * width <= offset + size:
                magnitudes = _part(counts[0], row * width, width)
                target = _part(counts[1], row * width, width)
                missing[row] = _row_keys(magnitudes, target, width, counts[3])
                row += 1


@inlined
def _order(magnitudes, sorted_keys, last, mask, width):
    """Put the keys of a row in the order of the full magnitudes that they stand for.

    The few elements that are out of order move a few places. Where they turn out to be many, a
    Shell sort takes over, so that no row takes quadratic time.
    """
    moves = _MOVES * width
    previous = np.uint32(0)
    for i in range(width):
        key = sorted_keys[i]
        magnitude = magnitudes[last - np.uint64(key & mask)]
        if magnitude >= previous:
            previous = magnitude
            continue
        place = i
        while place > 0:
            other = sorted_keys[place - 1]
            if magnitudes[last - np.uint64(other & mask)] <= magnitude:
                break
            sorted_keys[place] = other
            place -= 1
        sorted_keys[place] = key
        moves -= i - place
        if moves < 0:
            _shell_sort(magnitudes, sorted_keys, last, mask, width)
            return


@inlined
def _wide_key(magnitudes, key, last, mask):
    column = np.uint64(key & mask)
    return (np.uint64(magnitudes[last - column]) << _WORD) | column


@inlined
def _shell_sort(magnitudes, sorted_keys, last, mask, width):
    gap = 1
    while gap < width // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, width):
            key = sorted_keys[i]
            wide = _wide_key(magnitudes, key, last, mask)
            place = i
            while place >= gap:
                other = sorted_keys[place - gap]
                if _wide_key(magnitudes, other, last, mask) <= wide:
                    break
                sorted_keys[place] = other
                place -= gap
            sorted_keys[place] = key
        gap //= 3


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
    """Turn sorted keys into one factor an element: 0 when dropped, else 1/p or 1.

    params: 1 to divide by p. counts: address of the sorted keys (uint32[count]) · of the factors
    (work type), which hold the magnitudes of the rows whose keys are inexact · of one uint32 a
    row, not 0 when they are · of p of every rank (work type) · bits for the column · key ·
    stream. ``start`` is the position of the first row in the tensor.
    """
    missing = _part(counts[2], 0, count // width)
    chances = carray(pointer(counts[3]), width, work.dtype)
    mask = np.uint32((np.int64(1) << counts[4]) - 1)
    last = np.uint64(width - 1)
    for row in range(count // width):
        sorted_keys = _part(counts[0], row * width, width)
        if missing[row] != 0:
            magnitudes = _part(counts[1], row * width, width)
            _order(magnitudes, sorted_keys, last, mask, width)
        result = carray(pointer(counts[1] + row * width * work.itemsize), width, work.dtype)
        for rank in range(width):
            result[last - np.uint64(sorted_keys[rank] & mask)] = chances[rank]
    words = work[2].view(np.uint32)
    stride = BLOCK - GROUP  # room for a first group that begins before the block
    for offset in range(0, count, stride):
        size = min(stride, count - offset)
        lead = (start + offset) % GROUP
        fill(words, counts[5], counts[6], start + offset - lead, lead + size, 0)
        result = carray(pointer(counts[1] + offset * work.itemsize), size, work.dtype)
        halves = _part(words.ctypes.data, lead, size)
        inverse = params[0] != 0.0
        if _is_decided(result, halves, size):
            _drop(result, halves, size, inverse)
        else:
            rest = work[1].view(np.uint32)
            fill(rest, counts[5], counts[6], start + offset - lead, lead + size, 1)
            lower = _part(rest.ctypes.data, lead, size)
            _drop_exactly(result, halves, lower, size, inverse)
