"""Find a checkpoint's quantized layers by its headers, and read them one by one.

Everything is checked before the first weight is read: every part of every layer is there, in
the shape and type that its format writes. So a truncated or mislabelled checkpoint is refused
in a second, by the name of what is wrong.

Legend: O output features, I input features, G groups of input features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.source import TensorSource
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats import bnb_4bit, bnb_int8
from forge.formats.catalog import FORMATS, identify, load_format
from forge.formats.contract import LayoutFormat, Part, Scheme
from forge.runtime.packed import PackedWeight, lay_out

_NUMPY: Final = {
    "F16": np.float16, "F32": np.float32, "I8": np.int8, "U8": np.uint8,
    "I16": np.int16, "I32": np.int32, "I64": np.int64,
}  # fmt: skip
_STATE: Final = "weight.quant_state.bitsandbytes__"
_MAX_STATE_BYTES: Final = 1 << 16
_PER_BYTE: Final = np.float32(1 / 127)

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class StoredLayer:
    """A quantized linear layer in its files.

    Attributes:
        module: Its name in the checkpoint.
        shape_OI: Output and input features.
        parts: What its format writes for it.
        unpack: Turns the parts, by suffix, into the running layout.
    """

    module: str
    shape_OI: tuple[int, int]
    parts: tuple[Part, ...]
    unpack: Callable[[Arrays], PackedWeight]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What a checkpoint's tensors are.

    Attributes:
        layers: Quantized layers by module name; none of a model in full precision.
        plain: Names of all other tensors.
    """

    layers: Mapping[str, StoredLayer]
    plain: tuple[str, ...]


def survey(checkpoint: Checkpoint) -> StoredModel:
    """Tell quantized layers from plain tensors, and check that all of their parts are there.

    Args:
        checkpoint: The checkpoint.

    Returns:
        Its tensors by what they are.

    Raises:
        CheckpointError: A part is missing or has another shape or type, or forge does not know
            the format.
        IncompatibleError: The format is known, and its groups cannot be run.
    """
    source = checkpoint.source
    declared = checkpoint.config.get("quantization_config")
    if declared is None:
        return StoredModel({}, source.names())
    row = identify(declared) if isinstance(declared, Mapping) else None
    if row is None or not isinstance(declared, Mapping):
        raise CheckpointError(
            f"'{source.label}' is quantized in a way that forge does not know; its "
            f"'quantization_config' names {_method(declared)}. forge runs: "
            f"{', '.join(FORMATS.names())}."
        )
    if row.kind == "codes":
        layers = _code_layers(source, load_format(row.name), declared)
    elif row.name == "bnb-int8":
        layers = _int8_layers(source)
    else:
        layers = _bnb_layers(source)
    if not layers:
        raise CheckpointError(
            f"'{source.label}' says that it is {row.title}, but not one of its tensors is. "
            "Was it quantized to the end?"
        )
    used = {f"{layer.module}.{part.suffix}" for layer in layers for part in layer.parts}
    plain = tuple(name for name in source.names() if name not in used)
    return StoredModel({layer.module: layer for layer in layers}, plain)


def read_layer(source: TensorSource, layer: StoredLayer) -> PackedWeight:
    """Read a layer's parts and lay them out for the kernels.

    Args:
        source: The checkpoint's tensors.
        layer: One of its layers.

    Raises:
        CheckpointError: The parts do not fit together.
    """
    arrays = {part.suffix: _array(source, f"{layer.module}.{part.suffix}") for part in layer.parts}
    try:
        return layer.unpack(arrays)
    except (CheckpointError, IncompatibleError) as error:
        raise type(error)(f"'{source.label}', layer '{layer.module}': {error}") from error


def _array(source: TensorSource, name: str) -> npt.NDArray[np.generic]:
    info = source.info(name)
    return np.frombuffer(source.read(name), _NUMPY[info.dtype]).reshape(info.shape)


