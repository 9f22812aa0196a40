"""AWQ, version ``gemv_fast``: for the second generation of AutoAWQ's CUDA kernels.

    part     dtype  shape      holds
    qweight  int16  [O/4, I]   codes, four rows interleaved, four columns of I a word
    qzeros   f16    [8W, O]    -scale * zero, rounded once; -0 where the zero point is 0
    scales   f16    [8W, O]    scales

W is that of ``awq_gemv``; what is below the groups is zero. Row n of ``qweight`` holds the codes
of rows 4n to 4n + 3, 64 columns at a time: 16 words of the first row, 16 of the second, and so
on. The 16 words of a row are two halves of 32 columns. Word 2b + c of a half holds the columns
2b + c + 8a in its places a = 0 to 3.

``qzeros`` are products, yet nothing is lost: a zero point is at most 15 and half a unit of
float16's last place is 2^-12 of the product, so that dividing by the scale and rounding gives the
zero point back. A scale of 0 has no zero point but 0, and a product beyond float16 is refused.

Reference: AutoAWQ 0.2.9, ``WQLinear_GEMVFast``. Legend: O output features, I input features,
G groups, g group size, W words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats import awq_config
from forge.formats.contract import Part, QuantizedWeight, ScaledCodes, Scheme
from forge.formats.packing import (
    Codes,
    Scales,
    as_scales,
    check_groups,
    check_parts,
    check_weight,
    padded_columns,
    scaled,
    transposed,
)

TITLE: Final = "AWQ GEMV fast"
VERSION: Final = "gemv_fast"
_ROWS: Final = 4
_STRIDE: Final = 64


def parts(shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
    """Return what is written for a weight.

    Args:
        shape_OI: Shape of the weight.
        scheme: Four bits; groups of 32, 64 or a multiple of 128 that divide I.

    Raises:
        IncompatibleError: O is not a multiple of 8 or I of 64, or the scheme does not fit.
    """
    return _layout(shape_OI, scheme)


def pack(weight: QuantizedWeight) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of ``parts`` by suffix.

    Args:
        weight: The weight.

    Raises:
        IncompatibleError: As ``parts``; or a product of scale and zero point is beyond float16,
            or the scale is 0 and the zero point is not.
        ValueError: The weight breaks its contract.
    """
    num_out, num_in = weight.codes_OI.shape
    _layout((num_out, num_in), weight.scheme)
    check_weight(weight)
    width = 8 * awq_config.zeros_width(num_in, weight.scheme.group_size)
    products = _products(weight.scales_OG, weight.zeros_OG)
    zeros = _zeros(products, weight.scales_OG)
    if not np.isfinite(products).all() or (zeros != weight.zeros_OG).any():
        raise IncompatibleError(
            f"{TITLE} stores -scale * zero in float16, and a scale of this weight is 0 or too "
            "large for that. Choose another format."
        )
    return {
        "qweight": _interleaved(weight.codes_OI),
        "qzeros": transposed(padded_columns(products, width)),
        "scales": transposed(padded_columns(weight.scales_OG, width)),
    }


def unpack(
    parts: Mapping[str, npt.NDArray[np.generic]],
    *,
    shape_OI: tuple[int, int],
    scheme: Scheme,
) -> QuantizedWeight:
    """Return the weight whose ``pack`` is exactly these arrays.

    Args:
        parts: Arrays by suffix.
        shape_OI: Shape of the weight.
        scheme: Its scheme.

    Raises:
        CheckpointError: The arrays are not such a weight's.
        IncompatibleError: As ``parts``.
    """
    check_parts(parts, _layout(shape_OI, scheme))
    num_groups = shape_OI[1] // scheme.group_size
    scales_OX = as_scales(transposed(parts["scales"]))
    products_OX = np.asarray(transposed(parts["qzeros"]), np.float16)
    padding = (scales_OX.view(np.uint16), products_OX.view(np.uint16))
    if any(bits[:, num_groups:].any() for bits in padding):
        raise CheckpointError("The padding of AWQ GEMV's zero points and scales is not zero.")
    scales_OG = np.ascontiguousarray(scales_OX[:, :num_groups])
    products_OG = np.ascontiguousarray(products_OX[:, :num_groups])
    zeros_OG = _zeros(products_OG, scales_OG)
    again_OG = _products(scales_OG, zeros_OG)
    is_same = again_OG.view(np.uint16) == products_OG.view(np.uint16)
    if not np.isfinite(products_OG).all() or not is_same.all():
        raise CheckpointError(
            "'qzeros' are not -scale * zero of whole zero points from 0 to 15, rounded to float16."
        )
    codes_OI = _deinterleaved(np.asarray(parts["qweight"], np.int16))
    return QuantizedWeight(codes_OI, scales_OG, zeros_OG, scheme)


