"""compressed-tensors ``pack-quantized``: integers of few bits (W4A16, W8A16).

    part               dtype  shape                 holds
    weight_packed      int32  [O, ceil(I*b/32)]     codes along I, in order
    weight_scale       f16    [O, I/g]              scales
    weight_shape       int64  [2]                   O and I
    weight_zero_point  int32  [ceil(O*b/32), I/g]   zero points along O, in order; asymmetric only

The library's numbers are signed and lie in the file with 2^(b-1) added, which makes them our
codes; so do its zero points. Words are filled up with zero bits.
``weight = (code - zero) * scale``.

Others also write one scale for a whole row (``channel``), 2 to 8 bits without gaps across words,
scales in bfloat16 or float32, and columns in any order, of which ``weight_g_idx`` (int32 [I]) says
the groups. ``decode`` reads all of these and rounds once, to the type of the scales, as the
library's ``dequantize`` does.

Reference: compressed-tensors 0.20, ``PackedQuantizationCompressor``. Legend: O output features,
I input features, g group size, b bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError
from forge.formats.contract import Part, QuantizedWeight, ScaledCodes, Scheme
from forge.formats.numbers import finite_singles
from forge.formats.packing import (
    Codes,
    Words,
    as_codes,
    as_scales,
    as_words,
    check_groups,
    check_parts,
    check_weight,
    pack_columns,
    padded_columns,
    transposed,
    unpack_columns,
    unpack_stream,
)

TITLE: Final = "compressed-tensors"
_BITS: Final = (4, 8)
_WORD_BITS: Final = 32


def parts(shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
    """Return what is written for a weight.

    Args:
        shape_OI: Shape of the weight.
        scheme: Four or eight bits; any group size that divides I.

    Raises:
        IncompatibleError: The scheme does not fit.
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
    scheme = weight.scheme
    _layout((num_out, num_in), scheme)
    check_weight(weight)
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "weight_packed": _packed(weight.codes_OI, scheme.bits),
        "weight_scale": np.ascontiguousarray(weight.scales_OG),
        "weight_shape": np.array([num_out, num_in], np.int64),
    }
    if not scheme.symmetric:
        zeros_GO = as_codes(transposed(weight.zeros_OG))
        arrays["weight_zero_point"] = transposed(_packed(zeros_GO, scheme.bits))
    return arrays


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
    num_out, num_in = shape_OI
    _check_stated(parts["weight_shape"], shape_OI)
    scales_OG = as_scales(parts["weight_scale"])
    if scheme.symmetric:
        zeros_OG = np.full(scales_OG.shape, scheme.num_codes // 2, np.uint8)
    else:
        words_GX = as_words(transposed(parts["weight_zero_point"]))
        zeros_OG = as_codes(transposed(_unpacked(words_GX, scheme.bits, num_out)))
    codes_OI = _unpacked(as_words(parts["weight_packed"]), scheme.bits, num_in)
    return QuantizedWeight(codes_OI, scales_OG, zeros_OG, scheme)


def parts_of_any(
    shape_OI: tuple[int, int],
    *,
    bits: int,
    num_groups: int,
    scale_dtype: str,
    symmetric: bool,
    has_order: bool,
) -> tuple[Part, ...]:
    """Return what any writer of ``pack-quantized`` writes for a weight.

    Args:
        shape_OI: Shape of the weight.
        bits: 2 to 8.
        num_groups: Groups of input features.
        scale_dtype: Element type of the scales.
        symmetric: Whether there are no zero points.
        has_order: Whether the group of each input feature is stored.
    """
    num_out, num_in = shape_OI
    found = [
        Part("weight_packed", (num_out, _num_words(num_in, bits)), "I32"),
        Part("weight_scale", (num_out, num_groups), scale_dtype),
        Part("weight_shape", (2,), "I64"),
    ]
    if not symmetric:
        found.append(Part("weight_zero_point", (_num_words(num_out, bits), num_groups), "I32"))
    if has_order:
        found.append(Part("weight_g_idx", (num_in,), "I32"))
    return tuple(found)


def decode(
    parts: Mapping[str, npt.NDArray[np.generic]],
    *,
    shape_OI: tuple[int, int],
    bits: int,
    scale_dtype: str,
) -> ScaledCodes:
    """Read a weight of any writer.

    Args:
        parts: Arrays by suffix; zero points and ``weight_g_idx`` only where they are stored.
        shape_OI: Shape of the weight.
        bits: 2 to 8.
        scale_dtype: Element type of the scales.

    Raises:
        CheckpointError: The arrays are not such a weight's.
    """
    num_out, num_in = shape_OI
    num_groups = parts["weight_scale"].shape[1]
    symmetric, has_order = "weight_zero_point" not in parts, "weight_g_idx" in parts
    check_parts(
        parts,
        parts_of_any(
            shape_OI, bits=bits, num_groups=num_groups, scale_dtype=scale_dtype,
            symmetric=symmetric, has_order=has_order,
        ),
    )  # fmt: skip
    _check_stated(parts["weight_shape"], shape_OI)
    if num_groups < 1 or num_in % num_groups:
        raise CheckpointError(f"{num_in} input features do not divide into {num_groups} groups.")
    groups_I: npt.NDArray[np.int32] | None = None
    if has_order:
        groups_I = np.asarray(parts["weight_g_idx"], np.int32)
        if groups_I.size and not 0 <= int(groups_I.min()) <= int(groups_I.max()) < num_groups:
            raise CheckpointError(
                f"'weight_g_idx' names groups beyond the {num_groups} that there are."
            )
    if symmetric:
        zeros_OG = np.full((num_out, num_groups), 1 << (bits - 1), np.uint8)
    else:
        words_GX = as_words(transposed(parts["weight_zero_point"]))
        zeros_OG = as_codes(transposed(unpack_stream(words_GX, bits, num_out)))
    return ScaledCodes(
        unpack_stream(as_words(parts["weight_packed"]), bits, num_in),
        finite_singles(parts["weight_scale"], scale_dtype, what="weight_scale"),
        max(1, num_in // num_groups),
        zeros_OG=zeros_OG,
        groups_I=groups_I,
        precision=scale_dtype,
    )


def quantization_config(scheme: Scheme, modules_to_not_convert: Sequence[str]) -> dict[str, object]:
    """Return what ``config.json`` says under that name.

    Args:
        scheme: Bits and groups.
        modules_to_not_convert: Linear modules that stay in full precision, by full name. The
            library takes every other linear module for a quantized one, the head included.
    """
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group",
        "group_size": scheme.group_size,
        "dynamic": False,
        "actorder": None,
    }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }
    config: dict[str, object] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "kv_cache_scheme": None,
        "ignore": list(modules_to_not_convert),
    }
    if not scheme.symmetric:
        # Read by transformers alone. Without it, compressed-tensors 0.20 makes room for zero
        # points that are not packed, and refuses every file that has them.
        config["dequantize"] = True
    return config