def _method(declared: object) -> str:
    method = declared.get("quant_method") if isinstance(declared, Mapping) else None
    return f"'{method}'" if isinstance(method, str) else "no method"


def _layer(
    source: TensorSource,
    module: str,
    shape_OI: tuple[int, int],
    parts: tuple[Part, ...],
    unpack: Callable[[Arrays], PackedWeight],
) -> StoredLayer:
    """Return a layer whose parts are all there as they should be."""
    names = frozenset(source.names())
    for part in parts:
        name = f"{module}.{part.suffix}"
        if name not in names:
            raise CheckpointError(
                f"'{source.label}' lacks '{name}', although it has other parts of that layer. "
                "The checkpoint is incomplete; download or quantize it again."
            )
        info = source.info(name)
        if (info.shape, info.dtype) != (part.shape, part.dtype):
            raise CheckpointError(
                f"'{source.label}': '{name}' is {info.dtype} {list(info.shape)}, but this format "
                f"writes {part.dtype} {list(part.shape)} for a layer of {list(shape_OI)}."
            )
    return StoredLayer(module, shape_OI, parts, unpack)


def _code_layers(
    source: TensorSource, layout: LayoutFormat, declared: Mapping[str, object]
) -> list[StoredLayer]:
    scheme = layout.scheme_of(declared)
    if scheme.bits not in (4, 8):
        raise IncompatibleError(f"'{source.label}' has {scheme.bits} bits; forge runs 4 and 8.")
    suffixes = [part.suffix for part in layout.parts((256, 8 * scheme.group_size), scheme)]

    def unpack(shape_OI: tuple[int, int]) -> Callable[[Arrays], PackedWeight]:
        def run(arrays: Arrays) -> PackedWeight:
            weight = layout.unpack(arrays, shape_OI=shape_OI, scheme=scheme)
            return lay_out(
                weight.codes_OI, weight.scales_OG, weight.zeros_OG, kind=f"u{scheme.bits}"
            )

        return run

    layers = []
    for module, shapes in _shapes_by_module(source, suffixes).items():
        shape_OI = _shape_of(source, layout, module, shapes, scheme)
        parts = layout.parts(shape_OI, scheme)
        layers.append(_layer(source, module, shape_OI, parts, unpack(shape_OI)))
    return layers


