"""GPTQ checkpoints, of any writer of its two versions.

Bits and groups are told by the shapes of a layer, which settles checkpoints whose layers differ
(``dynamic``). A weight is ``(code - zero) * scale`` with the scale of its column's group
(``g_idx``), rounded once to the type of the scales, as AutoGPTQ's and gptqmodel's
``dequantize_weight`` do.

The first version stores zero points less one. What it stored of a zero point of 0 is all ones;
readers differ in what they make of it, and forge makes 0, by masking.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.dequantizing.stored import Arrays, DecodedTensor, Family, StoredTensors
from forge.core.errors import IncompatibleError
from forge.formats import gptq
from forge.formats.numbers import FLOATS, numbers_of

_WORD_BITS: Final = 32
_VERSIONS: Final = {"gptq": True, "gptq_v2": False}
"""Whether zero points are stored less one."""


def find(stored: StoredTensors, declared: Mapping[str, object]) -> Family:
    """Find the layers of a GPTQ checkpoint.

    Args:
        stored: Its tensors.
        declared: Its ``quantization_config``.

    Raises:
        IncompatibleError: It is a version that forge does not decode.
        CheckpointError: A part is missing or is something else.
    """
    version = declared.get("checkpoint_format", declared.get("format", "gptq")) or "gptq"
    if (
        not isinstance(version, str)
        or version not in _VERSIONS
        or declared.get("is_marlin_format") is True
    ):
        named = "marlin" if declared.get("is_marlin_format") is True else version
        raise IncompatibleError(
            f"'{stored.label}' is GPTQ in the layout {named!r}; forge decodes "
            f"{' and '.join(_VERSIONS)}. Save it as gptq_v2 with gptqmodel, or start from the "
            "model in full precision."
        )
    bits = declared.get("bits")
    if type(bits) is not int or bits not in gptq.BITS_OF_ANY:
        raise IncompatibleError(
            f"'{stored.label}' is GPTQ of {bits!r} bits; forge decodes 2, 3, 4 and 8. Start from "
            "the model in full precision."
        )
    adds_one = _VERSIONS[version]
    overridden = bool(declared.get("dynamic"))
    tensors = [
        _tensor(stored, module, bits, adds_one=adds_one, overridden=overridden)
        for module in stored.modules("qweight")
    ]
    order = ", reordered columns" if declared.get("desc_act") is True else ""
    return Family(f"GPTQ, {bits} bits{order}", tuple(tensors))


def _tensor(
    stored: StoredTensors, module: str, bits: int, *, adds_one: bool, overridden: bool
) -> DecodedTensor:
    num_words, num_out = stored.matrix(f"{module}.qweight", ("I32",))
    num_groups, _ = stored.matrix(f"{module}.scales", FLOATS)
    order = f"{module}.g_idx"
    has_order = stored.has(order) and stored.info(order).numel > 0
    if has_order:
        num_in = stored.take(order, ("I32",)).numel
        if num_words * _WORD_BITS % num_in:
            raise stored.wrong(module, f"'qweight' of {num_words} rows does not hold {num_in}.")
        own_bits = num_words * _WORD_BITS // num_in
    else:
        if stored.has(order):
            stored.take(order, ("I32",))
        own_bits, num_in = bits, num_words * _WORD_BITS // bits
    if own_bits != bits and not overridden:
        raise stored.wrong(
            module, f"its parts are of {own_bits} bits, and config.json states {bits}."
        )
    scale_dtype = stored.info(f"{module}.scales").dtype
    try:
        parts = gptq.parts_of_any(
            (num_out, num_in), bits=own_bits, num_groups=num_groups, scale_dtype=scale_dtype,
            has_order=has_order,
        )  # fmt: skip
    except IncompatibleError as error:
        raise stored.wrong(module, str(error)) from error
    if not has_order and num_in % num_groups:
        raise stored.wrong(
            module, f"{num_in} input features do not divide into {num_groups} groups."
        )
    for part in parts:
        stored.take(f"{module}.{part.suffix}", (part.dtype,), part.shape)
    dtype = stored.dtype_for(scale_dtype)
    return DecodedTensor(
        f"{module}.weight",
        (num_out, num_in),
        dtype,
        {part.suffix: f"{module}.{part.suffix}" for part in parts},
        partial(_decode, (num_out, num_in), own_bits, adds_one, scale_dtype, dtype),
    )


def _decode(
    shape_OI: tuple[int, int],
    bits: int,
    adds_one: bool,
    scale_dtype: str,
    dtype: str,
    arrays: Arrays,
) -> npt.NDArray[np.generic]:
    weight = gptq.decode(
        arrays, shape_OI=shape_OI, bits=bits, adds_one=adds_one, scale_dtype=scale_dtype
    )
    return numbers_of(weight, dtype)
