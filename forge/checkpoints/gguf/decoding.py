"""Turn a tensor's bytes in a GGUF file into the bytes of the tensor that Hugging Face's files hold.

Work goes in pieces of a quarter of a million elements: the piece stays in the cache while the few
operations of a decoder pass over it, and what a decoder needs besides the result is bounded,
whatever the tensor's size. Rows are put in order while they are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.floats import decode
from forge.checkpoints.gguf import k_blocks, legacy_blocks, table_blocks
from forge.checkpoints.gguf.layout import Placed
from forge.checkpoints.gguf.types import BY_NAME, GgmlType
from forge.checkpoints.gguf.unpacking import Bytes, Floats
from forge.core.dtypes import DTYPES

Decoder = Callable[[Bytes, Floats], None]

DECODERS: Final[Mapping[str, Decoder]] = {
    "Q4_0": legacy_blocks.q4_0,
    "Q4_1": legacy_blocks.q4_1,
    "Q5_0": legacy_blocks.q5_0,
    "Q5_1": legacy_blocks.q5_1,
    "Q8_0": legacy_blocks.q8_0,
    "Q2_K": k_blocks.q2_k,
    "Q3_K": k_blocks.q3_k,
    "Q4_K": k_blocks.q4_k,
    "Q5_K": k_blocks.q5_k,
    "Q6_K": k_blocks.q6_k,
    "Q8_K": k_blocks.q8_k,
    "IQ4_NL": table_blocks.iq4_nl,
    "IQ4_XS": table_blocks.iq4_xs,
    "MXFP4": table_blocks.mxfp4,
}
_PIECE_ELEMENTS: Final = 1 << 18
_WORDS: Final = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def dequantize(packed: memoryview, kind: str) -> Floats:
    """Decode blocks in their own order.

    Args:
        packed: Whole blocks.
        kind: Name of their type, one of ``DECODERS``.

    Returns:
        float32, one-dimensional: the values that ggml computes.
    """
    blocks_BN = np.frombuffer(packed, np.uint8).reshape(-1, BY_NAME[kind].nbytes)
    out_BE = np.empty((len(blocks_BN), BY_NAME[kind].elements), np.float32)
    _decode(BY_NAME[kind], blocks_BN, out_BE)
    return out_BE.reshape(-1)


def values_of(placed: Placed, packed: memoryview) -> memoryview:
    """Return the bytes of a tensor.

    Args:
        placed: How it is made.
        packed: ``placed.packed_bytes`` bytes of the file from ``placed.offset``.

    Returns:
        The bytes, read-only; for a stored tensor with nothing to undo, ``packed`` itself.
    """
    if placed.is_stored:
        return packed
    kind = placed.tensor.type
    if placed.minus_one:
        values = _in_float32(packed, kind)
        values = values - np.float32(1)
        return _bytes(values)
    num_rows = placed.tensor.shape[0] if placed.order or placed.transposed else 1
    rows = np.frombuffer(packed, np.uint8).reshape(num_rows, -1)
    places = None if placed.order is None else placed.order.places(num_rows)
    if kind.is_stored:
        word = _WORDS[DTYPES[placed.dtype].itemsize]
        stored = rows.view(word)
        ordered = stored if places is None else stored[places]
        return _bytes(ordered.T if placed.transposed else ordered)
    if placed.transposed:
        return _bytes(_transposed(kind, rows, places))
    if places is None:
        return _bytes(dequantize(packed, kind.name))
    out = np.empty((num_rows, rows.shape[1] // kind.nbytes * kind.elements), np.float32)
    step = max(1, _PIECE_ELEMENTS // out.shape[1])
    for begin in range(0, num_rows, step):
        piece = slice(begin, begin + step)
        _decode_piece(kind, rows[places[piece]], out[piece])
    return _bytes(out)


def _in_float32(packed: memoryview, kind: GgmlType) -> npt.NDArray[np.float32]:
    if kind.is_stored:
        return decode(packed, kind.name).astype(np.float32)
    return dequantize(packed, kind.name)


def _transposed(
    kind: GgmlType, rows: Bytes, places: npt.NDArray[np.intp] | None
) -> npt.NDArray[np.float32]:
    num_rows, num_columns = len(rows), rows.shape[1] // kind.nbytes * kind.elements
    out = np.empty((num_columns, num_rows), np.float32)
    step = max(1, _PIECE_ELEMENTS // num_columns)
    for begin in range(0, num_rows, step):
        piece = rows[begin : begin + step] if places is None else rows[places[begin : begin + step]]
        decoded = np.empty((len(piece), num_columns), np.float32)
        _decode_piece(kind, piece, decoded)
        out[:, begin : begin + step] = decoded.T
    return out


def _decode(kind: GgmlType, blocks_BN: Bytes, out_BE: Floats) -> None:
    step = _PIECE_ELEMENTS // kind.elements
    for begin in range(0, len(blocks_BN), step):
        piece = slice(begin, begin + step)
        _decode_piece(kind, blocks_BN[piece], out_BE[piece])


def _decode_piece(kind: GgmlType, rows: Bytes, out: Floats) -> None:
    # A scale of infinity times zero is a NaN, which the merge reports; numpy need not.
    with np.errstate(invalid="ignore", over="ignore"):
        DECODERS[kind.name](rows.reshape(-1, kind.nbytes), out.reshape(-1, kind.elements))


def _bytes(values: npt.NDArray[np.generic]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data.toreadonly()
