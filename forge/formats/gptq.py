"""GPTQ: the layout that the most readers know.

    part     dtype  shape            holds
    qweight  int32  [I*b/32, O]      codes, neighbours of I in a word, in order
    qzeros   int32  [I/g, O*b/32]    zero points, neighbours of O in a word, in order
    scales   f16    [I/g, O]         scales
    g_idx    int32  [I]              group of each input feature: i / g, whole part

The first version of this layout (``checkpoint_format: gptq``) stores zero points less one, so
that 0 becomes 15 and only a reader that masks gets it back. A symmetric scheme, whose zero points
are all 8, is written that way, because everything reads it. An asymmetric one is written in the
second version (``gptq_v2``), which stores zero points as they are.

Others also write 2 and 3 bits (32 codes of 3 bits are three words without a gap), columns in any
order (``g_idx`` then says the group of each), asymmetric weights in the first version, and scales
in bfloat16. ``decode`` reads all of these; ``weight = (code - zero) * scale``, rounded once to the
type of the scales.

Reference: Frantar et al., arXiv 2210.17323; GPTQModel 7.6, ``FORMAT.GPTQ`` and ``GPTQ_V2``.
Legend: O output features, I input features, g group size, b bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.contract import Part, QuantizedWeight, ScaledCodes, Scheme
from forge.formats.numbers import finite_singles
from forge.formats.packing import (
    Codes,
    as_codes,
    as_scales,
    as_words,
    check_groups,
    check_parts,
    check_weight,
    pack_columns,
    transposed,
    unpack_stream,
)

TITLE: Final = "GPTQ"
BITS_OF_ANY: Final = (2, 3, 4, 8)
"""Bits that are read; ``_BITS`` are those that are written."""
_BITS: Final = (4, 8)
_WORD_BITS: Final = 32


def parts(shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
    """Return what is written for a weight.

    Args:
        shape_OI: Shape of the weight.
        scheme: Four or eight bits; any group size that divides I.

    Raises:
        IncompatibleError: O or I does not fill whole words, or the scheme does not fit.
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
    zeros_GO = as_codes(transposed(weight.zeros_OG)) - np.uint8(scheme.symmetric)
    return {
        "qweight": transposed(pack_columns(weight.codes_OI, scheme.bits)),
        "qzeros": pack_columns(zeros_GO, scheme.bits),
        "scales": transposed(weight.scales_OG),
        "g_idx": _groups(num_in, scheme),
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
        CheckpointError: The arrays are not such a weight's, or its columns are reordered.
        IncompatibleError: As ``parts``.
    """
    check_parts(parts, _layout(shape_OI, scheme))
    if (np.asarray(parts["g_idx"]) != _groups(shape_OI[1], scheme)).any():
        raise CheckpointError(
            "'g_idx' reorders the columns (desc_act), which forge's codes do not express."
        )
    codes_OI, zeros_OG = _unpacked(parts, shape_OI, scheme.bits, adds_one=scheme.symmetric)
    if scheme.symmetric and (zeros_OG != scheme.num_codes // 2).any():
        raise CheckpointError("Zero points of a symmetric scheme are not the middle code.")
    return QuantizedWeight(codes_OI, as_scales(transposed(parts["scales"])), zeros_OG, scheme)


def parts_of_any(
    shape_OI: tuple[int, int],
    *,
    bits: int,
    num_groups: int,
    scale_dtype: str,
    has_order: bool,
) -> tuple[Part, ...]:
    """Return what any writer of GPTQ writes for a weight.

    Args:
        shape_OI: Shape of the weight.
        bits: 2, 3, 4 or 8.
        num_groups: Groups of input features.
        scale_dtype: Element type of the scales.
        has_order: Whether the group of each input feature is stored.

    Raises:
        IncompatibleError: The features do not fill whole words, or the bits are none of these.
    """
    num_out, num_in = shape_OI
    if bits not in BITS_OF_ANY:
        raise IncompatibleError(f"{TITLE} has 2, 3, 4 or 8 bits, not {bits}.")
    if num_in * bits % _WORD_BITS or num_out * bits % _WORD_BITS:
        raise IncompatibleError(f"{list(shape_OI)} codes of {bits} bits do not fill whole words.")
    found = (
        Part("qweight", (num_in * bits // _WORD_BITS, num_out), "I32"),
        Part("qzeros", (num_groups, num_out * bits // _WORD_BITS), "I32"),
        Part("scales", (num_groups, num_out), scale_dtype),
    )
    return (*found, Part("g_idx", (num_in,), "I32")) if has_order else found


def decode(
    parts: Mapping[str, npt.NDArray[np.generic]],
    *,
    shape_OI: tuple[int, int],
    bits: int,
    adds_one: bool,
    scale_dtype: str,
) -> ScaledCodes:
    """Read a weight of any writer.

    Args:
        parts: Arrays by suffix, ``g_idx`` only where it is stored.
        shape_OI: Shape of the weight.
        bits: 2, 3, 4 or 8.
        adds_one: Whether zero points are stored less one, as the first version does.
        scale_dtype: Element type of the scales.

    Raises:
        CheckpointError: The arrays are not such a weight's.
        IncompatibleError: As ``parts_of_any``.
    """
    num_in, num_groups = shape_OI[1], len(parts["scales"])
    has_order = "g_idx" in parts
    check_parts(
        parts,
        parts_of_any(
            shape_OI, bits=bits, num_groups=num_groups, scale_dtype=scale_dtype,
            has_order=has_order,
        ),
    )  # fmt: skip
    if num_groups < 1 or (not has_order and num_in % num_groups):
        raise CheckpointError(f"{num_in} input features do not divide into {num_groups} groups.")
    groups_I: npt.NDArray[np.int32] | None = None
    if has_order:
        groups_I = np.asarray(parts["g_idx"], np.int32)
        if groups_I.size and not 0 <= int(groups_I.min()) <= int(groups_I.max()) < num_groups:
            raise CheckpointError(f"'g_idx' names groups beyond the {num_groups} that there are.")
    codes_OI, zeros_OG = _unpacked(parts, shape_OI, bits, adds_one=adds_one)
    return ScaledCodes(
        codes_OI,
        finite_singles(transposed(parts["scales"]), scale_dtype, what="scales"),
        max(1, num_in // num_groups),
        zeros_OG=zeros_OG,
        groups_I=groups_I,
        precision=scale_dtype,
    )


def quantization_config(scheme: Scheme, modules_to_not_convert: Sequence[str]) -> dict[str, object]:
    """Return what ``config.json`` says under that name.

    Args:
        scheme: Bits and groups.
        modules_to_not_convert: Linear modules that stay in full precision, named by ``dynamic``,
            which gptqmodel, vLLM and SGLang read and transformers does not. The head stays so
            without being named.
    """
    config: dict[str, object] = {
        "quant_method": "gptq",
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "sym": scheme.symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq" if scheme.symmetric else "gptq_v2",
    }
    inner = [name for name in modules_to_not_convert if "." in name]
    if inner:
        config["dynamic"] = {"-:" + name.replace(".", r"\."): {} for name in inner}
    return config


def scheme_of(config: Mapping[str, object]) -> Scheme:
    """Return the scheme that a ``quantization_config`` states.

    Raises:
        CheckpointError: It states none that this layout holds.
    """
    bits, group_size = config.get("bits"), config.get("group_size")
    if type(bits) is not int or type(group_size) is not int or group_size < 1:
        raise CheckpointError(
            "The quantization_config of a GPTQ checkpoint must state bits and group_size as "
            f"positive numbers; it states {bits!r} and {group_size!r}."
        )
    symmetric = config.get("sym", True) is not False
    version = config.get("checkpoint_format", "gptq")
    if version != ("gptq" if symmetric else "gptq_v2"):
        raise CheckpointError(
            f"Of GPTQ, forge knows symmetric weights in 'gptq' and asymmetric ones in 'gptq_v2', "
            f"not {'symmetric' if symmetric else 'asymmetric'} ones in {version!r}."
        )
    return Scheme(bits, group_size, symmetric=symmetric)


def shape_of(shapes: Mapping[str, tuple[int, ...]], scheme: Scheme) -> tuple[int, int]:
    """Return the shape [O, I] of the weight whose parts have these shapes.

    Args:
        shapes: Shapes by suffix.
        scheme: Bits and groups.
    """
    num_words, num_out = shapes["qweight"]
    return num_out, num_words * _WORD_BITS // scheme.bits


def _layout(shape_OI: tuple[int, int], scheme: Scheme) -> tuple[Part, ...]:
    per_word = _WORD_BITS // max(scheme.bits, 1)
    check_groups(shape_OI, scheme, title=TITLE, bits=_BITS, output_multiple=per_word)
    num_out, num_in = shape_OI
    if num_in % per_word:
        raise IncompatibleError(
            f"{TITLE} needs input features in multiples of {per_word}, and there are {num_in}. "
            "Keep this module in full precision, or choose another format."
        )
    num_groups = num_in // scheme.group_size
    return (
        Part("qweight", (num_in // per_word, num_out), "I32"),
        Part("qzeros", (num_groups, num_out // per_word), "I32"),
        Part("scales", (num_groups, num_out), "F16"),
        Part("g_idx", (num_in,), "I32"),
    )


def _unpacked(
    parts: Mapping[str, npt.NDArray[np.generic]],
    shape_OI: tuple[int, int],
    bits: int,
    *,
    adds_one: bool,
) -> tuple[Codes, Codes]:
    """Return codes [O, I] and zero points [O, G]."""
    num_out, num_in = shape_OI
    zeros_GO = unpack_stream(as_words(parts["qzeros"]), bits, num_out)
    if adds_one:
        # What was 0 less 1 lies in the file as all ones, and comes back as 0.
        zeros_GO = (zeros_GO + np.uint8(1)) & np.uint8((1 << bits) - 1)
    codes_OI = unpack_stream(as_words(transposed(parts["qweight"])), bits, num_in)
    return codes_OI, as_codes(transposed(zeros_GO))


def _groups(num_in: int, scheme: Scheme) -> npt.NDArray[np.int32]:
    return np.arange(num_in, dtype=np.int32) // np.int32(scheme.group_size)
