"""Blockwise 4-bit codes and rowwise 8-bit codes of a weight, as bitsandbytes defines them.

A weight is read once, straight from the mapped file, in blocks that stay in the first-level
cache: widened to float32, scaled by its own largest magnitude, compared with all fifteen
boundaries between the sixteen code values. Comparing is free of branches and tables, so the
compiler turns it into vector instructions: 16 numbers a step, with AVX-512.

The boundaries are sorted, so a number passes the first k of them. Its code is then the exclusive
or of the first k entries of ``steps``: ones that lead from each code to the next, whatever the
order in which a format numbers its values.

Word kernels, compiled by numba; every argument is an int64. Kinds of input: 0 bfloat16,
1 float16, 2 float32. Legend: O output features, I input features.
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

_BLOCK = 64
_TINY = np.float32(1e-38)
_GREATEST = np.uint32(0x7F7FFFFF)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


@inlined
def _widen(source, kind, start, count, x):
    """Widen elements into ``x``; return the bits of the greatest magnitude as float32."""
    top = np.uint32(0)
    if kind == 0:
        words = carray(pointer(source + 2 * start), count, np.uint16)
        for i in range(count):
            bits = np.uint32(words[i]) << np.uint32(16)
            x[i] = single_of(bits)
            top = max(top, np.uint32(bits & _MAGNITUDE))
    elif kind == 1:
        words = carray(pointer(source + 2 * start), count, np.uint16)
        for i in range(count):
            value = _single_of_half(np.uint32(words[i]))
            x[i] = value
            top = max(top, np.uint32(bits_of(value) & _MAGNITUDE))
    else:
        singles = carray(pointer(source + 4 * start), count, np.float32)
        for i in range(count):
            value = singles[i]
            x[i] = value
            top = max(top, np.uint32(bits_of(value) & _MAGNITUDE))
    return top


def largest_of_blocks(source, kind, count, block, absmax, scratch, flags):
    """Store the largest magnitude of each block, as ``quantize_4bit`` does."""
    x = carray(pointer(scratch), block, np.float32)
    largest = carray(pointer(absmax), (count + block - 1) // block, np.float32)
    width = np.int64(4) if kind == 2 else np.int64(2)
    worst = np.uint32(0)
    for number in range((count + block - 1) // block):
        start = number * block
        length = min(block, count - start)
        prefetch_block(source + width * (start + 8 * block), width * block)
        top = _widen(source, kind, start, length, x)
        worst = max(worst, top)
        largest[number] = single_of(top) if length == block else max(single_of(top), _TINY)
    carray(pointer(flags), 1, np.int64)[0] |= np.int64(worst > _GREATEST)


@inlined
def _codes(x, codes, bounds, steps):
    b0, b1, b2, b3, b4 = bounds[0], bounds[1], bounds[2], bounds[3], bounds[4]
    b5, b6, b7, b8, b9 = bounds[5], bounds[6], bounds[7], bounds[8], bounds[9]
    b10, b11, b12, b13, b14 = bounds[10], bounds[11], bounds[12], bounds[13], bounds[14]
    s0, s1, s2, s3, s4 = steps[0], steps[1], steps[2], steps[3], steps[4]
    s5, s6, s7, s8, s9 = steps[5], steps[6], steps[7], steps[8], steps[9]
    s10, s11, s12, s13, s14 = steps[10], steps[11], steps[12], steps[13], steps[14]
    first = steps[15]
    none = np.int32(0)
    for i in range(_BLOCK):
        v = x[i]
        code = first ^ (s0 if v > b0 else none)
        code ^= s1 if v > b1 else none
        code ^= s2 if v > b2 else none
        code ^= s3 if v > b3 else none
        code ^= s4 if v > b4 else none
        code ^= s5 if v > b5 else none
        code ^= s6 if v > b6 else none
        code ^= s7 if v > b7 else none
        code ^= s8 if v > b8 else none
        code ^= s9 if v > b9 else none
        code ^= s10 if v > b10 else none
        code ^= s11 if v > b11 else none
        code ^= s12 if v > b12 else none
        code ^= s13 if v > b13 else none
        code ^= s14 if v > b14 else none
        codes[i] = np.uint8(code)


@inlined
def _pack(codes, target, num_bytes):
    """Put the first code of each pair into the high nibble."""
    for i in range(num_bytes):
        target[i] = np.uint8((codes[2 * i] << np.uint8(4)) | codes[2 * i + 1])


def quantize_4bit(source, kind, count, tables, absmax, packed, scratch, flags):
    """Quantize ``count`` elements in blocks of 64.

    Args:
        source: Address of the elements.
        kind: Their format.
        count: How many there are.
        tables: float32[15] boundaries, then int32[16]: what to flip at each, and the first code.
        absmax: float32[ceil(count / 64)] out.
        packed: uint8[ceil(count / 2)] out.
        scratch: 512 bytes.
        flags: int64[1]; bit 0 is set when an element is not finite.

    A last block of fewer elements is divided by its largest magnitude, and whole blocks are
    multiplied by its reciprocal: the two round differently, and bitsandbytes does both.
    """
    x = carray(pointer(scratch), _BLOCK, np.float32)
    codes = carray(pointer(scratch + 256), _BLOCK, np.uint8)
    bounds = carray(pointer(tables), 15, np.float32)
    steps = carray(pointer(tables + 60), 16, np.int32)
    largest = carray(pointer(absmax), (count + _BLOCK - 1) // _BLOCK, np.float32)
    width = np.int64(4) if kind == 2 else np.int64(2)
    one = np.float32(1.0)
    worst = np.uint32(0)
    for number in range(count // _BLOCK):
        start = number * _BLOCK
        prefetch_block(source + width * (start + 8 * _BLOCK), width * _BLOCK)
        top = _widen(source, kind, start, _BLOCK, x)
        worst = max(worst, top)
        most = single_of(top)
        largest[number] = most
        inverse = one / max(most, _TINY)
        for i in range(_BLOCK):
            x[i] = min(max(x[i] * inverse, -one), one)
        _codes(x, codes, bounds, steps)
        _pack(codes, carray(pointer(packed + start // 2), _BLOCK // 2, np.uint8), _BLOCK // 2)
    rest = count % _BLOCK
    if rest:
        start = count - rest
        for i in range(_BLOCK):
            x[i] = np.float32(0.0)
        top = _widen(source, kind, start, rest, x)
        worst = max(worst, top)
        most = max(single_of(top), _TINY)
        largest[count // _BLOCK] = most
        for i in range(rest):
            x[i] = min(max(x[i] / most, -one), one)
        _codes(x, codes, bounds, steps)
        num_bytes = (rest + 1) // 2
        _pack(codes, carray(pointer(packed + start // 2), num_bytes, np.uint8), num_bytes)
    carray(pointer(flags), 1, np.int64)[0] |= np.int64(worst > _GREATEST)


def quantize_rows(source, kind, rows, width, codes, largest, scratch, flags):
    """Quantize rows to int8 by their largest magnitude, in float16's precision.

    Args:
        source: Address of the elements.
        kind: Their format.
        rows: Number of rows.
        width: Elements of a row.
        codes: int8[rows, width] out.
        largest: float32[rows] out.
        scratch: float32[width].
        flags: int64[1]; bit 0 is set when an element is not finite, bit 1 when it is but exceeds
            float16.
    """
    x = carray(pointer(scratch), width, np.float32)
    scales = carray(pointer(largest), rows, np.float32)
    # Adding and taking away 1.5 * 2**23 leaves a whole number, rounded half to even.
    shift, one = np.float32(12582912.0), np.float32(1.0)
    worst = np.uint32(0)
    exceeds = np.int64(0)
    for row in range(rows):
        worst_here = _widen(source, kind, row * width, width, x)
        worst = max(worst, worst_here)
        top = np.uint32(0)
        for i in range(width):
            half = np.uint32(_half_of_single(bits_of(x[i])))
            value = _single_of_half(half)
            x[i] = value
            top = max(top, np.uint32(bits_of(value) & _MAGNITUDE))
        exceeds |= np.int64(top > _GREATEST)
        most = single_of(top)
        scales[row] = most
        # Two roundings: torch divides a number by a tensor through the reciprocal.
        factor = (one / most) * np.float32(127.0) if top > np.uint32(0) else np.float32(0.0)
        target = carray(pointer(codes + row * width), width, np.int8)
        for i in range(width):
            target[i] = np.int8(np.int32((x[i] * factor + shift) - shift))
    bad = np.int64(worst > _GREATEST)
    carray(pointer(flags), 1, np.int64)[0] |= bad | (exceeds << 1)


def sum_in_lanes(values, count, scratch, total):
    """Sum float32 values in the order of torch's vector code for x86, on one thread.

    Eight lanes times four rows of accumulators; each row hands its sum up a level every
    ``2**power`` steps, so that rounding errors grow with the logarithm of the count.

    Args:
        values: Address of float32[count].
        count: How many there are.
        scratch: float32[128].
        total: Address of float32[1].
    """
    x = carray(pointer(values), count, np.float32)
    acc = carray(pointer(scratch), (4, 32), np.float32)
    for level in range(4):
        for lane in range(32):
            acc[level, lane] = np.float32(0.0)
    vectors = count // 8
    steps = vectors // 4
    bits = np.int64(0)
    while (np.int64(1) << bits) < steps:
        bits += 1
    power = max(np.int64(4), bits // 4)
    stride = np.int64(1) << power
    done = np.int64(0)
    while done + stride <= steps:
        for step in range(done, done + stride):
            for lane in range(32):
                acc[0, lane] += x[32 * step + lane]
        done += stride
        for level in range(1, 4):
            for lane in range(32):
                acc[level, lane] += acc[level - 1, lane]
                acc[level - 1, lane] = np.float32(0.0)
            if done & ((stride - 1) << (level * power)):
                break
    for step in range(done, steps):
        for lane in range(32):
            acc[0, lane] += x[32 * step + lane]
    for level in range(1, 4):
        for lane in range(32):
            acc[0, lane] += acc[level, lane]
    for vector in range(4 * steps, vectors):
        for lane in range(8):
            acc[0, lane] += x[8 * vector + lane]
    for row in range(1, 4):
        for lane in range(8):
            acc[0, lane] += acc[0, 8 * row + lane]
    result = np.float32(0.0)
    for i in range(8 * vectors, count):
        result += x[i]
    for lane in range(8):
        result += acc[0, lane]
    carray(pointer(total), 1, np.float32)[0] = result


def quantize_8bit(values, count, offset, table, codes, largest):
    """Quantize float32 values less an offset to 8-bit codes, in blocks of 256.

    bitsandbytes looks codes up by the scaled value, rounded to 16 bits; so the code is not
    always the nearest.

    Args:
        values: Address of float32[count].
        count: How many there are.
        offset: Address of float32[1].
        table: uint8[65536]: code by position between -1 and 1.
        codes: uint8[count] out.
        largest: float32[ceil(count / 256)] out.
    """
    x = carray(pointer(values), count, np.float32)
    mean = carray(pointer(offset), 1, np.float32)[0]
    code_of = carray(pointer(table), 65536, np.uint8)
    target = carray(pointer(codes), count, np.uint8)
    scales = carray(pointer(largest), (count + 255) // 256, np.float32)
    one = np.float32(1.0)
    for number in range((count + 255) // 256):
        start = number * 256
        end = min(start + 256, count)
        most = np.float32(0.0)
        for i in range(start, end):
            most = max(most, abs(x[i] - mean))
        scales[number] = most
        if most == np.float32(0.0):
            for i in range(start, end):
                target[i] = np.uint8(0)
            continue
        inverse = one / most
        for i in range(start, end):
            scaled = min(max((x[i] - mean) * inverse, -one), one)
            # One rounding, as of a fused multiplication and addition.
            place = np.float64((scaled + one) * np.float32(0.5)) * 65535.0 + 0.5
            target[i] = code_of[np.int64(np.float32(place))]
