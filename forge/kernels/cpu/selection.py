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
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from forge.kernels.cpu.compiler import inlined
from forge.kernels.cpu.layout import BLOCK, DIGIT_BINS, WINDOW_WORDS
from forge.kernels.cpu.memory import bits_of, is_double, pointer, read_block

_MOST32 = np.int64(0x7FFFFFFE)
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
def _border(zero, bits):
    """Return the bits of a bound in the type of ``magnitude_bits``, which vector lanes compare."""
    if is_double(zero):
        return np.int64(bits)
    return np.int32(min(bits, _MOST32))


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
        How many there are up to the end of ``x``, and how many numbers other than 0 are inside.
    """
    zero = x.dtype.type(0)
    kept = np.int32(0)
    equal = np.int32(0)
    border = _border(zero, bits)
    # While all ties of a block are inside, or none is, one comparison decides.
    decided = seen >= quota or seen + size <= quota
    if not decided:
        ties = count_equal(x, size, bits)
        decided = seen + ties <= quota
    if decided:
        least = _border(zero, bits if seen < quota else bits + 1)
        for i in range(size):
            here = magnitude_bits(x[i])
            inside = here >= least
            equal += np.int32(here == border)
            kept += np.int32(inside & (here != 0))
            x[i] = x[i] if inside else zero
        return seen + np.int64(equal), kept
    left = quota - seen
    for i in range(size):
        here = np.int64(magnitude_bits(x[i]))
        inside = here > bits
        if here == bits:
            inside = left > 0
            left -= 1
            equal += np.int32(1)
        if not inside:
            x[i] = zero
        kept += np.int32(x[i] != zero)
    return seen + np.int64(equal), kept


@inlined
def drop_inside(x, size, bits, quota, seen):
    """Zero what lies inside a bound; return how many elements equal it up to the end of ``x``.

    The arguments are those of ``keep_inside``.
    """
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


@intrinsic
def _compress(typingctx, zero, source, least, span, target):
    """Store the magnitudes of 64 bytes that lie ``span`` or less above ``least``; count them.

    ``source`` and ``target`` are addresses, ``zero`` tells the type. All 64 bytes at ``target`` are
    written, of which the first ones count.
    """
    bits, lanes = (64, 8) if zero == types.float64 else (32, 16)

    def codegen(context, builder, signature, args):
        lane = ir.IntType(bits)
        vector = ir.VectorType(lane, lanes)
        mask = ir.VectorType(ir.IntType(1), lanes)

        def spread(value):
            return ir.Constant(vector, [value] * lanes)

        def splat(value):
            first = builder.insert_element(
                ir.Constant(vector, ir.Undefined), builder.trunc(value, lane), ir.IntType(32)(0)
            )
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
            return builder.shuffle_vector(first, first, zeros)

        place = builder.inttoptr(args[1], vector.as_pointer())
        magnitudes = builder.and_(builder.load(place, align=4), spread((1 << (bits - 1)) - 1))
        inside = builder.icmp_unsigned(
            "<=", builder.sub(magnitudes, splat(args[2])), splat(args[3])
        )
        # Not the instruction that stores what it compresses: it takes a hundred cycles on Zen 4.
        compress = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector, mask, vector]),
            f"llvm.experimental.vector.compress.v{lanes}i{bits}",
        )
        nothing = ir.Constant(vector, ir.Undefined)
        packed = builder.call(compress, [magnitudes, inside, nothing])
        builder.store(packed, builder.inttoptr(args[4], vector.as_pointer()), align=4)
        return builder.zext(
            builder.ctpop(builder.bitcast(inside, ir.IntType(lanes))), ir.IntType(64)
        )

    return types.int64(zero, *[types.int64] * 4), codegen


@inlined
def _gather(x, size, counts, at):
    """Count a block by one window, and append what lies strictly inside to its array."""
    zero = x.dtype.type(0)
    least = _border(zero, counts[at + 1])
    greatest = _border(zero, counts[at + 2])
    above = np.int32(0)
    on_top = np.int32(0)
    inside = np.int32(0)
    on_bottom = np.int32(0)
    for i in range(size):
        here = magnitude_bits(x[i])
        above += np.int32(here > greatest)
        on_top += np.int32(here == greatest)
        inside += np.int32((here > least) & (here < greatest))
        on_bottom += np.int32(here == least)
    known = counts[at + 7]
    counts[at + 5] += np.int64(above)
    counts[at + 6] += np.int64(on_top)
    counts[at + 7] += np.int64(inside)
    counts[at + 8] += np.int64(on_bottom)
    if (inside == 0) | (counts[at + 7] > counts[at + 4]):
        return
    source = x.ctypes.data
    target = counts[at + 3] + known * x.itemsize
    step = 64 // x.itemsize
    # Everything in a window that is not empty is at least 1 above and 1 below its borders.
    span = np.int64(greatest) - np.int64(least) - 2
    for _ in range(size // step):
        found = _compress(zero, source, np.int64(least) + 1, span, target)
        source += np.int64(64)
        target += found * x.itemsize
    for i in range(size // step * step, size):
        here = magnitude_bits(x[i])
        if (here > least) & (here < greatest):
            last = carray(pointer(target), 1, x.dtype)
            last[0] = abs(x[i])
            target += x.itemsize


def task_vector_window(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Count all task vectors by windows of magnitudes, and gather what is inside them.

    inputs: the base and the models. counts: the window layout of ``layout.py``.
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
            for at in range(0, len(counts), WINDOW_WORDS):
                if counts[at] == m:
                    _gather(x, size, counts, at)
