"""Round to nearest, in one pass over a weight as it lies in its file.

Each group is widened to float32 in a scratch row that stays in the first-level cache, where its
range is found and its codes are rounded; ``forge/quantize/methods/rtn.py`` has the formulas.

A word kernel, compiled by numba; every argument is an int64. Kinds of input: 0 bfloat16,
1 float16, 2 float32. Legend: O output features, I input features, G groups, g features of a
group.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from forge.kernels.cpu.memory import (
    _half_of_single,
    _single_of_half,
    bits_of,
    inlined,
    pointer,
    prefetch_block,
    single_of,
)

# Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 to an integer, half to even.
_ROUNDER = np.float32(12582912.0)
_LEAST_RANGE = np.float32(1e-5)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = np.uint32(0x7F800000)


@inlined
def _widen(source, kind, start, count, x):
    """Widen elements into ``x``; return the least and the greatest of them and zero, as bits.

    As signed integers, the bits of positive float32 order like numbers; as unsigned ones, those
    of negative float32 order like magnitudes. NaN lies beyond infinity in both.
    """
    positive = np.int32(0)
    negative = np.uint32(0x80000000)
    if kind == 0:
        words = carray(pointer(source + 2 * start), count, np.uint16)
        for i in range(count):
            bits = np.uint32(words[i]) << np.uint32(16)
            x[i] = single_of(bits)
            positive = max(positive, np.int32(bits))
            negative = max(negative, bits)
    elif kind == 1:
        words = carray(pointer(source + 2 * start), count, np.uint16)
        for i in range(count):
            value = _single_of_half(np.uint32(words[i]))
            bits = bits_of(value)
            x[i] = value
            positive = max(positive, np.int32(bits))
            negative = max(negative, bits)
    else:
        singles = carray(pointer(source + 4 * start), count, np.float32)
        for i in range(count):
            value = singles[i]
            bits = bits_of(value)
            x[i] = value
            positive = max(positive, np.int32(bits))
            negative = max(negative, bits)
    return np.uint32(positive), negative


@inlined
def _round(value, limit):
    # Beyond the limit every number ends at the same code, and the trick would not be exact.
    value = -limit if value < -limit else value
    value = limit if value > limit else value
    return np.int32((value + _ROUNDER) - _ROUNDER)


def round_to_nearest(
    source, kind, num_rows, num_inputs, group, bits, symmetric, codes, scales, zeros, work, flags
):
    """Quantize rows.

    By argument:
        source: [O, I] elements whose format is ``kind``.
        bits: Of a code, at most 8.
        symmetric: 1 when the zero point is the middle code.
        codes: uint8 [O, I] out.
        scales: uint16 [O, G] out, bits of float16.
        zeros: uint8 [O, G] out.
        work: float32 [g].
        flags: int64 [1]; bit 0 is set when an element or a scale is not finite.
    """
    x = carray(pointer(work), group, np.float32)
    s = carray(pointer(scales), num_rows * (num_inputs // group), np.uint16)
    z = carray(pointer(zeros), num_rows * (num_inputs // group), np.uint8)
    last = np.int32((1 << bits) - 1)
    middle = np.int32(1 << (bits - 1))
    limit = np.float32(4 * (last + 1))
    width = np.int64(4) if kind == 2 else np.int64(2)
    bad = np.uint32(0)
    for number in range(num_rows * (num_inputs // group)):
        start = number * group
        prefetch_block(source + width * (start + 4 * group), width * group)
        positive, negative = _widen(source, kind, start, group, x)
        bad |= np.uint32(positive >= _INFINITY) | np.uint32((negative & _MAGNITUDE) >= _INFINITY)
        low, high = single_of(negative), single_of(positive)
        if symmetric:
            span = max(max(high, -low), _LEAST_RANGE) / np.float32(middle - 1)
        else:
            span = max(high - low, _LEAST_RANGE) / np.float32(last)
        half = _half_of_single(bits_of(np.float32(span)))
        bad |= np.uint32(half >= np.uint16(0x7C00))
        step = _single_of_half(np.uint32(half))
        zero = middle
        if not symmetric:
            zero = min(max(-_round(low / step, limit), np.int32(0)), last)
        s[number] = half
        z[number] = np.uint8(zero)
        c = carray(pointer(codes + start), group, np.uint8)
        for i in range(group):
            code = _round(x[i] / step, limit) + zero
            code = np.int32(0) if code < 0 else code
            c[i] = np.uint8(last if code > last else code)
    carray(pointer(flags), 1, np.int64)[0] |= np.int64(bad)