def _shapes_by_module(
    source: TensorSource, suffixes: list[str]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of all tensors that end in one of the suffixes, by module and suffix."""
    # `scales` alone could be a parameter of some model; the packed codes cannot.
    modules = {
        name.removesuffix(f".{suffixes[0]}")
        for name in source.names()
        if name.endswith(f".{suffixes[0]}")
    }
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name in source.names():
        module, _, suffix = name.rpartition(".")
        if module in modules and suffix in suffixes:
            found.setdefault(module, {})[suffix] = source.info(name).shape
    return found


def _shape_of(
    source: TensorSource,
    layout: LayoutFormat,
    module: str,
    shapes: Mapping[str, tuple[int, ...]],
    scheme: Scheme,
) -> tuple[int, int]:
    try:
        return layout.shape_of(shapes, scheme)
    except KeyError as error:
        raise CheckpointError(
            f"'{source.label}' lacks '{module}.{error.args[0]}', although it has other parts of "
            "that layer. The checkpoint is incomplete; download or quantize it again."
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"'{source.label}', layer '{module}': a part has the wrong number of dimensions."
        ) from error


def _int8_layers(source: TensorSource) -> list[StoredLayer]:
    layers = []
    for name in source.names():
        module = name.removesuffix(".SCB")
        if module == name:
            continue
        info = source.info(f"{module}.weight")
        if len(info.shape) != 2:
            raise CheckpointError(f"'{source.label}': '{module}.weight' is not a matrix.")
        shape_OI = (info.shape[0], info.shape[1])
        layers.append(_layer(source, module, shape_OI, bnb_int8.parts(shape_OI), _unpack_int8))
    return layers


def _unpack_int8(arrays: Arrays) -> PackedWeight:
    codes_OI = arrays["weight"].view(np.uint8) ^ np.uint8(128)
    scales_OG = np.asarray(arrays["SCB"], np.float32)[:, None] * _PER_BYTE
    return lay_out(codes_OI, scales_OG, np.full(scales_OG.shape, 128, np.uint8), kind="u8")


def _bnb_layers(source: TensorSource) -> list[StoredLayer]:
    layers = []
    for name in source.names():
        module, separator, word = name.partition(f".{_STATE}")
        if not separator:
            continue
        if word not in ("nf4", "fp4"):
            raise CheckpointError(f"'{source.label}': '{name}' is of an unknown type.")
        quant_type = cast("Literal['nf4', 'fp4']", word)
        shape_OI, state = _read_state(source, name)
        parts = bnb_4bit.parts(
            shape_OI,
            quant_type=quant_type,
            double_quant=f"{module}.weight.nested_absmax" in source.names(),
            state=state,
        )
        layers.append(_layer(source, module, shape_OI, parts, _unpack_bnb(shape_OI, quant_type)))
    return layers


def _read_state(source: TensorSource, name: str) -> tuple[tuple[int, int], bytes]:
    if source.info(name).nbytes > _MAX_STATE_BYTES:
        raise CheckpointError(f"'{source.label}': '{name}' is too large for what it should hold.")
    state = bytes(source.read(name))
    try:
        record = json.loads(state)
        rows, columns = record["shape"]
        is_known = record["blocksize"] == bnb_4bit.BLOCK and min(rows, columns) > 0
        shape_OI = (int(rows), int(columns))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"'{source.label}': '{name}' is damaged ({error!r}).") from error
    if not is_known:
        raise CheckpointError(
            f"'{source.label}': '{name}' has blocks of {record['blocksize']}; forge runs those of "
            f"{bnb_4bit.BLOCK}."
        )
    return shape_OI, state


def _unpack_bnb(
    shape_OI: tuple[int, int], quant_type: Literal["nf4", "fp4"]
) -> Callable[[Arrays], PackedWeight]:
    def run(arrays: Arrays) -> PackedWeight:
        num_out, num_in = shape_OI
        if num_in % bnb_4bit.BLOCK:
            raise IncompatibleError(
                f"it has {num_in} input features, so that blocks of {bnb_4bit.BLOCK} run on over "
                "the ends of rows; forge does not run such layers. Load it with transformers."
            )
        if not np.array_equal(arrays["weight.quant_map"], bnb_4bit.code_values(quant_type)):
            raise CheckpointError("'quant_map' is not the table of its type.")
        packed = np.asarray(arrays["weight"], np.uint8).reshape(-1)
        codes_OI = np.empty((num_out, num_in), np.uint8)
        codes_OI[:, 0::2] = (packed >> 4).reshape(num_out, -1)
        codes_OI[:, 1::2] = (packed & 15).reshape(num_out, -1)
        return lay_out(codes_OI, _magnitudes(arrays, shape_OI, quant_type), None, kind=quant_type)

    return run


def _magnitudes(
    arrays: Arrays, shape_OI: tuple[int, int], quant_type: str
) -> npt.NDArray[np.float32]:
    """Return the magnitude of each block, float32 [O, G]."""
    magnitudes = arrays["weight.absmax"]
    if "weight.nested_absmax" in arrays:
        state = json.loads(arrays[f"{_STATE}{quant_type}"].tobytes())
        nested = np.asarray(arrays["weight.nested_absmax"], np.float32)
        scales = np.repeat(nested, bnb_4bit.NESTED_BLOCK)[: magnitudes.size]
        table = np.asarray(arrays["weight.nested_quant_map"], np.float32)
        magnitudes = table[magnitudes.astype(np.intp)] * scales + np.float32(state["nested_offset"])
    return magnitudes.astype(np.float32).reshape(shape_OI[0], -1)
