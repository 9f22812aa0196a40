"""Codes into numbers: each code's value times the scale of its group, rounded as its library does.

A row is computed in a scratch row of float32 that stays in the cache, in the steps in which the
format's own library computes it: value, scale, a second factor, the rounding to the type in which
the library multiplies, the rounding to the type that is asked for. Each step is a plain loop, so
the compiler turns it into vector instructions; codes of a table are gathered.

A word kernel, compiled by numba; every argument is an int64. Float types: 0 bfloat16, 1 float16,
2 float32. Legend: O output features, I input features, G groups.
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
    shifted,
    single_of,
)

_SIXTEEN = np.uint32(16)


@inlined
def _brain_of_single(bits):
    """Return the bits of the nearest bfloat16, ties to even; a NaN stays one."""
    odd = shifted(bits, _SIXTEEN) & np.uint32(1)
    rounded = shifted(np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd), _SIXTEEN)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.uint16(np.uint32(0x7FC0) if is_nan else rounded)


@inlined
def _multiply(c, x, start, end, scale, zero, values):
    """Fill ``x[start:end]`` with values times one scale."""
    if values:
        table = carray(pointer(values), 256, np.float32)
        for i in range(start, end):
            x[i] = table[c[i]] * scale
    else:
        for i in range(start, end):
            x[i] = np.float32(np.int32(c[i]) - zero) * scale


@inlined
def _round(x, count, kind):
    if kind == 0:
        for i in range(count):
            x[i] = single_of(np.uint32(_brain_of_single(bits_of(x[i]))) << _SIXTEEN)
    elif kind == 1:
        for i in range(count):
            x[i] = _single_of_half(np.uint32(_half_of_single(bits_of(x[i]))))


@inlined
def _store(x, count, kind, output, start):
    if kind == 0:
        brains = carray(pointer(output + 2 * start), count, np.uint16)
        for i in range(count):
            brains[i] = _brain_of_single(bits_of(x[i]))
    elif kind == 1:
        halves = carray(pointer(output + 2 * start), count, np.uint16)
        for i in range(count):
            halves[i] = _half_of_single(bits_of(x[i]))
    else:
        singles = carray(pointer(output + 4 * start), count, np.float32)
        for i in range(count):
            singles[i] = x[i]


def numbers_of_codes(
    codes, values, zeros, scales, places, num_rows, num_columns, num_groups, group, factor,
    precision, kind, work, output,
):  # fmt: skip
    """Turn rows of codes into numbers.

    By argument:
        codes: uint8 [O, I].
        values: float32 [256], the value of each code; 0 when a code is its own value.
        zeros: uint8 [O, G], subtracted from codes that have no table; 0 when there are none.
        scales: float32 [O, G].
        places: int32 [I], the group of each column; 0 when column i lies in group i // group.
        num_groups: G.
        group: Columns of a group; the last one may have fewer.
        factor: float32 [1], multiplied after the scale.
        precision: Float type to which the product is rounded first; 2 leaves it.
        kind: Float type of the output.
        work: float32 [I].
        output: [O, I] out.
    """
    x = carray(pointer(work), num_columns, np.float32)
    s = carray(pointer(scales), num_rows * num_groups, np.float32)
    f = carray(pointer(factor), 1, np.float32)[0]
    for row in range(num_rows):
        c = carray(pointer(codes + row * num_columns), num_columns, np.uint8)
        first = row * num_groups
        if places:
            p = carray(pointer(places), num_columns, np.int32)
            for i in range(num_columns):
                at = first + np.int64(p[i])
                zero = np.int32(0)
                if zeros:
                    zero = np.int32(carray(pointer(zeros + at), 1, np.uint8)[0])
                x[i] = np.float32(np.int32(c[i]) - zero) * s[at]
        else:
            for number in range(num_groups):
                start = number * group
                zero = np.int32(0)
                if zeros:
                    zero = np.int32(carray(pointer(zeros + first + number), 1, np.uint8)[0])
                _multiply(c, x, start, min(start + group, num_columns), s[first + number], zero,
                          values)  # fmt: skip
        if f != np.float32(1.0):
            for i in range(num_columns):
                x[i] *= f
        _round(x, num_columns, precision)
        _store(x, num_columns, kind, output, row * num_columns)
