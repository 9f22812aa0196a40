"""Loops of the calibrated search: what rounding does to a scaled, shrunk or corrected weight.

All of them round as ``forge/quantize/methods/rtn.py`` does: with zero in a group's range,

    scale = max(high - low, 1e-5) / last    rounded to float16
    zero  = clamp(-round(low / scale), 0, last)
    code  = clamp(round(value / scale) + zero, 0, last)

and halves to even. A search tries some twenty scales and ten thresholds for every weight, so a
group is read once and worked on in a scratch row that stays in the first-level cache.

Word kernels, compiled by numba; every argument is an int64. Legend: R rows of a weight, I input
features, G groups, g features of a group, K thresholds.
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
    single_of,
)

_ROWS_AT_ONCE = 4
# Adding and subtracting 1.5 * 2**23 rounds a float32 below 2**22 to an integer, half to even.
_ROUNDER = np.float32(12582912.0)
_LEAST_RANGE = np.float32(1e-5)
_ZERO = np.float32(0.0)


@inlined
def _clamp(value, low, high):
    # Written out, because the built-in functions order NaN and cost three times as much.
    value = low if value < low else value
    return high if value > high else value


@inlined
def _round(value):
    # Codes end at 255; what is far beyond is clamped there anyway, and stays exact here.
    return (_clamp(value, np.float32(-4096.0), np.float32(4096.0)) + _ROUNDER) - _ROUNDER


@inlined
def _code(value, step, zero, last):
    return _clamp(_round(value / step) + zero, _ZERO, last)


@inlined
def _range_of(x, size):
    """Return the least and greatest of zero and ``x[:size]``.

    Bits of float32 order like numbers: as signed integers those that are positive, as unsigned
    ones those that are negative, by magnitude. Maxima of integers are computed in vectors, which
    the rules for NaN forbid for maxima of floats.
    """
    positive = np.int32(0)
    negative = np.uint32(0x80000000)
    for i in range(size):
        bits = bits_of(x[i])
        signed = np.int32(bits)
        positive = signed if signed > positive else positive
        negative = bits if bits > negative else negative
    return single_of(negative), single_of(np.uint32(positive))


@inlined
def _step_of(low, high, last):
    """Return the scale's float16 bits, the scale, and the zero point."""
    bits = _half_of_single(bits_of(np.float32(max(high - low, _LEAST_RANGE) / last)))
    step = _single_of_half(np.uint32(bits))
    zero = _clamp(-_round(low / step), _ZERO, last)
    return bits, step, zero


def scaled_errors(
    weights, num_rows, num_inputs, group, last_code, scales, inverses, errors, work, wide
):
    """Store ``round_to_nearest(weights * scales) * inverses - weights``.

    By argument:
        weights: float32 [R, I].
        scales: float32 [I].
        inverses: float32 [I].
        errors: float32 [R, I] out.
        work: float32 [g].
        wide: Whether the groups' scales stay in float32, as in AutoAWQ's search.
    """
    w = carray(pointer(weights), (num_rows, num_inputs), np.float32)
    s = carray(pointer(scales), num_inputs, np.float32)
    inverse = carray(pointer(inverses), num_inputs, np.float32)
    e = carray(pointer(errors), (num_rows, num_inputs), np.float32)
    x = carray(pointer(work), group, np.float32)
    last = np.float32(last_code)
    for row in range(num_rows):
        for start in range(0, num_inputs, group):
            for i in range(group):
                x[i] = w[row, start + i] * s[start + i]
            low, high = _range_of(x, group)
            _, step, zero = _step_of(low, high, last)
            if wide:
                step = np.float32(max(high - low, _LEAST_RANGE) / last)
                zero = _clamp(-_round(low / step), _ZERO, last)
            for i in range(group):
                code = _code(x[i], step, zero, last)
                value = (code - zero) * step
                e[row, start + i] = value * inverse[start + i] - w[row, start + i]