def decode(
    parts: Mapping[str, npt.NDArray[np.generic]],
    *,
    shape_OI: tuple[int, int],
    scheme: Scheme,
    scale_dtype: str,
) -> ScaledCodes:
    """Read a weight for its numbers.

    Args:
        parts: Arrays by suffix.
        shape_OI: Shape of the weight.
        scheme: Its scheme.
        scale_dtype: ``F16``; this layout has no other.

    Raises:
        CheckpointError: The arrays are not such a weight's.
        IncompatibleError: As ``parts``.
    """
    if scale_dtype != "F16":
        raise CheckpointError(f"{TITLE} has scales in float16, not {scale_dtype}.")
    return scaled(unpack(parts, shape_OI=shape_OI, scheme=scheme))


def quantization_config(scheme: Scheme, modules_to_not_convert: Sequence[str]) -> dict[str, object]:
    """Return what ``config.json`` says under that name.

    Args:
        scheme: Bits and groups.
        modules_to_not_convert: Linear modules that stay in full precision.
    """
    return awq_config.write(VERSION, scheme, modules_to_not_convert)


def scheme_of(config: Mapping[str, object]) -> Scheme:
    """Return the scheme that a ``quantization_config`` states.

    Raises:
        CheckpointError: It states none that AWQ has.
    """
    return awq_config.read(config)


def shape_of(shapes: Mapping[str, tuple[int, ...]], scheme: Scheme) -> tuple[int, int]:
    """Return the shape [O, I] of the weight whose parts have these shapes.

    Args:
        shapes: Shapes by suffix.
        scheme: Bits and groups.
    """
    num_rows, num_in = shapes["qweight"]
    return num_rows * _ROWS, num_in


def _layout(shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
    check_groups(shape_OI, scheme, title=TITLE, bits=(4,), output_multiple=8)
    num_out, num_in = shape_OI
    if num_in % _STRIDE:
        raise IncompatibleError(
            f"{TITLE} needs input features in multiples of {_STRIDE}, and there are {num_in}. "
            "Keep this module in full precision, or choose another format."
        )
    height = 8 * awq_config.zeros_width(num_in, scheme.group_size)
    return (
        Part("qweight", (num_out // _ROWS, num_in), "I16"),
        Part("qzeros", (height, num_out), "F16"),
        Part("scales", (height, num_out), "F16"),
    )


def _products(scales_OG: Scales, zeros_OG: Codes) -> Scales:
    with np.errstate(over="ignore"):
        return -(scales_OG.astype(np.float32) * zeros_OG).astype(np.float16)


def _zeros(products_OG: Scales, scales_OG: Scales) -> Codes:
    """Return the zero points; where none gives the product, one that does not give it either."""
    divisors = np.where(scales_OG > 0, scales_OG, np.float16(1)).astype(np.float32)
    quotients = -products_OG.astype(np.float32) / divisors
    zeros: Codes = np.rint(np.clip(np.nan_to_num(quotients), 0, 15)).astype(np.uint8)
    return zeros


def _interleaved(codes_OI: Codes) -> npt.NDArray[np.int16]:
    num_out, num_in = codes_OI.shape
    # [O/4, row, I/64, half, a, b and c as the eight bytes of one word]
    octets = codes_OI.view(np.uint64).reshape(num_out // _ROWS, _ROWS, num_in // _STRIDE, 2, 4)
    low = octets[..., 0] | (octets[..., 1] << np.uint64(4))
    high = octets[..., 2] | (octets[..., 3] << np.uint64(4))
    packed = np.empty((num_out // _ROWS, num_in // _STRIDE, _ROWS, 2, 8, 2), np.uint8)
    packed[..., 0] = _bytes(low.swapaxes(1, 2))
    packed[..., 1] = _bytes(high.swapaxes(1, 2))
    return packed.view(np.int16).reshape(num_out // _ROWS, num_in)


def _deinterleaved(words: npt.NDArray[np.int16]) -> Codes:
    num_rows, num_in = words.shape
    packed = np.ascontiguousarray(words).view(np.uint8)
    packed = packed.reshape(num_rows, num_in // _STRIDE, _ROWS, 2, 8, 2).swapaxes(1, 2)
    codes = np.empty((num_rows, _ROWS, num_in // _STRIDE, 2, 4, 8), np.uint8)
    for place in range(2):
        value = packed[..., place]
        codes[..., 2 * place, :] = value & 15
        codes[..., 2 * place + 1, :] = value >> 4
    return codes.reshape(num_rows * _ROWS, num_in)


def _bytes(octets: npt.NDArray[np.uint64]) -> Codes:
    return np.ascontiguousarray(octets)[..., None].view(np.uint8)
