"""The loops of DELLA: rank within a row, drop by rank.

Each element becomes one 64-bit key, magnitude bits above and inverted column below, so that a
plain sort of the row ranks it: smallest first and, among equal magnitudes, the lowest column
last, which counts as the largest. The sort itself is numpy's. Imported only to compile.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from forge.kernels.cpu.layout import BLOCK
from forge.kernels.cpu.memory import pointer, read_block
from forge.kernels.cpu.philox import fill
from forge.kernels.cpu.selection import magnitude_bits

_LAST = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_RANGE = 4294967296.0


def keys(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write the keys of the rows of one task vector to counts[0] (address of uint64[count]).

    inputs: the base and one model. Cuts fall between rows. float32 only.
    """
    target = carray(pointer(counts[0]), count, np.uint64)
    base = work[0]
    x = work[1]
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        read_block(readers[0], inputs[0], start + offset, size, work, 0)
        read_block(readers[1], inputs[1], start + offset, size, work, 1)
        column = (start + offset) % width
        for i in range(size):
            magnitude = np.uint64(magnitude_bits(x[i] - base[i]))
            target[offset + i] = (magnitude << _WORD) | (_LAST - np.uint64(column))
            column += 1
            column = column if column < width else 0


def factors(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Turn sorted keys into one factor an element: 0 when dropped, else 1/p or 1.

    params: p of rank 0 · step of p from rank to rank · 1 to divide by p. counts: address of the
    sorted keys · address of the factors (work type) · key · stream. ``start`` is the position of
    the first row in the tensor.
    """
    sorted_keys = carray(pointer(counts[0]), count, np.uint64)
    result = carray(pointer(counts[1]), count, work.dtype)
    real = work.dtype.type
    zero = real(0)
    one = real(1)
    inverse = params[2] != 0.0
    for row in range(count // width):
        origin = row * width
        for rank in range(width):
            column = np.int64(_LAST - (sorted_keys[origin + rank] & _LAST))
            result[origin + column] = real(params[0] + params[1] * rank)
    words = work[2].view(np.uint32)
    stride = BLOCK - 64  # room for a first group that begins before the block
    for offset in range(0, count, stride):
        size = min(stride, count - offset)
        lead = (start + offset) & np.int64(63)
        fill(words, counts[2], counts[3], start + offset - lead, lead + size)
        for i in range(size):
            p = result[offset + i]
            keep = real(words[lead + i]) < p * real(_RANGE)
            kept = one / p if inverse else one
            result[offset + i] = kept if keep else zero
