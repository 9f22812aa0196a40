"""Weights laid out for the kernels, made of neutral codes; see ``packed_layout.py``.

Legend: O output features, I input features, G groups of input features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import IncompatibleError
from forge.kernels.cpu import native
from forge.kernels.cpu.quantized.packed_layout import KINDS, LANES, Kind
from forge.kernels.operands import address_of

_LINE_BYTES: Final = 64
_SCALES: Final = {2: np.float16, 4: np.float32}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A linear layer's weight as the kernels stream it.

    Attributes:
        kind: What its codes mean.
        shape_OI: Output and input features.
        group_size: Input features that share a scale; those of the last group may be padded.
        words: uint32 [blocks, words of a lane, 16].
        scales: float16 or float32 [blocks, G, 16], finite.
        zeros: uint8 [blocks, G, 16]; empty for codes that look up a table.
    """

    kind: Kind
    shape_OI: tuple[int, int]
    group_size: int
    words: npt.NDArray[np.uint32]
    scales: npt.NDArray[np.floating]
    zeros: npt.NDArray[np.uint8]

    @property
    def num_bytes(self) -> int:
        """Bytes that one product reads."""
        return self.words.nbytes + self.scales.nbytes + self.zeros.nbytes


def lay_out(
    codes_OI: npt.NDArray[np.uint8],
    scales_OG: npt.NDArray[np.floating],
    zeros_OG: npt.NDArray[np.uint8] | None,
    *,
    kind: str,
) -> PackedWeight:
    """Lay out a weight for the kernels.

    Args:
        codes_OI: Codes, each below two to the kind's bits.
        scales_OG: Scales; I is a multiple of G.
        zeros_OG: Zero points; ``None`` for a kind that looks up a table.
        kind: A name of ``KINDS``.

    Returns:
        The weight; the arrays given may be forgotten.

    Raises:
        IncompatibleError: The groups do not fill whole words.
    """
    row = KINDS[kind]
    num_out, num_in = codes_OI.shape
    num_groups = scales_OG.shape[1]
    group_size = num_in // num_groups
    codes_OI, group_size = _filled(codes_OI, num_groups, group_size, row.codes)
    num_words = codes_OI.shape[1] // row.codes
    num_blocks = -(-num_out // LANES)
    words = _aligned_zeros((num_blocks, num_words, LANES), np.dtype(np.uint32))
    native.word_kernel(f"quantized.packed_matmul.lay_out_{row.bits}", 4)(
        address_of(codes_OI), address_of(words), num_out, num_words
    )
    scales = _by_lane(scales_OG.astype(_SCALES[row.scale_bytes], copy=False), num_blocks)
    zeros = np.empty(0, np.uint8)
    if row.has_zeros and zeros_OG is not None:
        zeros = _by_lane(zeros_OG, num_blocks)
    return PackedWeight(row, (num_out, num_in), group_size, words, scales, zeros)


def _filled(
    codes_OI: npt.NDArray[np.uint8], num_groups: int, group_size: int, per_word: int
) -> tuple[npt.NDArray[np.uint8], int]:
    """Fill up the last word of a row; its inputs will be zero, so its codes do not matter."""
    missing = -group_size % per_word
    if not missing:
        return np.ascontiguousarray(codes_OI), group_size
    if num_groups > 1:
        raise IncompatibleError(
            f"Groups of {group_size} codes do not fill whole words of {per_word}, which running "
            "them needs. Quantize with groups of 32, 64 or 128."
        )
    return np.pad(codes_OI, ((0, 0), (0, missing))), group_size + missing


def _by_lane(values_OG: npt.NDArray[Any], num_blocks: int) -> npt.NDArray[Any]:
    num_out, num_groups = values_OG.shape
    padded = np.zeros((num_blocks * LANES, num_groups), values_OG.dtype)
    padded[:num_out] = values_OG
    lanes = _aligned_zeros((num_blocks, num_groups, LANES), values_OG.dtype)
    lanes[...] = padded.reshape(num_blocks, LANES, num_groups).transpose(0, 2, 1)
    return lanes


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return zeros that begin with a cache line, so that no vector is read from two of them."""
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + _LINE_BYTES, np.uint8)
    start = -address_of(memory) % _LINE_BYTES
    return memory[start : start + num_bytes].view(dtype).reshape(shape)
