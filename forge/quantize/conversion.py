"""Plan a conversion: which tensors are parts of which layer, and what becomes of them.

Everything is decided from headers and ``config.json``, so that a layer which the new layout cannot
hold is named before a byte is written. Tensors keep the order of the source, in which a layer
stands where its scales stood: a conversion there and back then gives the same files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.layout import PlannedTensor
from forge.checkpoints.quantized import quantization_of
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.catalog import FormatRow, format_row, identify, load_format
from forge.formats.contract import LayoutFormat, Part, Scheme

CONVERTIBLE: Final = ("gemm", "gemv", "gemv_fast", "compressed-tensors", "gptq")
"""Words for the layouts that one can convert to."""

_CARRIED: Final = ("bias",)
"""What a quantized layer may have beside its parts; copied."""
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class ConvertedLayer:
    """A quantized linear layer.

    Attributes:
        module: Its name.
        shape_OI: Shape of its weight.
        source_parts: What it consists of.
        target_parts: What it will consist of.
    """

    module: str
    shape_OI: tuple[int, int]
    source_parts: tuple[Part, ...]
    target_parts: tuple[Part, ...]

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the tensors that are read."""
        return tuple(f"{self.module}.{part.suffix}" for part in self.source_parts)

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the tensors that are written."""
        return tuple(f"{self.module}.{part.suffix}" for part in self.target_parts)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion does.

    Attributes:
        source_row: The layout that is read.
        target_row: The layout that is written.
        scheme: Bits and groups of all layers.
        layers: The quantized layers, in order.
        copied: Names of all other tensors, in order.
        tensors: Everything that is written, in order.
        quantization_config: What ``config.json`` will say under that name.
    """

    source_row: FormatRow
    target_row: FormatRow
    scheme: Scheme
    layers: tuple[ConvertedLayer, ...]
    copied: tuple[str, ...]
    tensors: tuple[PlannedTensor, ...]
    quantization_config: Mapping[str, object]


def plan_conversion(checkpoint: Checkpoint, to: str) -> Conversion:
    """Plan the conversion of a checkpoint.

    Args:
        checkpoint: The quantized model.
        to: Name of the new layout; of AWQ's versions the version alone is enough.

    Raises:
        IncompatibleError: There is no such layout, the checkpoint has it already or is not
            quantized in a layout of codes, or a layer does not fit.
        CheckpointError: Its tensors are not what its ``config.json`` says.
    """
    label = str(checkpoint.reference)
    target_row, target = format_row(to), load_format(to)
    infos = {name: checkpoint.source.info(name) for name in checkpoint.source.names()}
    source_row, declared = _declared(checkpoint, infos, label)
    if source_row.name == target_row.name:
        raise IncompatibleError(f"'{label}' is in {target_row.title} already.")
    source = load_format(source_row.name)
    try:
        scheme = source.scheme_of(declared)
    except CheckpointError as error:
        raise CheckpointError(f"'{label}': {error}") from error
    layers = _layers(infos, source_row, source, scheme, label)
    converted = _targets(layers, target, scheme)
    by_tensor = {name: layer for layer in converted for name in layer.source_names}
    tensors: list[PlannedTensor] = []
    ordered: list[ConvertedLayer] = []
    copied: list[str] = []
    for name in _order(infos, by_tensor):
        layer = by_tensor.get(name)
        if layer is None:
            copied.append(name)
            tensors.append(PlannedTensor(name, infos[name].shape, infos[name].dtype))
            continue
        ordered.append(layer)
        tensors += [
            PlannedTensor(f"{layer.module}.{part.suffix}", part.shape, part.dtype)
            for part in layer.target_parts
        ]
    architecture = architecture_of(checkpoint.config, tensor_names=infos)
    skipped = _skipped(architecture, {name: infos[name] for name in copied}, target_row)
    if source_row.version is not None and target_row.version is not None:
        # AWQ's versions share these words, parts of names included.
        stated = declared.get("modules_to_not_convert")
        skipped = tuple(map(str, stated)) if isinstance(stated, list) else ()
    return Conversion(
        source_row,
        target_row,
        scheme,
        tuple(ordered),
        tuple(copied),
        tuple(tensors),
        target.quantization_config(scheme, skipped),
    )


def _declared(
    checkpoint: Checkpoint, infos: Mapping[str, TensorInfo], label: str
) -> tuple[FormatRow, Mapping[str, object]]:
    """Return the source's layout and what its config says about it."""
    found = quantization_of(checkpoint.config, infos.values())
    if found is None:
        raise IncompatibleError(
            f"'{label}' is not quantized, and a conversion only changes the layout of codes. "
            "'forge quantize' makes codes."
        )
    declared = checkpoint.config.get("quantization_config")
    row = identify(declared) if isinstance(declared, Mapping) else None
    if not isinstance(declared, Mapping) or row is None or row.kind != "codes":
        known = ", ".join(format_row(word).title for word in CONVERTIBLE)
        raise IncompatibleError(
            f"'{label}' is quantized ({found}), but not in a layout that can be converted: {known}."
        )
    return row, declared


