"""From stored bytes to numbers: element types, tables of small floats, and codes times scales.

One rule turns the codes of every layout into numbers, because every library does the same:

    number = value(code) - zero          exact in float32
    product = number * scale * factor    in float32, each product rounded once
    weight = round(round(product, precision), dtype)

``precision`` is the type in which the format's own library holds its scales and multiplies. Where
scales have eight or eleven bits (bfloat16, float16), the float32 product of a code and a scale is
exact, so rounding it once is what the library's multiplication in that type gives.

Legend: O output features, I input features, G groups.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError
from forge.formats.raw_weight import KINDS
from forge.kernels.cpu import native
from forge.kernels.operands import address_of

if TYPE_CHECKING:
    from forge.formats.contract import ScaledCodes

ARRAY_TYPES: Final = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
    "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
}  # fmt: skip
"""numpy's types by safetensors' names; floats that numpy lacks, as their bits."""

FLOATS: Final = ("BF16", "F16", "F32")
"""Types in which libraries store scales that are plain numbers."""

_FP4: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FLOAT8: Final = {"F8_E4M3": (4, 3, 7), "F8_E5M2": (5, 2, 15)}
"""Exponent bits, mantissa bits and bias."""


def numbers_of(weight: ScaledCodes, dtype: str) -> npt.NDArray[np.generic]:
    """Turn codes into numbers.

    Args:
        weight: The weight.
        dtype: ``BF16``, ``F16`` or ``F32``.

    Returns:
        [O, I] of that type; ``BF16`` as uint16 bits.

    Raises:
        ValueError: Shapes do not fit together, which is a defect of a layout.
    """
    num_out, num_in = weight.codes_OI.shape
    codes_OI = np.ascontiguousarray(weight.codes_OI, np.uint8)
    scales_OG = np.ascontiguousarray(weight.scales_OG, np.float32)
    num_groups = scales_OG.shape[1]
    zeros = None if weight.zeros_OG is None else np.ascontiguousarray(weight.zeros_OG, np.uint8)
    values = None if weight.values is None else _whole_table(weight.values)
    groups = None if weight.groups_I is None else np.ascontiguousarray(weight.groups_I, np.int32)
    if scales_OG.shape[0] != num_out or (zeros is not None and zeros.shape != scales_OG.shape):
        raise ValueError(f"scales {scales_OG.shape} and zeros do not fit {codes_OI.shape}")
    if groups is None and num_groups != -(-num_in // weight.group_size):
        raise ValueError(f"{num_in} columns are not {num_groups} groups of {weight.group_size}")
    if groups is not None and (
        groups.shape != (num_in,) or values is not None
        or (num_in and not 0 <= int(groups.min()) <= int(groups.max()) < num_groups)
    ):  # fmt: skip
        raise ValueError("groups of columns are out of range, or belong to codes of a table")
    output = np.empty((num_out, num_in), ARRAY_TYPES[dtype])
    work, factor = np.empty(max(num_in, 1), np.float32), np.array([weight.factor], np.float32)
    # Rounding to the output's own type needs no step of its own.
    precision = "F32" if weight.precision == dtype else weight.precision
    native.word_kernel("quantized.scaled_codes.numbers_of_codes", 14)(
        address_of(codes_OI), _address(values), _address(zeros), address_of(scales_OG),
        _address(groups), num_out, num_in, num_groups, weight.group_size, address_of(factor),
        KINDS[precision], KINDS[dtype], address_of(work), address_of(output),
    )  # fmt: skip
    return output


def singles(array: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.float32]:
    """Return the values of scales, exact, as float32 of the same shape.

    Args:
        array: As ``ARRAY_TYPES`` says.
        dtype: ``BF16``, ``F16``, ``F32``, ``F8_E4M3``, ``F8_E5M2`` or ``F8_E8M0``. A ``U8`` is
            taken for ``F8_E8M0``, which libraries without that type store so.
    """
    if dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype in ("F8_E8M0", "U8"):
        return powers_of_two()[array.astype(np.intp)]
    if dtype in _FLOAT8:
        return float8_values(dtype)[array.astype(np.intp)]
    return np.ascontiguousarray(array).astype(np.float32)


def finite_singles(
    array: npt.NDArray[np.generic], dtype: str, *, what: str
) -> npt.NDArray[np.float32]:
    """Return the values of scales, once none of them is a NaN or an infinity.

    Args:
        array: As for ``singles``.
        dtype: As for ``singles``.
        what: Name of the part, for the message.

    Raises:
        CheckpointError: One is not finite.
    """
    values = singles(array, dtype)
    if not np.isfinite(values).all():
        raise CheckpointError(f"'{what}' holds a NaN or an infinity. The checkpoint is damaged.")
    return values


@cache
def float8_values(dtype: str) -> npt.NDArray[np.float32]:
    """Return the value of each of the 256 codes of an 8-bit float.

    Args:
        dtype: ``F8_E4M3`` (no infinities, NaN at 127 and 255) or ``F8_E5M2``.
    """
    exponent_bits, mantissa_bits, bias = _FLOAT8[dtype]
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    power = np.exp2(np.maximum(exponent, 1) - bias)
    magnitude = np.where(exponent == 0, mantissa, 1 + mantissa) * power
    if dtype == "F8_E4M3":
        magnitude[[127, 255]] = np.nan
    else:
        greatest = exponent == (1 << exponent_bits) - 1
        magnitude[greatest] = np.where(mantissa[greatest] == 0, np.inf, np.nan)
    values: npt.NDArray[np.float32] = np.where(codes >= 128, -magnitude, magnitude).astype(
        np.float32
    )
    return values


@cache
def float4_values() -> npt.NDArray[np.float32]:
    """Return the value of each of the 16 codes of FP4 (E2M1), of minus zero as minus zero."""
    magnitudes = np.array(_FP4, np.float32)
    return np.concatenate([magnitudes, -magnitudes])


@cache
def powers_of_two() -> npt.NDArray[np.float32]:
    """Return the value of each of the 256 codes of E8M0, ``2^(code - 127)``; of 255, a NaN."""
    powers = np.exp2(np.arange(256) - 127.0)
    powers[255] = np.nan
    values: npt.NDArray[np.float32] = powers.astype(np.float32)
    return values


@cache
def _padding() -> npt.NDArray[np.float32]:
    return np.full(256, np.nan, np.float32)


def _whole_table(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return a table of 256 entries, so that no code can read beyond it."""
    table = _padding().copy()
    table[: len(values)] = values
    return table


def _address(array: npt.NDArray[np.generic] | None) -> int:
    return 0 if array is None else address_of(array)
