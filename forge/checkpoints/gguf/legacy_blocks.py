"""Decode the blocks of 32 elements that share one scale: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

Byte tables; d and m are float16, q is an element's code:

    Q4_0    0 d (2) · 2 nibbles (16)                                   value = d·(q - 8)
    Q4_1    0 d (2) · 2 m (2) · 4 nibbles (16)                         value = d·q + m
    Q5_0    0 d (2) · 2 fifth bits (4) · 6 nibbles (16)                value = d·(q - 16)
    Q5_1    0 d (2) · 2 m (2) · 4 fifth bits (4) · 8 nibbles (16)      value = d·q + m
    Q8_0    0 d (2) · 2 codes (32, int8)                               value = d·q

Byte i of the nibbles holds element i in its low half and element i + 16 in its high half. Bit i
of the fifth bits, a little-endian word, belongs to element i.

All products and sums are of float32, as in ggml, so each value is the one that ggml computes.

Shape suffixes: B blocks, N bytes of a block, E elements of a block.

Reference: ggml-quants.c and ggml-common.h of https://github.com/ggml-org/ggml
"""

from __future__ import annotations

import numpy as np

from forge.checkpoints.gguf.unpacking import Bytes, Floats, half, spread


def q4_0(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q4_0: uint8 [B, 18] to float32 [B, 32]."""
    packed = np.ascontiguousarray(blocks_BN[:, 2:])
    for position, codes in enumerate((packed & 15, packed >> 4)):
        signed = codes.view(np.int8)
        signed -= 8
        out_BE[:, 16 * position : 16 * position + 16] = signed
    out_BE *= spread(half(blocks_BN, 0), 32)


def q4_1(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q4_1: uint8 [B, 20] to float32 [B, 32]."""
    packed = np.ascontiguousarray(blocks_BN[:, 4:])
    out_BE[:, :16] = packed & 15
    out_BE[:, 16:] = packed >> 4
    out_BE *= spread(half(blocks_BN, 0), 32)
    out_BE += spread(half(blocks_BN, 2), 32)


def q5_0(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q5_0: uint8 [B, 22] to float32 [B, 32]."""
    codes = _five_bits(blocks_BN[:, 2:6], blocks_BN[:, 6:]).view(np.int8)
    codes -= 16
    out_BE[:] = codes
    out_BE *= spread(half(blocks_BN, 0), 32)


def q5_1(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q5_1: uint8 [B, 24] to float32 [B, 32]."""
    out_BE[:] = _five_bits(blocks_BN[:, 4:8], blocks_BN[:, 8:])
    out_BE *= spread(half(blocks_BN, 0), 32)
    out_BE += spread(half(blocks_BN, 2), 32)


def q8_0(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q8_0: uint8 [B, 34] to float32 [B, 32]."""
    out_BE[:] = blocks_BN[:, 2:].view(np.int8)
    out_BE *= spread(half(blocks_BN, 0), 32)


def _five_bits(high_BN: Bytes, packed_BN: Bytes) -> Bytes:
    """Put the fifth bits, uint8 [B, 4], on the nibbles, uint8 [B, 16]: uint8 [B, 32]."""
    codes_BE = np.unpackbits(np.ascontiguousarray(high_BN), bitorder="little").reshape(-1, 32)
    codes_BE <<= 4
    packed = np.ascontiguousarray(packed_BN)
    codes_BE[:, :16] |= packed & 15
    codes_BE[:, 16:] |= packed >> 4
    return codes_BE