def _layers(
    infos: Mapping[str, TensorInfo],
    row: FormatRow,
    layout: LayoutFormat,
    scheme: Scheme,
    label: str,
) -> list[tuple[str, tuple[int, int], tuple[Part, ...]]]:
    """Return name, shape and parts of all quantized layers, once their tensors fit."""
    ending = f".{row.weight_part}"
    modules = [name.removesuffix(ending) for name in infos if name.endswith(ending)]
    if not modules:
        raise CheckpointError(
            f"config.json of '{label}' says {row.title}, but no tensor is called '*{ending}'."
        )
    own = _by_module(infos, set(modules))
    layers = []
    for module in modules:
        shapes = {suffix: info.shape for suffix, info in own[module].items()}
        try:
            shape = layout.shape_of(shapes, scheme)
            parts = layout.parts(shape, scheme)
        except (KeyError, ValueError, IncompatibleError) as error:
            reason = error if isinstance(error, IncompatibleError) else "parts are missing."
            raise CheckpointError(f"'{module}' of '{label}' is no {row.title}: {reason}") from error
        _check_parts(module, own[module], parts, label)
        layers.append((module, shape, parts))
    return layers


def _by_module(
    infos: Mapping[str, TensorInfo], modules: set[str]
) -> dict[str, dict[str, TensorInfo]]:
    own: dict[str, dict[str, TensorInfo]] = {module: {} for module in modules}
    for name, info in infos.items():
        module, _, suffix = name.rpartition(".")
        if module in own:
            own[module][suffix] = info
    return own


def _check_parts(
    module: str, own: Mapping[str, TensorInfo], parts: Sequence[Part], label: str
) -> None:
    for part in parts:
        info = own.get(part.suffix)
        if info is None:
            raise CheckpointError(f"'{label}' lacks the tensor '{module}.{part.suffix}'.")
        if (info.shape, info.dtype) != (part.shape, part.dtype):
            raise CheckpointError(
                f"'{info.name}' of '{label}' is {info.dtype} {list(info.shape)} and should be "
                f"{part.dtype} {list(part.shape)}."
            )
    odd = set(own) - {part.suffix for part in parts} - set(_CARRIED)
    if odd:
        raise CheckpointError(
            f"'{module}.{min(odd)}' of '{label}' is no part that forge knows, and a conversion "
            "could lose what it means."
        )


def _targets(
    layers: Sequence[tuple[str, tuple[int, int], tuple[Part, ...]]],
    target: LayoutFormat,
    scheme: Scheme,
) -> list[ConvertedLayer]:
    converted: list[ConvertedLayer] = []
    reasons: list[str] = []
    for module, shape, parts in layers:
        try:
            converted.append(ConvertedLayer(module, shape, parts, target.parts(shape, scheme)))
        except IncompatibleError as error:
            reasons.append(f"'{module}': {error}")
    if reasons:
        rest = len(reasons) - _SHOWN
        shown = reasons[:_SHOWN] + ([f"... and {rest} layers more."] if rest > 0 else [])
        raise IncompatibleError("\n".join(shown))
    return converted


def _order(
    infos: Mapping[str, TensorInfo], by_tensor: Mapping[str, ConvertedLayer]
) -> tuple[str, ...]:
    """Return one tensor of each layer and all others, in the order of the model.

    Files hold tensors by element size first. Among those of the size that most tensors outside
    of layers have, which scales share, the model's own order is left.
    """
    sizes = {name: DTYPES[info.dtype].itemsize for name, info in infos.items()}
    plain = Counter(sizes[name] for name in infos if name not in by_tensor)
    usual = plain.most_common(1)[0][0] if plain else 0
    chosen: dict[str, str] = {}
    for name in infos:
        layer = by_tensor.get(name)
        owner = name if layer is None else layer.module
        if owner not in chosen or (sizes[chosen[owner]] != usual and sizes[name] == usual):
            chosen[owner] = name
    kept = set(chosen.values())
    return tuple(name for name in infos if name in kept)


def _skipped(
    architecture: Architecture, copied: Mapping[str, TensorInfo], target_row: FormatRow
) -> tuple[str, ...]:
    """Return the linear layers in full precision that the target's readers must be told of."""
    heads = [
        name.removesuffix(".weight")
        for name in architecture.heads
        # The head of a tied model is not in the file, and yet its readers look for it.
        if name.endswith(".weight") and (name in copied or name == "lm_head.weight")
    ]
    apart = {*architecture.embeddings, *architecture.heads}
    inner = [
        name.removesuffix(".weight")
        for name, info in copied.items()
        if name.endswith(".weight")
        and len(info.shape) == 2
        and architecture.layer_of(name) is not None
        and name not in apart
    ]
    return (*heads, *inner) if target_row.names_head else tuple(inner)
