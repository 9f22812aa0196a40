"""Decode the super-blocks of 256 elements: Q2_K to Q6_K, and Q8_K.

A super-block holds groups of 16 or 32 elements. A group has a scale of a few bits, and, where the
codes are not signed, a minimum; d and dmin, float16, scale these in turn. q is an element's code:

    Q2_K   0 scales and minima (16) · 16 codes (64) · 80 d (2) · 82 dmin (2)
    Q3_K   0 high bits (32) · 32 low bits (64) · 96 scales (12) · 108 d (2)
    Q4_K   0 d (2) · 2 dmin (2) · 4 scales and minima (12) · 16 nibbles (128)
    Q5_K   0 d (2) · 2 dmin (2) · 4 scales and minima (12) · 16 fifth bits (32) · 48 nibbles (128)
    Q6_K   0 low nibbles (128) · 128 high pairs (64) · 192 scales (16, int8) · 208 d (2)
    Q8_K   0 d (4, float32) · 4 codes (256, int8) · 260 sums of groups (32, not needed here)

    Q2_K   value = (d·scale)·q - dmin·minimum      16 groups of 16; both are nibbles of one byte
    Q3_K   value = (d·(scale - 32))·(q - 4)        16 groups of 16
    Q4_K   value = (d·scale)·q - dmin·minimum      8 groups of 32; scale and minimum of 6 bits
    Q5_K   the same, with q of 5 bits
    Q6_K   value = (d·scale)·(q - 32)              16 groups of 16
    Q8_K   value = d·q

Codes are striped over the elements, i below counts from 0 to 31:

    Q2_K, Q3_K low bits, Q6_K high pairs    of each 32 bytes, byte i holds two bits of the elements
                                            i, i + 32, i + 64 and i + 96, the lowest bits first
    Q4_K, Q5_K nibbles                      of each 32 bytes, byte i holds elements i and i + 32
    Q6_K nibbles                            of each 64 bytes, bytes i and i + 32 hold elements i
                                            and i + 64, and i + 32 and i + 96
    Q3_K and Q5_K high bits                 bit k of byte i belongs to element 32·k + i

The order of the operations is that of ggml, in float32, so each value is the one that it computes.

Shape suffixes: B super-blocks, N bytes of one, E its 256 elements, G groups, P planes, W the 32
elements of a plane.

Reference: ggml-quants.c and ggml-common.h of https://github.com/ggml-org/ggml
"""

from __future__ import annotations

import numpy as np

from forge.checkpoints.gguf.unpacking import Bytes, Floats, half, planes, spread


def q2_k(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q2_K: uint8 [B, 84] to float32 [B, 256]."""
    out_BPW = out_BE.reshape(-1, 8, 32)
    for part, packed in enumerate(planes(blocks_BN[:, 16:80], 32)):
        for stripe in range(4):
            out_BPW[:, 4 * part + stripe] = packed >> 2 * stripe & 3
    nested_BG = np.ascontiguousarray(blocks_BN[:, :16])
    out_BE *= spread(half(blocks_BN, 80) * (nested_BG & 15), 16)
    out_BE -= spread(half(blocks_BN, 82) * (nested_BG >> 4), 16)


def q3_k(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q3_K: uint8 [B, 110] to float32 [B, 256]."""
    out_BPW = out_BE.reshape(-1, 8, 32)
    high = np.ascontiguousarray(blocks_BN[:, :32])
    for part, packed in enumerate(planes(blocks_BN[:, 32:96], 32)):
        for stripe in range(4):
            plane = 4 * part + stripe
            codes = packed >> 2 * stripe & 3
            codes |= (high >> plane & 1) << 2
            codes -= 4
            out_BPW[:, plane] = codes.view(np.int8)
    out_BE *= spread(half(blocks_BN, 108) * _six_bit_scales(blocks_BN[:, 96:108]), 16)


def q4_k(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q4_K: uint8 [B, 144] to float32 [B, 256]."""
    out_BPW = out_BE.reshape(-1, 8, 32)
    packed_BPW = np.ascontiguousarray(blocks_BN[:, 16:]).reshape(-1, 4, 32)
    out_BPW[:, 0::2] = packed_BPW & 15
    out_BPW[:, 1::2] = packed_BPW >> 4
    _scale_and_shift(blocks_BN, out_BE)


def q5_k(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q5_K: uint8 [B, 176] to float32 [B, 256]."""
    out_BPW = out_BE.reshape(-1, 8, 32)
    high = np.ascontiguousarray(blocks_BN[:, 16:48])
    for part, packed in enumerate(planes(blocks_BN[:, 48:], 32)):
        out_BPW[:, 2 * part] = packed & 15 | (high >> 2 * part & 1) << 4
        out_BPW[:, 2 * part + 1] = packed >> 4 | (high >> 2 * part + 1 & 1) << 4
    _scale_and_shift(blocks_BN, out_BE)


def q6_k(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q6_K: uint8 [B, 210] to float32 [B, 256]."""
    out_BPW = out_BE.reshape(-1, 8, 32)
    low_PBW = planes(blocks_BN[:, :128], 32)
    for part, high in enumerate(planes(blocks_BN[:, 128:192], 32)):
        for stripe in range(4):
            nibbles = low_PBW[2 * part + stripe % 2]
            codes = nibbles & 15 if stripe < 2 else nibbles >> 4
            codes |= (high >> 2 * stripe & 3) << 4
            codes -= 32
            out_BPW[:, 4 * part + stripe] = codes.view(np.int8)
    out_BE *= spread(half(blocks_BN, 208) * blocks_BN[:, 192:208].view(np.int8), 16)


def q8_k(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Decode Q8_K: uint8 [B, 292] to float32 [B, 256]."""
    out_BE[:] = blocks_BN[:, 4:260].view(np.int8)
    out_BE *= np.ascontiguousarray(blocks_BN[:, :4]).view(np.float32)


def _scale_and_shift(blocks_BN: Bytes, out_BE: Floats) -> None:
    """Make values of the codes of Q4_K and Q5_K.

    The 12 bytes of scales and minima, a letter a group, capitals for scales and small letters for
    minima; the highest bit of a byte on the left:

        0-3    EEAAAAAA FFBBBBBB GGCCCCCC HHDDDDDD
        4-7    eeaaaaaa ffbbbbbb ggcccccc hhdddddd
        8-11   eeeeEEEE ffffFFFF ggggGGGG hhhhHHHH
    """
    first, second, third = planes(blocks_BN[:, 4:16], 4)
    scales_BG = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=1)
    minima_BG = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=1)
    out_BE *= spread(half(blocks_BN, 0) * scales_BG, 32)
    out_BE -= spread(half(blocks_BN, 2) * minima_BG, 32)


def _six_bit_scales(packed_BN: Bytes) -> Floats:
    """Return scale - 32 of Q3_K: uint8 [B, 12] to float32 [B, 16].

    The 12 bytes, a letter a group: the low nibbles of A to H and I to P, then the high pairs.

        0-7    IIIIAAAA JJJJBBBB ... PPPPHHHH
        8-11   MMIIEEAA NNJJFFBB OOKKGGCC PPLLHHDD
    """
    first, second, high = planes(packed_BN, 4)
    low = (first & 15, second & 15, first >> 4, second >> 4)
    scales_BG = np.concatenate(
        [nibbles | (high >> 2 * part & 3) << 4 for part, nibbles in enumerate(low)], axis=1
    )
    return scales_BG.astype(np.float32) - np.float32(32)