def scheme_of(config: Mapping[str, object]) -> Scheme:
    """Return the scheme that a ``quantization_config`` states.

    Raises:
        CheckpointError: It states several schemes, activations, or weights that this layout
            does not hold.
    """
    groups = config.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    if not isinstance(groups, Mapping) or len(groups) != 1 or not isinstance(group, Mapping):
        raise CheckpointError("A compressed-tensors checkpoint must have exactly one config group.")
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        raise CheckpointError("The config group of a compressed-tensors checkpoint has no weights.")
    bits, group_size = weights.get("num_bits"), weights.get("group_size")
    is_known = (
        weights.get("type") == "int"
        and weights.get("strategy") == "group"
        and weights.get("actorder") in (None, "static", "weight")
        and group.get("input_activations") is None
        and group.get("output_activations") is None
        and config.get("format") == "pack-quantized"
    )
    if not is_known or type(bits) is not int or type(group_size) is not int or group_size < 1:
        raise CheckpointError(
            "Of compressed-tensors, forge knows pack-quantized integer weights by groups, without "
            "quantized activations and without a reordering of columns."
        )
    return Scheme(bits, group_size, symmetric=weights.get("symmetric") is not False)


def shape_of(shapes: Mapping[str, tuple[int, ...]], scheme: Scheme) -> tuple[int, int]:
    """Return the shape [O, I] of the weight whose parts have these shapes.

    Args:
        shapes: Shapes by suffix.
        scheme: Bits and groups.
    """
    num_out, num_groups = shapes["weight_scale"]
    return num_out, num_groups * scheme.group_size


def _layout(shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
    check_groups(shape_OI, scheme, title=TITLE, bits=_BITS)
    num_out, num_in = shape_OI
    num_groups = num_in // scheme.group_size
    layout = (
        Part("weight_packed", (num_out, _num_words(num_in, scheme.bits)), "I32"),
        Part("weight_scale", (num_out, num_groups), "F16"),
        Part("weight_shape", (2,), "I64"),
    )
    if scheme.symmetric:
        return layout
    zeros = Part("weight_zero_point", (_num_words(num_out, scheme.bits), num_groups), "I32")
    return (*layout, zeros)


def _check_stated(stated: npt.NDArray[np.generic], shape_OI: tuple[int, int]) -> None:
    if tuple(np.asarray(stated, np.int64)) != shape_OI:
        raise CheckpointError(f"'weight_shape' says {stated.tolist()} for {list(shape_OI)}.")


def _num_words(count: int, bits: int) -> int:
    return -(-count * bits // _WORD_BITS)


def _packed(codes_RC: Codes, bits: int) -> Words:
    count = codes_RC.shape[1]
    width = _num_words(count, bits) * _WORD_BITS // bits
    whole_RC = codes_RC if count == width else as_codes(padded_columns(codes_RC, width))
    return pack_columns(whole_RC, bits)


def _unpacked(words_RW: Words, bits: int, count: int) -> Codes:
    codes = unpack_columns(words_RW, bits)
    if codes[:, count:].any():
        raise CheckpointError("The last bits of packed codes, which mean nothing, are not zero.")
    return np.ascontiguousarray(codes[:, :count])
