"""Codes into 32-bit words and back, and the checks that all layouts of codes share.

A word holds ``32 / bits`` codes, the first in its lowest bits unless an order says otherwise.
Everything runs on whole arrays of bytes: two codes become one byte by one shift and one or, so
that a matrix of 4096 x 4096 takes milliseconds. Codes that do not fit their bits are refused and
not masked, because a stray bit would corrupt a neighbour without a trace.

Legend of shape suffixes: O output features, I input features, G groups, R rows, C columns,
W words, X any axis.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.contract import Part, QuantizedWeight, ScaledCodes, Scheme
from forge.formats.numbers import ARRAY_TYPES

Codes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.int32]
Scales = npt.NDArray[np.float16]

_BYTE_BITS: Final = 8
_WORD_BITS: Final = 32
_TILE: Final = 64
"""Rows that are transposed at once: their cache lines stay where they are until they are full."""
_COMMON_GROUPS: Final = (16, 32, 64, 128, 256, 512, 1024)

assert sys.byteorder == "little", "words are laid out as safetensors has them: lowest byte first"


def pack_columns(codes_RC: Codes, bits: int) -> Words:
    """Pack along the last axis.

    Args:
        codes_RC: uint8; C is a multiple of ``32 / bits``.
        bits: 1, 2, 4 or 8.

    Returns:
        int32 [R, C * bits / 32].
    """
    packed = np.ascontiguousarray(codes_RC)
    while bits < _BYTE_BITS:
        pairs = packed.view(np.uint16)
        packed = (pairs | (pairs >> (_BYTE_BITS - bits))).astype(np.uint8)
        bits *= 2
    return packed.view(np.int32)


def unpack_columns(words_RW: Words, bits: int) -> Codes:
    """Undo ``pack_columns``.

    Args:
        words_RW: int32.
        bits: 1, 2, 4 or 8.

    Returns:
        uint8 [R, W * 32 / bits].
    """
    codes = np.ascontiguousarray(words_RW).view(np.uint8)
    width = _BYTE_BITS
    while width > bits:
        width //= 2
        mask = np.uint16(((1 << width) - 1) * 0x0101)
        pairs = codes.astype(np.uint16)
        codes = ((pairs | (pairs << (_BYTE_BITS - width))) & mask).view(np.uint8)
    return codes


def unpack_stream(words_RW: Words, bits: int, count: int) -> Codes:
    """Unpack rows whose codes follow each other without a gap, across the ends of words.

    For 1, 2, 4 and 8 bits, which divide a word, this is ``unpack_columns``.

    Args:
        words_RW: int32.
        bits: 1 to 8.
        count: Codes of a row, at most ``W * 32 / bits``.

    Returns:
        uint8 [R, count].
    """
    if _BYTE_BITS % bits == 0:
        return np.ascontiguousarray(unpack_columns(words_RW, bits)[:, :count])
    codes = np.empty((words_RW.shape[0], count), np.uint8)
    weights = (1 << np.arange(bits)).astype(np.uint8)
    # Single bits take eight bytes a byte, so a few rows are unpacked at a time.
    for start in range(0, words_RW.shape[0], _TILE):
        rows = np.ascontiguousarray(words_RW[start : start + _TILE]).view(np.uint8)
        single = np.unpackbits(rows, axis=1, count=count * bits, bitorder="little")
        codes[start : start + _TILE] = single.reshape(len(rows), count, bits) @ weights
    return codes


def pack_rows(codes_RC: Codes, bits: int, order: Sequence[int] | None = None) -> Words:
    """Pack along the first axis.

    Args:
        codes_RC: uint8; R is a multiple of ``32 / bits``.
        bits: 1, 2, 4 or 8.
        order: Which of a word's rows each of its places holds, lowest first; in order by default.

    Returns:
        int32 [R * bits / 32, C].
    """
    per_word, per_byte = _WORD_BITS // bits, _BYTE_BITS // bits
    rows = range(per_word) if order is None else order
    codes = codes_RC.reshape(-1, per_word, codes_RC.shape[1])
    packed = np.empty((codes.shape[0], codes.shape[2], _WORD_BITS // _BYTE_BITS), np.uint8)
    for byte in range(_WORD_BITS // _BYTE_BITS):
        value: Codes = codes[:, rows[byte * per_byte]]
        for place in range(1, per_byte):
            value = value | (codes[:, rows[byte * per_byte + place]] << np.uint8(place * bits))
        packed[..., byte] = value
    return packed.view(np.int32)[..., 0]


def unpack_rows(words_WC: Words, bits: int, order: Sequence[int] | None = None) -> Codes:
    """Undo ``pack_rows``.

    Args:
        words_WC: int32.
        bits: 1, 2, 4 or 8.
        order: As it was for ``pack_rows``.

    Returns:
        uint8 [W * 32 / bits, C].
    """
    per_word, per_byte = _WORD_BITS // bits, _BYTE_BITS // bits
    rows = range(per_word) if order is None else order
    num_words, num_columns = words_WC.shape
    packed = np.ascontiguousarray(words_WC).view(np.uint8).reshape(num_words, num_columns, -1)
    codes = np.empty((num_words, per_word, num_columns), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for byte in range(_WORD_BITS // _BYTE_BITS):
        value = np.ascontiguousarray(packed[..., byte])
        for place in range(per_byte):
            codes[:, rows[byte * per_byte + place]] = (value >> np.uint8(place * bits)) & mask
    return codes.reshape(-1, num_columns)


def transposed(values_RC: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return the contiguous transpose.

    Args:
        values_RC: Any dtype.

    Returns:
        [C, R] of the same dtype.
    """
    num_rows, num_columns = values_RC.shape
    result = np.empty((num_columns, num_rows), values_RC.dtype)
    for start in range(0, num_rows, _TILE):
        result[:, start : start + _TILE] = values_RC[start : start + _TILE].T
    return result


