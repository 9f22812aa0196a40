"""Philox4x32-10 in plain numpy, and forge's layout of its bits over a tensor.

Reference: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3. Imports nothing of
forge; ``tests/kernels/test_philox.py`` checks it against the published known answers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Return the ten-round output for counters uint64[n, 4] that hold 32-bit words."""
    c0, c1, c2, c3 = (counter[:, i].copy() for i in range(4))
    mask = np.uint64(0xFFFFFFFF)
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        a = c0 * np.uint64(0xD2511F53)
        b = c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ k0,
            b & mask,
            (a >> np.uint64(32)) ^ c3 ^ k1,
            a & mask,
        )
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return np.stack([c0, c1, c2, c3], axis=1)


def uniforms(numel: int, *, key: int, stream: int) -> NDArray[np.float64]:
    """Return the uniform numbers in [0, 1) of elements 0 … numel - 1."""
    key %= 1 << 64
    stream %= 1 << 64
    element = np.arange(numel, dtype=np.uint64)
    counter = (element >> np.uint64(7)) * np.uint64(16) + (element & np.uint64(15))
    word = ((element >> np.uint64(5)) & np.uint64(3)).astype(np.int64)
    halves = []
    for top in (0, 1 << 63):
        place = counter + np.uint64(top)
        columns = [
            place & np.uint64(0xFFFFFFFF),
            place >> np.uint64(32),
            np.full(numel, stream & 0xFFFFFFFF, np.uint64),
            np.full(numel, stream >> 32, np.uint64),
        ]
        words = philox4x32(np.stack(columns, axis=1), (key & 0xFFFFFFFF, key >> 32))
        shift = ((element >> np.uint64(4)) & np.uint64(1)) * np.uint64(16)
        halves.append((words[np.arange(numel), word] >> shift) & np.uint64(0xFFFF))
    return (halves[0] * np.uint64(1 << 16) + halves[1]) / 2.0**32
