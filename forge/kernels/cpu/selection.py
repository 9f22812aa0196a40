"""Exact top-k by magnitude without a sort.

The bit pattern of a non-negative float, read as an integer, orders like the float. So the k-th
largest magnitude is found digit by digit: a histogram over the highest 16 bits names the bin
that holds it, a second one over the next 16 bits within that bin, and so on (two passes for
float32, four for float64). Ties are settled by position: among equal magnitudes the lowest
index wins, so that exactly k are kept, always the same ones.

A *bound* (bits, index) describes the first k elements in the order "greater magnitude first,
then lower index": element i is inside when its bits exceed ``bits``, or equal them and
i < ``index``.

Imported only to compile.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.layout import DIGIT_BINS
from forge.kernels.cpu.memory import bits_of, inlined, is_double, read_block
from forge.kernels.cpu.native import BLOCK

_SIGN32 = np.uint32(0x7FFFFFFF)
_SIGN64 = np.uint64(0x7FFFFFFFFFFFFFFF)


@inlined
def magnitude_bits(value):
    """Return the bits of |value|: int32 for float32, int64 for float64."""
    if is_double(value):
        return np.int64(bits_of(value) & _SIGN64)
    return np.int32(bits_of(value) & _SIGN32)


@inlined
def count_digit(x, size, shift, digit_bits, prefix, histogram):
    """Count one digit of the magnitudes that begin with ``prefix``.

    Args:
        x: Values.
        size: Elements that count.
        shift: Bits below the digit.
        digit_bits: Width of the digit, at most 16.
        prefix: Bits above the digit, or -1 to count all (the first digit).
        histogram: int64[DIGIT_BINS], added to.
    """
    # Unsigned indices: numba checks signed ones for wrapping, at five times the cost.
    mask = np.uint64((1 << digit_bits) - 1)
    below = np.uint64(shift)
    if prefix < 0:
        for i in range(size):
            histogram[(np.uint64(magnitude_bits(x[i])) >> below) & mask] += 1
    else:
        first = prefix << (shift + digit_bits)
        last = first + (np.int64(1) << (shift + digit_bits))
        # Few elements share the prefix, so whole blocks are passed over by a vector loop.
        hits = np.int32(0)
        for i in range(size):
            bits = np.int64(magnitude_bits(x[i]))
            hits += np.int32((bits >= first) & (bits < last))
        if hits:
            for i in range(size):
                bits = np.int64(magnitude_bits(x[i]))
                if first <= bits < last:
                    histogram[(np.uint64(bits) >> below) & mask] += 1


@inlined
def locate_equal(x, size, bits, rank):
    """Find the element that is the ``rank``-th (from 1) with these magnitude bits.

    Returns:
        Its index, or minus one minus the number of equal elements when there are fewer.
    """
    found = np.int32(0)
    for i in range(size):
        found += np.int32(np.int64(magnitude_bits(x[i])) == bits)
    if found < rank:
        return np.int64(-1) - np.int64(found)
    seen = np.int64(0)
    for i in range(size):
        if np.int64(magnitude_bits(x[i])) == bits:
            seen += 1
            if seen == rank:
                return np.int64(i)
    return np.int64(-1)


@inlined
def keep_inside(x, size, start, bits, index):
    """Zero what lies outside a bound; ``start`` is the position of ``x[0]`` in the tensor."""
    zero = x.dtype.type(0)
    if start + size <= index or start >= index:
        # All or none of the ties of this block are inside: one comparison decides.
        least = bits if start + size <= index else bits + 1
        for i in range(size):
            x[i] = x[i] if np.int64(magnitude_bits(x[i])) >= least else zero
    else:
        for i in range(size):
            here = np.int64(magnitude_bits(x[i]))
            if not (here > bits or (here == bits and start + i < index)):
                x[i] = zero


@inlined
def drop_inside(x, size, start, bits, index):
    """Zero what lies inside a bound."""
    zero = x.dtype.type(0)
    if start + size <= index or start >= index:
        least = bits if start + size <= index else bits + 1
        for i in range(size):
            x[i] = zero if np.int64(magnitude_bits(x[i])) >= least else x[i]
    else:
        for i in range(size):
            here = np.int64(magnitude_bits(x[i]))
            if here > bits or (here == bits and start + i < index):
                x[i] = zero


@inlined
def count_targets(x, size, source, counts):
    """Count one digit for every target whose values are those of ``source``; see ``layout.py``."""
    num_targets = (len(counts) - 2) // (2 + DIGIT_BINS)
    for target in range(num_targets):
        if counts[2 + num_targets + target] == source:
            first = 2 + 2 * num_targets + DIGIT_BINS * target
            count_digit(
                x,
                size,
                counts[0],
                counts[1],
                counts[2 + target],
                counts[first : first + DIGIT_BINS],
            )


@inlined
def advance_rank(x, size, position, counts):
    """Look for the element of rank ``counts[1]`` among those with bits ``counts[0]``.

    Returns:
        Whether it is in this block; then ``counts[2]`` holds its position in the tensor.
    """
    found = locate_equal(x, size, counts[0], counts[1])
    if found >= 0:
        counts[2] = position + found
        return True
    counts[1] += found + 1
    return False


def task_vector_digits(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Count one digit of the magnitudes of all task vectors.

    inputs: the base and the models. counts: the digit layout of ``layout.py``.
    """
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        read_block(readers[0], inputs[0], start + offset, size, work, 0)
        base = work[0]
        x = work[1]
        for m in range(len(inputs) - 1):
            read_block(readers[1 + m], inputs[1 + m], start + offset, size, work, 1)
            for i in range(size):
                x[i] -= base[i]
            count_targets(x, size, m, counts)


def task_vector_equal(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Find the position of the r-th element whose task vector has given magnitude bits.

    inputs: the base and one model. counts: bits, r (from 1; lowered as equals are passed), the
    position found or -1.
    """
    if counts[2] >= 0:
        return
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        read_block(readers[0], inputs[0], start + offset, size, work, 0)
        read_block(readers[1], inputs[1], start + offset, size, work, 1)
        base = work[0]
        x = work[1]
        for i in range(size):
            x[i] -= base[i]
        if advance_rank(x, size, start + offset, counts):
            return
