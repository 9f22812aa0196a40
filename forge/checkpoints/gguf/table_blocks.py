"""Decode the blocks whose codes are places in a table of values: IQ4_NL, IQ4_XS, MXFP4.

    IQ4_NL   0 d (2) · 2 nibbles (16)                                           32 elements
    IQ4_XS   0 d (2) · 2 high pairs (2) · 4 low nibbles (4) · 8 nibbles (128)   8 groups of 32
    MXFP4    0 exponent (1) · 1 nibbles (16)                                    32 elements

    IQ4_NL   value = d·LEVELS[q]
    IQ4_XS   value = (d·(scale - 32))·LEVELS[q]; of the scale of group g, the low nibble is in byte
             g/2, that of even g in the low half, and the high pair in bits 2g and 2g + 1 of a word
    MXFP4    value = 2^(exponent - 128)·E2M1[q], where E2M1 is doubled to whole numbers

Byte i of each 16 bytes of nibbles holds elements i and i + 16. d is float16.

Shape suffixes: B blocks, N bytes of one, E elements of one, G groups.

Reference: ggml-quants.c and ggml-common.h of https://github.com/ggml-org/ggml; OCP Microscaling
Formats (MX) Specification 1.0 for E2M1 and E8M0.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from forge.checkpoints.gguf.unpacking import Bytes, Floats, half, look_up, spread

_LEVELS: Final = np.tile(
    np.array(
        [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
    ), 16,
).tobytes()  # fmt: skip
_E2M1: Final = np.tile(
    np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8), 16
).tobytes()
# The two smallest exponents give subnormal numbers, which ldexp makes exactly.
_E8M0: Final = np.ldexp(1.0, np.arange(256) - 128).astype(np.float32)


def iq4_nl(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode IQ4_NL: uint8 [B, 18] to float32 [B, 32]."""
    _look_up(_LEVELS, blocks_BN[:, 2:], out_BE)
    out_BE *= spread(half(blocks_BN, 0), 32)


def iq4_xs(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode IQ4_XS: uint8 [B, 136] to float32 [B, 256]."""
    _look_up(_LEVELS, blocks_BN[:, 8:], out_BE)
    low_BG = np.empty((blocks_BN.shape[0], 8), np.uint8)
    low_BG[:, 0::2] = blocks_BN[:, 4:8] & 15
    low_BG[:, 1::2] = blocks_BN[:, 4:8] >> 4
    word_B1 = np.ascontiguousarray(blocks_BN[:, 2:4]).view(np.uint16)
    high_BG = word_B1 >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scales_BG = (low_BG | high_BG.astype(np.uint8) << 4).astype(np.float32) - np.float32(32)
    out_BE *= spread(half(blocks_BN, 0) * scales_BG, 32)


def mxfp4(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode MXFP4: uint8 [B, 17] to float32 [B, 32]."""
    _look_up(_E2M1, blocks_BN[:, 1:], out_BE)
    out_BE *= spread(_E8M0[blocks_BN[:, :1]], 32)


def _look_up(table: bytes, packed_BN: Bytes, out_BE: Floats) -> None:
    packed = np.ascontiguousarray(packed_BN).reshape(-1, 16)
    out_halves = out_BE.reshape(-1, 2, 16)
    out_halves[:, 0] = look_up(table, packed & np.uint8(15))
    out_halves[:, 1] = look_up(table, packed >> np.uint8(4))
