"""Philox4x32-10, the counter-based generator behind every random drop.

Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3 (SC'11). The 64-bit key and
the upper half of the 128-bit counter come from a hash of (seed, model, tensor); the lower half
counts through the tensor. Element e takes word (e >> 4) & 3 of counter (e >> 6)·16 + (e & 15):
sixteen neighbouring counters are computed side by side in vector lanes, and a number depends
on nothing but its key and its element, whatever the thread, block, shard or device.

Imported only to compile.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.memory import inlined

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint32(0x9E3779B9)
_W1 = np.uint32(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)


@inlined
def fill(words, key, stream, start, count):
    """Write the random words of elements ``start`` … ``start + count`` to ``words`` (uint32).

    ``start`` must be a multiple of 64; up to 63 words beyond ``count`` are written.
    """
    key0 = np.uint32(np.uint64(key) & _LOW)
    key1 = np.uint32(np.uint64(key) >> _WORD)
    stream0 = np.uint32(np.uint64(stream) & _LOW)
    stream1 = np.uint32(np.uint64(stream) >> _WORD)
    first = np.uint64(start) >> np.uint64(2)
    for group in range((count + 63) >> 6):
        origin = group << 6
        counter = first + np.uint64(group << 4)
        counter1 = np.uint32(counter >> _WORD)
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
            words[origin + lane] = c0
            words[origin + 16 + lane] = c1
            words[origin + 32 + lane] = c2
            words[origin + 48 + lane] = c3
