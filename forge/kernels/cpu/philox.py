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

from forge.kernels.cpu.compiler import inlined
from forge.kernels.cpu.lanes import I64, Emitter, Lanes, emitted
from forge.kernels.cpu.layout import GROUP

UPPER, LOWER = np.uint32(0), np.uint32(1)

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_ROUNDS = 10
_LANES = 8


def _rounds(states: list[list[Lanes]], key: list[Lanes]) -> list[list[Lanes]]:
    """Apply the ten rounds to states of four words in 64-bit lanes, whose lower 32 bits count.

    A product fills its lane, and what it leaves above is never masked away: multiplying reads the
    lower halves only, and two words of the next round are one product each.
    """
    for number in range(_ROUNDS):
        k0, k1 = (half + number * step for half, step in zip(key, (_W0, _W1), strict=True))
        products = [((c0 & _LOW) * _M0, (c2 & _LOW) * _M1) for c0, _, c2, _ in states]
        states = [
            [(product1 >> 32) ^ c1 ^ k0, product1, (product0 >> 32) ^ c3 ^ k1, product0]
            for (_, c1, _, c3), (product0, product1) in zip(states, products, strict=True)
        ]
    return states


@emitted
def _fill(
    emitter: Emitter, target: Lanes, key: Lanes, stream: Lanes, first: Lanes, top: Lanes,
    num_groups: Lanes,
) -> None:  # fmt: skip
    """Write halves of whole groups; ``top`` is the 63rd bit of their counters."""
    keys = [key, (key >> 32) | (key << 32)]
    streams = [half.splat(_LANES) for half in (stream, (stream >> 32) | (stream << 32))]
    with emitter.steps(num_groups, 1) as (group,):
        # A group holds 16 aligned counters, so the low half cannot carry.
        counter = first + (group << 4)
        high = ((counter >> 32) | (top << 31)).splat(_LANES)
        # Even and odd counters apart, so that two vectors of 64 bits make one of 32 bits.
        lows = [
            emitter.vector(list(range(parity, 16, 2)), I64) + (counter & _LOW)
            for parity in range(2)
        ]
        even, odd = _rounds([[low, high, *streams] for low in lows], keys)
        at = target + (group << 9)
        for number, (left, right) in enumerate(zip(even, odd, strict=True)):
            words = left.alternate(right)
            (words & 0xFFFF).store(at + 128 * number)
            (words >> 16).store(at + (128 * number + 64))


@inlined
def fill_at(address, key, stream, start, count, lower):
    """As ``fill``, at an address."""
    groups = (count + GROUP - 1) // GROUP
    _fill(address, key, stream, start >> 3, np.int64(lower), groups)


@inlined
def fill(halves, key, stream, start, count, lower):
    """Write the upper or lower halves of the random words of consecutive elements.

    Args:
        halves: uint32 that receive a number below 2**16 each, up to 127 beyond ``count``.
        key: Of the generator.
        stream: Upper half of its counter.
        start: First element, a multiple of ``GROUP``.
        count: Number of elements.
        lower: ``LOWER`` or ``UPPER``.
    """
    fill_at(halves.ctypes.data, key, stream, start, count, lower)
