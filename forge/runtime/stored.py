"""Find a checkpoint's quantized layers by its headers, and read them one by one.

Everything is checked before the first weight is read: every part of every layer is there, in
the shape and type that its format writes. So a truncated or mislabelled checkpoint is refused
in a second, by the name of what is wrong.

Legend: O output features, I input features, G groups of input features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.dequantizing.stored import array_of
from forge.checkpoints.source import TensorSource
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats import bnb_4bit, bnb_int8
from forge.formats.bnb_state import MAX_STATE_BYTES, QuantState, read_state
from forge.formats.catalog import FORMATS, identify, load_format
from forge.formats.contract import LayoutFormat, Part, Scheme
from forge.runtime.packed import PackedWeight, lay_out

_STATE: Final = "weight.quant_state.bitsandbytes__"
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
    arrays = {
        part.suffix: array_of(source, f"{layer.module}.{part.suffix}") for part in layer.parts
    }
    try:
        return layer.unpack(arrays)
    except (CheckpointError, IncompatibleError) as error:
        raise type(error)(f"'{source.label}', layer '{layer.module}': {error}") from error


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
        state, data = _read_state(source, name)
        if word != state.quant_type:
            raise CheckpointError(f"'{source.label}': '{name}' says {state.quant_type} inside.")
        shape_OI = (state.shape[0], state.shape[1])
        parts = bnb_4bit.parts(
            shape_OI,
            quant_type=state.quant_type,
            double_quant=f"{module}.weight.nested_absmax" in source.names(),
            state=data,
        )
        layers.append(_layer(source, module, shape_OI, parts, _unpack_bnb(shape_OI, state)))
    return layers


def _read_state(source: TensorSource, name: str) -> tuple[QuantState, bytes]:
    if source.info(name).nbytes > MAX_STATE_BYTES:
        raise CheckpointError(f"'{source.label}': '{name}' is too large for what it should hold.")
    data = bytes(source.read(name))
    try:
        state = read_state(data)
    except CheckpointError as error:
        raise CheckpointError(f"'{source.label}': '{name}': {error}.") from error
    if state.block != bnb_4bit.BLOCK:
        raise CheckpointError(
            f"'{source.label}': '{name}' has blocks of {state.block}; forge runs those of "
            f"{bnb_4bit.BLOCK}."
        )
    if len(state.shape) != 2:
        raise CheckpointError(f"'{source.label}': '{name}' describes no matrix.")
    return state, data


def _unpack_bnb(shape_OI: tuple[int, int], state: QuantState) -> Callable[[Arrays], PackedWeight]:
    def run(arrays: Arrays) -> PackedWeight:
        num_out, num_in = shape_OI
        if num_in % bnb_4bit.BLOCK:
            raise IncompatibleError(
                f"it has {num_in} input features, so that blocks of {bnb_4bit.BLOCK} run on over "
                "the ends of rows; forge does not run such layers. Load it with transformers."
            )
        weight = bnb_4bit.decode(arrays, state)
        return lay_out(
            weight.codes_OI.reshape(shape_OI),
            weight.scales_OG.reshape(num_out, -1),
            None,
            kind=state.quant_type,
        )

    return run