def padded_columns(values_RC: npt.NDArray[np.generic], width: int) -> npt.NDArray[np.generic]:
    """Return a matrix with zeros on its right.

    Args:
        values_RC: Any dtype.
        width: Columns of the result, at least C.

    Returns:
        [R, width] of the same dtype.
    """
    result = np.zeros((values_RC.shape[0], width), values_RC.dtype)
    result[:, : values_RC.shape[1]] = values_RC
    return result


def check_groups(
    shape_OI: tuple[int, int],
    scheme: Scheme,
    *,
    title: str,
    bits: Sequence[int],
    output_multiple: int = 1,
) -> None:
    """Refuse what a layout cannot hold.

    Args:
        shape_OI: Shape of the weight.
        scheme: Bits and groups.
        title: The layout, for messages.
        bits: Bits that it can hold.
        output_multiple: What the number of output features must be a multiple of.

    Raises:
        IncompatibleError: The weight does not fit; the message says what would.
    """
    num_out, num_in = shape_OI
    if scheme.bits not in bits:
        raise IncompatibleError(
            f"{title} holds {' or '.join(map(str, bits))} bits, not {scheme.bits}."
        )
    if scheme.group_size < 1 or num_in < 1 or num_in % scheme.group_size:
        fitting = [str(size) for size in _COMMON_GROUPS if num_in % size == 0 < num_in]
        advice = f"these sizes do: {', '.join(fitting)}" if fitting else "no usual size does"
        raise IncompatibleError(
            f"{num_in} input features do not divide into groups of {scheme.group_size}; {advice}."
        )
    if num_out < 1 or num_out % output_multiple:
        raise IncompatibleError(
            f"{title} needs output features in multiples of {output_multiple}, and there are "
            f"{num_out}. Keep this module in full precision, or choose another format."
        )


def check_weight(weight: QuantizedWeight) -> None:
    """Refuse a weight that breaks its contract, which is a defect of the method that made it.

    Args:
        weight: The weight.

    Raises:
        ValueError: Shapes, dtypes or values are not as ``QuantizedWeight`` says.
    """
    scheme = weight.scheme
    num_out, num_in = weight.codes_OI.shape
    groups = (num_out, num_in // scheme.group_size)
    if weight.scales_OG.shape != groups or weight.zeros_OG.shape != groups:
        raise ValueError(
            f"scales {weight.scales_OG.shape} and zeros {weight.zeros_OG.shape} of codes "
            f"{weight.codes_OI.shape} must be {groups}"
        )
    if weight.codes_OI.dtype != np.uint8 or weight.zeros_OG.dtype != np.uint8:
        raise ValueError("codes and zeros must be uint8")
    if weight.scales_OG.dtype != np.float16:
        raise ValueError("scales must be float16")
    if max(weight.codes_OI.max(), weight.zeros_OG.max()) >= scheme.num_codes:
        raise ValueError(f"a code or zero point does not fit into {scheme.bits} bits")
    # Bits of finite floats that are not negative lie below those of infinity.
    if (weight.scales_OG.view(np.uint16) >= np.float16(np.inf).view(np.uint16)).any():
        raise ValueError("scales must be finite and not negative")
    if scheme.symmetric and (weight.zeros_OG != scheme.num_codes // 2).any():
        raise ValueError("zero points of a symmetric scheme must be the middle code")


def check_parts(parts: Mapping[str, npt.NDArray[np.generic]], expected: Sequence[Part]) -> None:
    """Refuse arrays that are not what a layout writes.

    Args:
        parts: Arrays by suffix.
        expected: What the layout's ``parts`` returned.

    Raises:
        CheckpointError: One is missing, too many, or of another shape or dtype.
    """
    names = {part.suffix for part in expected}
    if names != set(parts):
        odd = ", ".join(sorted(names ^ set(parts)))
        raise CheckpointError(f"The parts of a quantized weight are missing or unknown: {odd}.")
    for part in expected:
        array = parts[part.suffix]
        if array.shape != part.shape or array.dtype != ARRAY_TYPES[part.dtype]:
            raise CheckpointError(
                f"'{part.suffix}' is {array.dtype.name} {list(array.shape)} and should be "
                f"{np.dtype(ARRAY_TYPES[part.dtype]).name} {list(part.shape)}."
            )


def scaled(weight: QuantizedWeight) -> ScaledCodes:
    """Return a method's codes as what any layout may hold.

    Args:
        weight: The weight.
    """
    return ScaledCodes(
        weight.codes_OI,
        weight.scales_OG.astype(np.float32),
        weight.scheme.group_size,
        zeros_OG=weight.zeros_OG,
        precision="F16",
    )


def as_words(array: npt.NDArray[np.generic]) -> Words:
    """Return an array that ``check_parts`` found to be int32, typed as such."""
    return np.asarray(array, np.int32)


def as_scales(array: npt.NDArray[np.generic]) -> Scales:
    """Return scales that ``check_parts`` found to be float16, typed as such, once they are sane.

    Raises:
        CheckpointError: One is negative or not finite.
    """
    scales = np.ascontiguousarray(array, np.float16)
    if (scales.view(np.uint16) >= np.float16(np.inf).view(np.uint16)).any():
        raise CheckpointError("Scales are negative or not finite.")
    return scales


def as_codes(array: npt.NDArray[np.generic]) -> Codes:
    """Return an array of uint8, typed as such."""
    return np.asarray(array, np.uint8)
