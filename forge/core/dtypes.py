"""The element types of safetensors files, as plain data (no numpy, no torch).

A row knows its size, whether forge can do arithmetic on it, and its names in the
three vocabularies that meet in a merge: safetensors (``BF16``), torch and mergekit
(``bfloat16``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        name: Name in a safetensors header.
        torch_name: Name in torch, ``config.json`` and recipes.
        bits: Bits of one element.
        is_float: Whether it is a floating-point type.
        mergeable: Whether forge's kernels read and write it.
    """

    name: str
    torch_name: str
    bits: int
    is_float: bool
    mergeable: bool

    @property
    def itemsize(self) -> int:
        """Bytes of one element; only for types of whole bytes."""
        return self.bits // 8


_ROWS: Final = (
    DType("BF16", "bfloat16", 16, True, True),
    DType("F16", "float16", 16, True, True),
    DType("F32", "float32", 32, True, True),
    DType("F64", "float64", 64, True, True),
    DType("F8_E4M3", "float8_e4m3fn", 8, True, False),
    DType("F8_E5M2", "float8_e5m2", 8, True, False),
    DType("F8_E8M0", "float8_e8m0fnu", 8, True, False),
    DType("I64", "int64", 64, False, False),
    DType("I32", "int32", 32, False, False),
    DType("I16", "int16", 16, False, False),
    DType("I8", "int8", 8, False, False),
    DType("U64", "uint64", 64, False, False),
    DType("U32", "uint32", 32, False, False),
    DType("U16", "uint16", 16, False, False),
    DType("U8", "uint8", 8, False, False),
    DType("BOOL", "bool", 8, False, False),
)

DTYPES: Final[dict[str, DType]] = {row.name: row for row in _ROWS}
"""Rows by safetensors name."""

BY_TORCH_NAME: Final[dict[str, DType]] = {row.torch_name: row for row in _ROWS}
"""Rows by torch name."""
