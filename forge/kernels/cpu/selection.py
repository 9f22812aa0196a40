"""Exact top-k by magnitude without a sort.

The bit pattern of a non-negative float, read as an integer, orders like the float. So the k-th
largest magnitude is found digit by digit: a histogram over the highest 16 bits names the bin
that holds it, a second one over the next 16 bits within that bin, and so on (two passes for
float32, four for float64). Ties are settled by position: among equal magnitudes the lowest
index wins, so that exactly k are kept, always the same ones.

A *bound* (bits, quota) describes the first k elements in the order "greater magnitude first,
then lower index": inside are the elements whose bits exceed ``bits``, and the first ``quota`` of
those whose bits equal them. A kernel meets the elements of a tensor in order, so it need only
count the equal ones that it has passed.

Imported only to compile.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.layout import BLOCK, DIGIT_BINS
from forge.kernels.cpu.memory import bits_of, inlined, is_double, read_block

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
        # Unsigned, one comparison tells both borders.
        span = np.uint64(last - first)
        for i in range(size):
            above = np.uint64(magnitude_bits(x[i])) - np.uint64(first)
            if above < span:
                histogram[(above >> below) & mask] += 1


@inlined
def count_equal(x, size, bits):
    """Return how many elements have exactly these magnitude bits."""
    found = np.int32(0)
    for i in range(size):
        found += np.int32(np.int64(magnitude_bits(x[i])) == bits)
    return np.int64(found)


@inlined
def keep_inside(x, size, bits, quota, seen):
    """Zero what lies outside a bound.

    Args:
        x: The next elements of the tensor.
        size: How many.
        bits: The bound's magnitude.
        quota: How many elements of that magnitude are inside.
        seen: How many of them came before ``x``.

    Returns:
        How many there are up to the end of ``x``.
    """
    zero = x.dtype.type(0)
    equal = count_equal(x, size, bits)
    if seen + equal <= quota or seen >= quota:
        # All or none of the ties of this block are inside: one comparison decides.
        least = bits if seen + equal <= quota else bits + 1
        for i in range(size):
            x[i] = x[i] if np.int64(magnitude_bits(x[i])) >= least else zero
    else:
        left = quota - seen
        for i in range(size):
            here = np.int64(magnitude_bits(x[i]))
            inside = here > bits
            if here == bits:
                inside = left > 0
                left -= 1
            if not inside:
                x[i] = zero
    return seen + equal


@inlined
def drop_inside(x, size, bits, quota, seen):
    """Zero what lies inside a bound; arguments and result as in ``keep_inside``."""
    zero = x.dtype.type(0)
    equal = count_equal(x, size, bits)
    if seen + equal <= quota or seen >= quota:
        least = bits if seen + equal <= quota else bits + 1
        for i in range(size):
            x[i] = zero if np.int64(magnitude_bits(x[i])) >= least else x[i]
    else:
        left = quota - seen
        for i in range(size):
            here = np.int64(magnitude_bits(x[i]))
            inside = here > bits
            if here == bits:
                inside = left > 0
                left -= 1
            if inside:
                x[i] = zero
    return seen + equal


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
