"""compressed-tensors checkpoints: packed integers, bytes with scales, and 4-bit floats.

A checkpoint's ``config_groups`` say which modules have which scheme, by classes and patterns. The
parts of a layer say the same again by their names, types and shapes, and cannot be wrong about it,
so layers are read by their parts, and the groups only for what shapes leave open: the bits of
packed codes and the blocks of FP8. No pattern of a stranger's file is ever run.

A weight is ``(code - zero) * scale``, rounded once to the type of the scales, as the library's
``dequantize`` does, and then to the model's type, as transformers does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.dequantizing.stored import Arrays, DecodedTensor, Family, StoredTensors
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats import compressed_tensors as packed
from forge.formats import float4, scaled_bytes
from forge.formats.contract import ScaledCodes
from forge.formats.numbers import FLOATS, numbers_of

_FORMATS: Final = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized",
)  # fmt: skip
_WORD_BITS: Final = 32
_MAX_GROUPS: Final = 1024
_MOST_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class _Scheme:
    """What a config group says of weights.

    Attributes:
        layout: Its ``format``.
        bits: Bits of a number.
        group_size: Input features that share a scale; 0 for a whole row.
        block: Rows and columns of a block, for FP8 by blocks.
    """

    layout: str
    bits: int
    group_size: int
    block: tuple[int, int] | None


def find(stored: StoredTensors, declared: Mapping[str, object]) -> Family:
    """Find the layers of a compressed-tensors checkpoint.

    Args:
        stored: Its tensors.
        declared: Its ``quantization_config``.

    Raises:
        IncompatibleError: It uses a layout that forge does not decode, sparsity or transforms.
        CheckpointError: A part is missing or is something else.
    """
    schemes = _schemes(stored.label, declared)
    tensors = [
        # Words hold integers, bytes hold two floats.
        _float4(stored, module)
        if stored.info(f"{module}.weight_packed").dtype == "U8"
        else _packed(stored, module, schemes)
        for module in stored.modules("weight_packed")
    ]
    tensors += [
        _bytes(stored, module, schemes)
        for module in stored.modules("weight_scale")
        if stored.has(f"{module}.weight")
    ]
    layouts = dict.fromkeys(scheme.layout for scheme in schemes)
    bits = dict.fromkeys(f"{scheme.bits} bits" for scheme in schemes)
    return Family(f"compressed-tensors {', '.join((*layouts, *bits))}", tuple(tensors))


# -- what the configuration says -----------------------------------------------------------


def _schemes(label: str, declared: Mapping[str, object]) -> tuple[_Scheme, ...]:
    sparsity = declared.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise _refused(label, f"with sparse weights ({sparsity.get('format')!r})")
    if declared.get("transform_config"):
        raise _refused(label, "with rotated weights (transform_config)")
    groups = declared.get("config_groups")
    if not isinstance(groups, Mapping) or not 0 < len(groups) <= _MAX_GROUPS:
        raise CheckpointError(
            f"'{label}': the quantization_config of compressed-tensors has no config_groups. "
            "Restore config.json."
        )
    # A group without weights is about activations or caches.
    found = tuple(
        _scheme(label, group.get("format") or declared.get("format"), weights)
        for group in groups.values()
        if isinstance(group, Mapping) and isinstance(weights := group.get("weights"), Mapping)
    )
    if not found:
        raise _refused(label, "whose config groups have no weights")
    return found


def _scheme(label: str, layout: object, weights: Mapping[str, object]) -> _Scheme:
    if layout not in _FORMATS:
        raise _refused(label, f"in the format {layout!r}")
    bits = weights.get("num_bits")
    if type(bits) is not int or not 1 < bits <= _MOST_BITS:
        raise _refused(label, f"of {bits!r} bits")
    group_size, block = weights.get("group_size"), weights.get("block_structure")
    if group_size is not None and type(group_size) is not int:
        raise CheckpointError(f"'{label}': group_size {group_size!r} is no whole number.")
    is_block = (
        isinstance(block, list)
        and len(block) == 2
        and all(type(size) is int and size > 0 for size in block)
    )
    if block is not None and not is_block:
        raise CheckpointError(f"'{label}': block_structure {block!r} is not two whole numbers.")
    return _Scheme(
        str(layout),
        bits,
        group_size if group_size is not None and group_size > 0 else 0,
        (block[0], block[1]) if isinstance(block, list) else None,
    )


def _refused(label: str, what: str) -> IncompatibleError:
    return IncompatibleError(
        f"'{label}' is a compressed-tensors checkpoint {what}; forge decodes "
        f"{', '.join(_FORMATS)}. Start from the model in full precision."
    )


# -- what the parts say --------------------------------------------------------------------


def _packed(stored: StoredTensors, module: str, schemes: tuple[_Scheme, ...]) -> DecodedTensor:
    num_out, num_words = stored.matrix(f"{module}.weight_packed", ("I32",))
    rows, num_groups = stored.matrix(f"{module}.weight_scale", FLOATS)
    fitting = {
        (scheme.bits, num_in)
        for scheme in schemes
        if scheme.layout == "pack-quantized"
        and (num_in := _num_inputs(stored, module, scheme, num_words, num_groups)) is not None
    }
    if rows != num_out or len(fitting) != 1:
        raise stored.wrong(
            module,
            f"its parts of {[num_out, num_words]} words and {[rows, num_groups]} scales fit "
            f"{'no scheme' if not fitting else 'several schemes'} of config.json.",
        )
    ((bits, num_in),) = fitting
    scale_dtype = stored.info(f"{module}.weight_scale").dtype
    parts = packed.parts_of_any(
        (num_out, num_in),
        bits=bits,
        num_groups=num_groups,
        scale_dtype=scale_dtype,
        symmetric=not stored.has(f"{module}.weight_zero_point"),
        has_order=stored.has(f"{module}.weight_g_idx"),
    )
    for part in parts:
        stored.take(f"{module}.{part.suffix}", (part.dtype,), part.shape)
    decode = partial(packed.decode, shape_OI=(num_out, num_in), bits=bits, scale_dtype=scale_dtype)
    names = {part.suffix: f"{module}.{part.suffix}" for part in parts}
    return _decoded(stored, module, (num_out, num_in), scale_dtype, names, decode)


def _num_inputs(
    stored: StoredTensors, module: str, scheme: _Scheme, num_words: int, num_groups: int
) -> int | None:
    """Return the input features of packed codes, or ``None`` when the scheme does not fit."""
    if scheme.group_size:
        num_in = num_groups * scheme.group_size
        return num_in if -(-num_in * scheme.bits // _WORD_BITS) == num_words else None
    if num_groups != 1:
        return None
    longest = num_words * _WORD_BITS // scheme.bits
    if not stored.is_readable:
        return longest
    # The last word of a row need not be full; only the stated shape tells by how much.
    stored.take(f"{module}.weight_shape", ("I64",), (2,))
    num_in = int(np.asarray(stored.read(f"{module}.weight_shape"), np.int64)[1])
    fits = 0 < num_in <= longest and -(-num_in * scheme.bits // _WORD_BITS) == num_words
    return num_in if fits else None


def _bytes(stored: StoredTensors, module: str, schemes: tuple[_Scheme, ...]) -> DecodedTensor:
    weight, scale = f"{module}.weight", f"{module}.weight_scale"
    shape = stored.take(weight, (*scaled_bytes.FLOAT_TYPES, "I8")).shape
    scale_info = stored.take(scale, scaled_bytes.SCALE_TYPES)
    blocks = {scheme.block for scheme in schemes}
    sharing = next(
        (
            found
            for block in (*sorted(blocks - {None}, key=str), None)
            if (found := scaled_bytes.sharing_of(shape, scale_info.shape, block)) is not None
        ),
        None,
    )
    if sharing is None:
        raise stored.wrong(
            module,
            f"'weight_scale' is {list(scale_info.shape)}, which fits no sharing of scales in a "
            f"weight of {list(shape)}.",
        )
    names = {"weight": weight, "scale": scale}
    if stored.has(f"{module}.weight_zero_point"):
        names["zeros"] = f"{module}.weight_zero_point"
        zeros = ("I8",) if stored.info(weight).dtype == "I8" else ("I8", *scaled_bytes.FLOAT_TYPES)
        stored.take(names["zeros"], zeros, scale_info.shape)
    # The library widens powers of two to bfloat16 before it multiplies.
    precision = scale_info.dtype if scale_info.dtype in FLOATS else "BF16"
    own, scale_dtype = stored.info(weight).dtype, scale_info.dtype

    def decode(arrays: Arrays) -> ScaledCodes:
        return scaled_bytes.decode(
            arrays["weight"], arrays["scale"], arrays.get("zeros"),
            dtype=own, scale_dtype=scale_dtype, sharing=sharing, precision=precision,
        )  # fmt: skip

    return _decoded(stored, module, shape, precision, names, decode)


def _float4(stored: StoredTensors, module: str) -> DecodedTensor:
    num_out, num_bytes = stored.matrix(f"{module}.weight_packed", ("U8",))
    num_in = 2 * num_bytes
    names = {key: f"{module}.{key}" for key in ("weight_packed", "weight_scale")}
    group, dtypes, decode = float4.MXFP4_GROUP, float4.POWER_TYPES, _decode_mxfp4
    if stored.has(f"{module}.weight_global_scale"):
        names["weight_global_scale"] = f"{module}.weight_global_scale"
        shape = stored.take(names["weight_global_scale"], ("F32",)).shape
        if shape not in ((), (1,)):
            raise stored.wrong(
                module, f"'weight_global_scale' is {list(shape)} and not one number."
            )
        group, dtypes, decode = float4.NVFP4_GROUP, ("F8_E4M3",), _decode_nvfp4
    if num_in % group:
        raise stored.wrong(module, f"{num_in} input features do not divide into groups of {group}.")
    stored.take(names["weight_scale"], dtypes, (num_out, num_in // group))
    return _decoded(stored, module, (num_out, num_in), "BF16", names, decode)


def _decode_nvfp4(arrays: Arrays) -> ScaledCodes:
    return float4.decode_nvfp4(
        arrays["weight_packed"], arrays["weight_scale"], arrays["weight_global_scale"]
    )


def _decode_mxfp4(arrays: Arrays) -> ScaledCodes:
    return float4.decode_mxfp4(arrays["weight_packed"], arrays["weight_scale"], precision="BF16")


def _decoded(
    stored: StoredTensors,
    module: str,
    shape: tuple[int, ...],
    library_dtype: str,
    names: Mapping[str, str],
    decode: Callable[[Arrays], ScaledCodes],
) -> DecodedTensor:
    dtype = stored.dtype_for(library_dtype)

    def run(arrays: Arrays) -> npt.NDArray[np.generic]:
        return numbers_of(decode(arrays), dtype).reshape(shape)

    return DecodedTensor(f"{module}.weight", shape, dtype, names, run)
