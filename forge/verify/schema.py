"""Account for every tensor of a quantized checkpoint, from headers alone.

What must be there follows from the source: a linear layer of a decoder block becomes its parts,
unless the recipe keeps it; everything else keeps its name and shape. A layer in full precision that
nobody kept, such as one expert among many, is as wrong as one that is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from forge.architectures.blocks import is_kept, quantizable_linears
from forge.architectures.table import Architecture
from forge.architectures.written import is_written
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import DTYPES
from forge.core.errors import IncompatibleError
from forge.verify.findings import Finding
from forge.verify.stored import Layout

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class QuantizedLinear:
    """A linear layer that is quantized, by its header entries.

    Attributes:
        module: Its name.
        shape_OI: Output and input features.
        parts: Names of its tensors by suffix.
        transposed: Whether the source holds its weight as ``[in, out]``.
    """

    module: str
    shape_OI: tuple[int, int]
    parts: Mapping[str, str]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Account:
    """What a checkpoint consists of.

    Attributes:
        linears: The quantized layers that are complete.
        plain: Names of the tensors in full precision.
        findings: Everything that is missing, left over, or of another type or shape.
    """

    linears: tuple[QuantizedLinear, ...]
    plain: tuple[str, ...]
    findings: tuple[Finding, ...]


def account_against(
    variant: TensorSource,
    source: TensorSource,
    layout: Layout,
    architecture: Architecture,
    config: Mapping[str, object],
    keep: Iterable[str],
) -> Account:
    """Compare the tensors of a checkpoint with what its source says must be there.

    Args:
        variant: The quantized checkpoint.
        source: What it was made from.
        layout: Its layout.
        architecture: The model's family.
        config: The model's ``config.json``.
        keep: Modules that are to stay in full precision.

    Returns:
        The account.

    Raises:
        IncompatibleError: The family's decoder blocks are unknown.
        CheckpointError: The source lacks tensors.
    """
    keep = tuple(keep)
    present = {name: variant.info(name) for name in variant.names()}
    tied = architecture.is_tied(config)
    written = [name for name in source.names() if is_written(name, architecture, tied=tied)]
    shapes = {name: source.info(name).shape for name in written}
    linears = {
        linear.tensor: linear
        for linear in quantizable_linears(architecture, shapes)
        if not is_kept(linear.module, keep)
    }
    left = dict(present)
    found: list[QuantizedLinear] = []
    plain: list[str] = []
    findings: list[Finding] = []
    for name in written:
        linear = linears.get(name)
        if linear is None:
            findings += _plain_faults(source.info(name), left.pop(name, None))
            plain.append(name)
            continue
        own = _own(layout, linear.module, present)
        if not own and name in present and DTYPES[present[name].dtype].is_float:
            left.pop(name)
            text = f"'{linear.module}' is in full precision although nothing keeps it so."
            findings.append(Finding("tensors", linear.module, text))
            continue
        parts, faults = _parts_of(layout, linear.module, linear.shape_OI, own, left)
        findings += faults
        if not faults:
            item = QuantizedLinear(linear.module, linear.shape_OI, parts, linear.transposed)
            found.append(item)
    findings += [
        Finding("tensors", name, f"'{name}' belongs to no tensor of the source.") for name in left
    ]
    return Account(tuple(found), tuple(name for name in plain if name in present), tuple(findings))


def account_alone(
    variant: TensorSource, layout: Layout, architecture: Architecture, keep: Iterable[str]
) -> Account:
    """Account for the tensors of a checkpoint whose source is not at hand.

    Layers of the same role must then be quantized in all blocks and for all experts, or in none.

    Args:
        variant: The quantized checkpoint.
        layout: Its layout.
        architecture: The model's family.
        keep: Modules that are to stay in full precision.

    Returns:
        The account.
    """
    keep = tuple(keep)
    present = {name: variant.info(name) for name in variant.names()}
    left = dict(present)
    found: list[QuantizedLinear] = []
    findings: list[Finding] = []
    for module in _modules(layout, present):
        own = _own(layout, module, present)
        found_shapes = {
            suffix: present[f"{module}.{suffix}"].shape
            for suffix in (*own, "weight")
            if f"{module}.{suffix}" in present
        }
        shape = layout.shape_of(found_shapes) or _state_shape(layout, variant, module, own)
        if shape is None:
            for suffix in (*own, "weight"):
                left.pop(f"{module}.{suffix}", None)
            text = f"'{module}' lacks the tensors that tell its shape."
            findings.append(Finding("tensors", module, text))
            continue
        parts, faults = _parts_of(layout, module, shape, own, left)
        findings += faults
        if not faults:
            found.append(QuantizedLinear(module, shape, parts))
    roles = {_NUMBER.sub("*", linear.module): linear.module for linear in found}
    for name, info in left.items():
        module = name.removesuffix(".weight")
        sibling = roles.get(_NUMBER.sub("*", module))
        if name.endswith(".weight") and sibling is not None and not is_kept(module, keep):
            text = f"'{module}' is in full precision, but '{sibling}' is quantized."
            findings.append(Finding("tensors", module, text))
        elif len(info.shape) == 3 and architecture.layer_of(name) is not None:
            text = f"'{name}' is {list(info.shape)}: a stack of experts in full precision."
            findings.append(Finding("tensors", name, text))
        elif not DTYPES[info.dtype].is_float and name.endswith("weight"):
            text = f"'{name}' is {info.dtype} but has none of the parts that say what it means."
            findings.append(Finding("tensors", name, text))
    if not found:
        text = "No layer is quantized, although config.json says that the model is."
        findings.append(Finding("tensors", "config.json", text))
    return Account(tuple(found), tuple(left), tuple(findings))


def _modules(layout: Layout, present: Mapping[str, TensorInfo]) -> Iterator[str]:
    seen: dict[str, None] = {}
    for name in present:
        for suffix in layout.own_suffixes:
            if name.endswith(f".{suffix}"):
                seen[name.removesuffix(f".{suffix}")] = None
    yield from seen


def _own(layout: Layout, module: str, present: Mapping[str, TensorInfo]) -> tuple[str, ...]:
    return tuple(suffix for suffix in layout.own_suffixes if f"{module}.{suffix}" in present)


def _parts_of(
    layout: Layout,
    module: str,
    shape_OI: tuple[int, int],
    own: tuple[str, ...],
    left: dict[str, TensorInfo],
) -> tuple[dict[str, str], list[Finding]]:
    parts: dict[str, str] = {}
    faults: list[Finding] = []
    try:
        expected = layout.parts(shape_OI, own)
    except IncompatibleError as error:
        for suffix in (*own, "weight"):
            left.pop(f"{module}.{suffix}", None)
        return {}, [Finding("layout", module, f"'{module}': {error}")]
    for part in expected:
        name = f"{module}.{part.suffix}"
        info = left.pop(name, None)
        if info is None:
            faults.append(Finding("tensors", name, f"'{name}' is missing."))
            continue
        parts[part.suffix] = name
        fits = len(info.shape) == len(part.shape) and all(
            stated in (-1, size) for stated, size in zip(part.shape, info.shape, strict=True)
        )
        if info.dtype != part.dtype or not fits:
            text = (
                f"'{name}' is {info.dtype} {list(info.shape)}; {layout.name} has "
                f"{part.dtype} {list(part.shape)} for a layer of {list(shape_OI)}."
            )
            faults.append(Finding("layout", name, text))
    return parts, faults


def _state_shape(
    layout: Layout, variant: TensorSource, module: str, own: tuple[str, ...]
) -> tuple[int, int] | None:
    states = [suffix for suffix in own if "quant_state" in suffix]
    if not states:
        return None
    return layout.stated_shape(bytes(variant.read(f"{module}.{states[0]}")))


def _plain_faults(source: TensorInfo, info: TensorInfo | None) -> list[Finding]:
    if info is None:
        return [Finding("tensors", source.name, f"'{source.name}' is missing.")]
    is_same_kind = info.dtype == source.dtype or (
        DTYPES[info.dtype].is_float and DTYPES[source.dtype].is_float
    )
    if info.shape == source.shape and is_same_kind:
        return []
    text = (
        f"'{info.name}' is {info.dtype} {list(info.shape)}; in the source it is {source.dtype} "
        f"{list(source.shape)}."
    )
    return [Finding("tensors", info.name, text)]
