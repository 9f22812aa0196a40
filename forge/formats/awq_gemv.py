"""AWQ, version ``gemv``: for CUDA kernels that multiply by one vector.

    part     dtype  shape     holds
    qweight  int32  [O, I/8]  codes, eight columns of I a word, in order
    qzeros   int32  [O, W]    zero points, eight groups a word, in order
    scales   f16    [O, 8W]   scales

``W = ceil(ceil((I/g) / 8) / m) * m`` with m = 4, 2, 1 for g = 32, 64, 128 and more; what is
right of the groups is zero. ``weight = (code - zero) * scale``.

Nothing reads this layout on a CPU, and no current server does; ``forge convert`` makes GEMM of
it without loss.

Reference: AutoAWQ 0.2.9, ``WQLinear_GEMV``. Legend: O output features, I input features,
g group size, W words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError
from forge.formats import awq_config
from forge.formats.contract import Part, QuantizedWeight, ScaledCodes, Scheme
from forge.formats.packing import (
    as_codes,
    as_scales,
    as_words,
    check_groups,
    check_parts,
    check_weight,
    pack_columns,
    padded_columns,
    scaled,
    unpack_columns,
)

TITLE: Final = "AWQ GEMV"
VERSION: Final = "gemv"
_PER_WORD: Final = 8


def parts(shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
    """Return what is written for a weight.

    Args:
        shape_OI: Shape of the weight.
        scheme: Four bits; groups of 32, 64 or a multiple of 128 that divide I.

    Raises:
        IncompatibleError: O is not a multiple of 8, or the scheme does not fit.
    """
    return _layout(shape_OI, scheme)


def pack(weight: QuantizedWeight) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of ``parts`` by suffix.

    Args:
        weight: The weight.

    Raises:
        IncompatibleError: As ``parts``.
        ValueError: The weight breaks its contract.
    """
    num_out, num_in = weight.codes_OI.shape
    _layout((num_out, num_in), weight.scheme)
    check_weight(weight)
    width = _PER_WORD * awq_config.zeros_width(num_in, weight.scheme.group_size)
    return {
        "qweight": pack_columns(weight.codes_OI, 4),
        "qzeros": pack_columns(as_codes(padded_columns(weight.zeros_OG, width)), 4),
        "scales": padded_columns(weight.scales_OG, width),
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
    zeros = unpack_columns(as_words(parts["qzeros"]), 4)
    scales = as_scales(parts["scales"])
    if zeros[:, num_groups:].any() or scales.view(np.uint16)[:, num_groups:].any():
        raise CheckpointError("The padding of AWQ GEMV's zero points and scales is not zero.")
    return QuantizedWeight(
        unpack_columns(as_words(parts["qweight"]), 4),
        np.ascontiguousarray(scales[:, :num_groups]),
        np.ascontiguousarray(zeros[:, :num_groups]),
        scheme,
    )


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
    num_out, num_words = shapes["qweight"]
    return num_out, num_words * _PER_WORD


def _layout(shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
    # O in eights is the kernels' demand; the words would need none.
    check_groups(shape_OI, scheme, title=TITLE, bits=(4,), output_multiple=8)
    num_out, num_in = shape_OI
    width = awq_config.zeros_width(num_in, scheme.group_size)
    return (
        Part("qweight", (num_out, num_in // _PER_WORD), "I32"),
        Part("qzeros", (num_out, width), "I32"),
        Part("scales", (num_out, width * _PER_WORD), "F16"),
    )
