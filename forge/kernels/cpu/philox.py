"""Philox4x32-10, the counter-based generator behind every random drop.

Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (SC'11). The 64-bit key and
the upper half of the 128-bit counter come from a hash of (seed, model, tensor); the lower half
counts through the tensor, so a number depends on nothing but its key and its element, whatever
the thread, block, shard or device.

An element has a random word of 32 bits, made of two halves. The upper halves of the 128
elements from 128·g come from the counters 16·g to 16·g + 15, computed side by side in vector
lanes: sixteen from the lower 16 bits of all words 0, sixteen from their upper 16 bits, then the
same of words 1, 2 and 3. The lower halves come from the same counters with their 63rd bit set.
They decide only where the upper half alone equals a threshold, one time in 65,536, so nearly
all blocks do with half of the generator's work.

Imported only to compile.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.memory import inlined

UPPER, LOWER = np.uint32(0), np.uint32(1)

GROUP = 128
"""Elements whose random numbers are made together."""

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint32(0x9E3779B9)
_W1 = np.uint32(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_HALF = np.uint32(16)
_LOW16 = np.uint32(0xFFFF)
_TOP = np.uint32(0x80000000)


@inlined
def fill(halves, key, stream, start, count, lower):
    """Write the upper or lower halves of the random words of consecutive elements.

    Args:
        halves: uint32 that receive a number below 2**16 each, up to 127 beyond ``count``.
        key: Of the generator.
        stream: Upper half of its counter.
        start: First element, a multiple of ``GROUP``.
        count: Number of elements.
        lower: ``LOWER`` or ``UPPER``; numba compiles the function anew for each plain constant.
    """
    key0 = np.uint32(np.uint64(key) & _LOW)
    key1 = np.uint32(np.uint64(key) >> _WORD)
    stream0 = np.uint32(np.uint64(stream) & _LOW)
    stream1 = np.uint32(np.uint64(stream) >> _WORD)
    first = np.uint64(start) >> np.uint64(3)
    for group in range((count + GROUP - 1) // GROUP):
        origin = group * GROUP
        counter = first + np.uint64(group << 4)
        counter1 = np.uint32(np.uint32(counter >> _WORD) | np.uint32(np.uint32(lower) * _TOP))
        low = np.uint32(counter & _LOW)
        for lane in range(16):
            # A group holds 16 aligned counters, so the low half cannot carry.
            c0 = np.uint32(low + np.uint32(lane))
            c1 = counter1
            c2 = stream0
            c3 = stream1
            k0 = key0
            k1 = key1
            for _ in range(10):
                product0 = np.uint64(c0) * _M0
                product1 = np.uint64(c2) * _M1
                # numba widens uint32 arithmetic, so every step is narrowed again.
                c0 = np.uint32(np.uint32(product1 >> _WORD) ^ c1 ^ k0)
                c1 = np.uint32(product1 & _LOW)
                c2 = np.uint32(np.uint32(product0 >> _WORD) ^ c3 ^ k1)
                c3 = np.uint32(product0 & _LOW)
                k0 = np.uint32(k0 + _W0)
                k1 = np.uint32(k1 + _W1)
            halves[origin + lane] = c0 & _LOW16
            halves[origin + 16 + lane] = c0 >> _HALF
            halves[origin + 32 + lane] = c1 & _LOW16
            halves[origin + 48 + lane] = c1 >> _HALF
            halves[origin + 64 + lane] = c2 & _LOW16
            halves[origin + 80 + lane] = c2 >> _HALF
            halves[origin + 96 + lane] = c3 & _LOW16
            halves[origin + 112 + lane] = c3 >> _HALF
