"""The tensor types of GGUF files, as plain data (no numpy).

A tensor is a row of blocks. A block holds a fixed number of elements in a fixed number of
bytes, and blocks run along a tensor's rows: its last dimension is a whole number of them.
The numbers are those of ``enum ggml_type``; a number that is missing here was taken out of the
format, or is newer than this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A tensor type.

    Attributes:
        number: Its number in the file.
        name: Its name in ggml.
        elements: Elements of a block.
        nbytes: Bytes of a block.
        dtype: safetensors dtype in which forge delivers it; ``None`` if forge does not read it.
            A stored float keeps its type. What is computed from codes is delivered in float32,
            which holds it exactly, so that a merge rounds once, at its end.
        is_stored: Whether the blocks are plain little-endian numbers, to be read as they are.
    """

    number: int
    name: str
    elements: int
    nbytes: int
    dtype: str | None = None
    is_stored: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Bits that an element takes on average."""
        return self.nbytes * 8 / self.elements


_ROWS: Final = (
    GgmlType(0, "F32", 1, 4, "F32", is_stored=True),
    GgmlType(1, "F16", 1, 2, "F16", is_stored=True),
    GgmlType(2, "Q4_0", 32, 18, "F32"),
    GgmlType(3, "Q4_1", 32, 20, "F32"),
    GgmlType(6, "Q5_0", 32, 22, "F32"),
    GgmlType(7, "Q5_1", 32, 24, "F32"),
    GgmlType(8, "Q8_0", 32, 34, "F32"),
    GgmlType(9, "Q8_1", 32, 36),
    GgmlType(10, "Q2_K", 256, 84, "F32"),
    GgmlType(11, "Q3_K", 256, 110, "F32"),
    GgmlType(12, "Q4_K", 256, 144, "F32"),
    GgmlType(13, "Q5_K", 256, 176, "F32"),
    GgmlType(14, "Q6_K", 256, 210, "F32"),
    GgmlType(15, "Q8_K", 256, 292, "F32"),
    GgmlType(16, "IQ2_XXS", 256, 66),
    GgmlType(17, "IQ2_XS", 256, 74),
    GgmlType(18, "IQ3_XXS", 256, 98),
    GgmlType(19, "IQ1_S", 256, 50),
    GgmlType(20, "IQ4_NL", 32, 18, "F32"),
    GgmlType(21, "IQ3_S", 256, 110),
    GgmlType(22, "IQ2_S", 256, 82),
    GgmlType(23, "IQ4_XS", 256, 136, "F32"),
    GgmlType(24, "I8", 1, 1),
    GgmlType(25, "I16", 1, 2),
    GgmlType(26, "I32", 1, 4),
    GgmlType(27, "I64", 1, 8),
    GgmlType(28, "F64", 1, 8, "F64", is_stored=True),
    GgmlType(29, "IQ1_M", 256, 56),
    GgmlType(30, "BF16", 1, 2, "BF16", is_stored=True),
    GgmlType(34, "TQ1_0", 256, 54),
    GgmlType(35, "TQ2_0", 256, 66),
    GgmlType(39, "MXFP4", 32, 17, "F32"),
    GgmlType(40, "NVFP4", 64, 36),
    GgmlType(41, "Q1_0", 128, 18),
)

GGML_TYPES: Final[dict[int, GgmlType]] = {row.number: row for row in _ROWS}
"""Rows by number."""
BY_NAME: Final[dict[str, GgmlType]] = {row.name: row for row in _ROWS}
"""Rows by name."""
