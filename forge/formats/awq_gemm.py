"""AWQ, version ``gemm``: the layout that most readers of AWQ know.

    part     dtype  shape         holds
    qweight  int32  [I, O/8]      codes, eight columns of O a word
    qzeros   int32  [I/g, O/8]    zero points, eight columns of O a word
    scales   f16    [I/g, O]      scales

Place i of a word, counted from its lowest four bits, holds column ``8w + (0 2 4 6 1 3 5 7)[i]``.
Zero points are stored as they are: ``weight = (code - zero) * scale``.

Reference: AutoAWQ 0.2.9, ``WQLinear_GEMM``. Legend: O output features, I input features,
g group size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.formats import awq_config
from forge.formats.contract import Part, QuantizedWeight, ScaledCodes, Scheme
from forge.formats.numbers import finite_singles
from forge.formats.packing import (
    Codes,
    as_scales,
    as_words,
    check_groups,
    check_parts,
    check_weight,
    pack_rows,
    transposed,
    unpack_rows,
)

TITLE: Final = "AWQ GEMM"
VERSION: Final = "gemm"
_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
_PER_WORD: Final = 8


def parts(shape_OI: tuple[int, int], scheme: Scheme, scale_dtype: str = "F16") -> tuple[Part, ...]:
    """Return what is written for a weight.

    Args:
        shape_OI: Shape of the weight.
        scheme: Four bits; any group size that divides I.
        scale_dtype: Element type of the scales, where another writer chose it.

    Raises:
        IncompatibleError: O is not a multiple of 8, or the scheme does not fit.
    """
    return _layout(shape_OI, scheme, scale_dtype)


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
    return {
        "qweight": transposed(pack_rows(weight.codes_OI, 4, _ORDER)),
        "qzeros": transposed(pack_rows(weight.zeros_OG, 4, _ORDER)),
        "scales": transposed(weight.scales_OG),
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
    codes_OI, zeros_OG = _unpacked(parts)
    return QuantizedWeight(codes_OI, as_scales(transposed(parts["scales"])), zeros_OG, scheme)


def decode(
    parts: Mapping[str, npt.NDArray[np.generic]],
    *,
    shape_OI: tuple[int, int],
    scheme: Scheme,
    scale_dtype: str,
) -> ScaledCodes:
    """Read a weight of any writer, whose scales may be negative or of another type.

    Args:
        parts: Arrays by suffix.
        shape_OI: Shape of the weight.
        scheme: Its scheme.
        scale_dtype: Element type of its scales.

    Raises:
        CheckpointError: The arrays are not such a weight's.
        IncompatibleError: As ``parts``.
    """
    check_parts(parts, _layout(shape_OI, scheme, scale_dtype))
    codes_OI, zeros_OG = _unpacked(parts)
    scales_OG = finite_singles(transposed(parts["scales"]), scale_dtype, what="scales")
    return ScaledCodes(
        codes_OI, scales_OG, scheme.group_size, zeros_OG=zeros_OG, precision=scale_dtype
    )


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
    num_in, num_words = shapes["qweight"]
    return num_words * _PER_WORD, num_in


def _unpacked(parts: Mapping[str, npt.NDArray[np.generic]]) -> tuple[Codes, Codes]:
    """Return codes [O, I] and zero points [O, G]."""
    return (
        unpack_rows(as_words(transposed(parts["qweight"])), 4, _ORDER),
        unpack_rows(as_words(transposed(parts["qzeros"])), 4, _ORDER),
    )


def _layout(
    shape_OI: tuple[int, int], scheme: Scheme, scale_dtype: str = "F16"
) -> tuple[Part, ...]:
    check_groups(shape_OI, scheme, title=TITLE, bits=(4,), output_multiple=_PER_WORD)
    num_out, num_in = shape_OI
    num_groups = num_in // scheme.group_size
    return (
        Part("qweight", (num_in, num_out // _PER_WORD), "I32"),
        Part("qzeros", (num_groups, num_out // _PER_WORD), "I32"),
        Part("scales", (num_groups, num_out), scale_dtype),
    )