def shrunk_errors(weights, num_rows, num_inputs, group, last_code, factors, num_factors, errors):
    """Store by how much a weight changes when its groups' extremes are cut and it is rounded.

    By argument:
        weights: float32 [R, I].
        factors: float32 [K]; of each group, magnitudes beyond a factor of its largest are cut.
        errors: float32 [G, K, R, g] out.
    """
    w = carray(pointer(weights), (num_rows, num_inputs), np.float32)
    factor = carray(pointer(factors), num_factors, np.float32)
    shape = (num_inputs // group, num_factors, num_rows, group)
    e = carray(pointer(errors), shape, np.float32)
    last = np.float32(last_code)
    for row in range(num_rows):
        for number in range(num_inputs // group):
            start = number * group
            x = carray(pointer(weights + 4 * (row * num_inputs + start)), group, np.float32)
            low, high = _range_of(x, group)
            largest = max(high, -low)
            for k in range(num_factors):
                limit = largest * factor[k]
                _, step, zero = _step_of(max(low, -limit), min(high, limit), last)
                for i in range(group):
                    value = _clamp(w[row, start + i], -limit, limit)
                    code = _code(value, step, zero, last)
                    e[number, k, row, i] = (code - zero) * step - w[row, start + i]


def codes_of(
    weights,
    num_rows,
    num_inputs,
    group,
    last_code,
    factors,
    codes,
    scales,
    zeros,
    errors,
):
    """Quantize rows whose groups are cut at a factor of their largest magnitude.

    By argument:
        weights: float32 [R, I].
        factors: float32 [R, G].
        codes: uint8 [R, I] out.
        scales: uint16 [R, G] out, bits of float16.
        zeros: uint8 [R, G] out.
        errors: float32 [R, I] out, the quantized weight minus the weight.
    """
    num_groups = num_inputs // group
    w = carray(pointer(weights), (num_rows, num_inputs), np.float32)
    factor = carray(pointer(factors), (num_rows, num_groups), np.float32)
    c = carray(pointer(codes), (num_rows, num_inputs), np.uint8)
    s = carray(pointer(scales), (num_rows, num_groups), np.uint16)
    z = carray(pointer(zeros), (num_rows, num_groups), np.uint8)
    e = carray(pointer(errors), (num_rows, num_inputs), np.float32)
    last = np.float32(last_code)
    for row in range(num_rows):
        for number in range(num_groups):
            start = number * group
            x = carray(pointer(weights + 4 * (row * num_inputs + start)), group, np.float32)
            low, high = _range_of(x, group)
            limit = max(high, -low) * factor[row, number]
            bits, step, zero = _step_of(max(low, -limit), min(high, limit), last)
            s[row, number] = bits
            z[row, number] = np.uint8(zero)
            for i in range(group):
                value = _clamp(w[row, start + i], -limit, limit)
                code = _code(value, step, zero, last)
                c[row, start + i] = np.uint8(code)
                e[row, start + i] = (code - zero) * step - w[row, start + i]


def feedback_codes(
    weights, num_rows, num_inputs, group, last_code, scales, zeros, factor, codes, errors, work
):
    """Round columns in order, and let those that follow make up for each one's error.

    With U the upper Cholesky factor of the inverse of the inputs' second moments, rounding column
    i with error d adds -d / U[i, i] * U[i, j] to every later column j (GPTQ).

    By argument:
        weights: float32 [R, I].
        scales: uint16 [R, G], bits of float16.
        zeros: uint8 [R, G].
        factor: float32 [I, I], U with each row divided by its diagonal.
        codes: uint8 [R, I] out.
        errors: float32 [R, I] out, the quantized weight minus the weight.
        work: float32 [_ROWS_AT_ONCE, I].
    """
    num_groups = num_inputs // group
    w = carray(pointer(weights), (num_rows, num_inputs), np.float32)
    s = carray(pointer(scales), (num_rows, num_groups), np.uint16)
    z = carray(pointer(zeros), (num_rows, num_groups), np.uint8)
    u = carray(pointer(factor), (num_inputs, num_inputs), np.float32)
    c = carray(pointer(codes), (num_rows, num_inputs), np.uint8)
    e = carray(pointer(errors), (num_rows, num_inputs), np.float32)
    x = carray(pointer(work), (_ROWS_AT_ONCE, num_inputs), np.float32)
    last = np.float32(last_code)
    for first in range(0, num_rows, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, num_rows - first)
        for r in range(_ROWS_AT_ONCE):
            for i in range(num_inputs):
                x[r, i] = w[first + r, i] if r < count else _ZERO
        for i in range(num_inputs):
            number = i // group
            for r in range(count):
                row = first + r
                step = _single_of_half(np.uint32(s[row, number]))
                zero = np.float32(z[row, number])
                code = _code(x[r, i], step, zero, last)
                value = (code - zero) * step
                c[row, i] = np.uint8(code)
                e[row, i] = value - w[row, i]
                x[r, i] = value - x[r, i]
            d0, d1, d2, d3 = x[0, i], x[1, i], x[2, i], x[3, i]
            for j in range(i + 1, num_inputs):
                factor_ij = u[i, j]
                x[0, j] += d0 * factor_ij
                x[1, j] += d1 * factor_ij
                x[2, j] += d2 * factor_ij
                x[3, j] += d3 * factor_ij
