"""How quantized weights lie in memory while they run: the layout that kernels stream.

Files keep codes in whatever order their first consumer liked. A CPU wants three things: one
stream without a gap, vectors whose lanes are different outputs (so that no sum runs across
lanes), and scales beside their codes. Weights are therefore laid out anew when they are loaded.

    O output features in blocks of 16 lanes (B blocks), I input features, G groups of them,
    c codes in a word (32 / bits), K = I / c words

    words   uint32  [B, K, 16]  bits from n · bits hold the code of output 16b + lane, input ck + n
    scales  f16/f32 [B, G, 16]  of output 16b + lane
    zeros   uint8   [B, G, 16]  absent where codes look up a table

Outputs beyond O have zero codes and scales. A ``Kind`` says what codes mean:

    u4   weight = scale · (code − zero)   AWQ, GPTQ, compressed-tensors
    u8   the same in eight bits           GPTQ, compressed-tensors, bitsandbytes' int8
    nf4  weight = scale · table[code]     bitsandbytes
    fp4  weight = scale · table[code]     bitsandbytes

The kernels' arguments are one array of int64, because they are called through OpenMP with a
single pointer:

    NEXT        first block that nobody has taken; threads add to it until BLOCKS are reached
    WORDS … OUT addresses: words, scales, zeros, activations, their sums, results
    GROUPS      G
    DEPTH       words in a group and lane: group size / c
    BLOCKS      B
    TAKE        blocks that a thread takes at a time
    STRIDE      bytes from one row of results to the next
    TILES       tiles of activation rows

Imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LANES: Final = 16
"""Outputs in a block."""

TILE_ROWS: Final = (1, 2, 4, 8, 16)
"""Rows of activations for which there is a kernel of its own: ``packed_matmul.u4_16``, say."""

NEXT: Final = 0
WORDS: Final = 1
SCALES: Final = 2
ZEROS: Final = 3
ACTIVATIONS: Final = 4
SUMS: Final = 5
OUT: Final = 6
GROUPS: Final = 7
DEPTH: Final = 8
BLOCKS: Final = 9
TAKE: Final = 10
STRIDE: Final = 11
TILES: Final = 12
NUM_ARGUMENTS: Final = 13


@dataclass(frozen=True, slots=True)
class Kind:
    """What codes mean.

    Attributes:
        name: First word of the kernels' names.
        bits: Bits of a code.
        scale_bytes: 2 for scales in float16, 4 for float32.
        table: Value of each code; empty where a zero point is subtracted instead.
    """

    name: str
    bits: int
    scale_bytes: int
    table: tuple[float, ...] = ()

    @property
    def codes(self) -> int:
        """Codes in a word."""
        return 32 // self.bits

    @property
    def has_zeros(self) -> bool:
        """Whether zero points are subtracted."""
        return not self.table


_NF4: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_FP4: Final = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)

KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("u4", 4, 2),
        Kind("u8", 8, 4),
        Kind("nf4", 4, 4, _NF4),
        Kind("fp4", 4, 4, (*(v / 12 for v in _FP4), *(-v / 12 for v in _FP4))),
    )
}
"""Every kind by its name."""
