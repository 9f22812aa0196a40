"""Find the linear layers of a checkpoint's decoder blocks, and what feeds each of them.

Rows of ``block_table.py`` meet tensor names and shapes here; no tensor is read. What a row does
not know is an error, never skipped: a matrix that nobody accounts for would stay unquantized
without a word, and one with the wrong feeder would be corrupted without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.architectures.block_table import BLOCKS, BlockStructure, Feeder, Group
from forge.architectures.table import Architecture
from forge.core.errors import CheckpointError, IncompatibleError

_ACTIVATION_KEYS: Final = (
    "hidden_act", "hidden_activation", "activation_function", "activation",
)  # fmt: skip
_EXPERT: Final = re.compile(r"\{e\}")


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a checkpoint that can be quantized.

    Attributes:
        module: Its full name, such as ``model.layers.0.mlp.up_proj``.
        tensor: Its weight's name.
        shape_OI: Output and input features, whatever the order in the file.
        transposed: Whether the file holds ``[in, out]``.
        block: Number of its decoder block.
        clipped: Whether its largest weights may be cut.
    """

    module: str
    tensor: str
    shape_OI: tuple[int, int]
    transposed: bool
    block: int
    clipped: bool


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linear layers of one block that read one input, by full names.

    Attributes:
        linears: The layers.
        norm: Module of the norm that feeds them and takes in their scale, or ``None``.
        feeder: Module of the linear layer that feeds them and takes it in, or ``None``.
        rows: Rows of ``feeder`` by input feature of ``linears``; empty without a feeder.
        companions: Weights of other readers of the same input, multiplied along and kept.
    """

    linears: tuple[Linear, ...]
    norm: str | None = None
    feeder: str | None = None
    rows: Sequence[int] = ()
    companions: tuple[str, ...] = ()


def block_structure(architecture: Architecture) -> BlockStructure:
    """Return the row of a family.

    Args:
        architecture: The model's family.

    Returns:
        What its decoder blocks consist of.

    Raises:
        IncompatibleError: There is no row; the message says what one needs.
    """
    if architecture.name in BLOCKS:
        return BLOCKS[architecture.name]
    raise IncompatibleError(
        f"The decoder blocks of '{architecture.name}' are not in forge's table, so it is not "
        f"known which linears may be quantized.{BLOCKS.suggest(architecture.name)} "
        f"Known: {', '.join(BLOCKS.names())}. A row (forge/architectures/block_table.py) needs the "
        "block's linear layers, the norm or linear that feeds each of them, and whether norms "
        "multiply by 1 + weight; docs/architectures.md shows how to add one."
    )


def quantizable_linears(
    architecture: Architecture, shapes: Mapping[str, Sequence[int]]
) -> tuple[Linear, ...]:
    """Return all linear layers of a checkpoint's decoder blocks; routers are never among them.

    Args:
        architecture: The model's family.
        shapes: Shapes of the checkpoint's tensors by name, as the files hold them.

    Returns:
        The layers by block, within a block in the order of the row.

    Raises:
        IncompatibleError: The family has no row, or a block holds matrices that the row does not
            know: experts fused into one tensor, or layers of a variant.
        CheckpointError: A block lacks some of the linears that belong together.
    """
    return tuple(
        linear
        for groups in linear_groups(architecture, shapes, {}).values()
        for group in groups
        for linear in group.linears
    )


def linear_groups(
    architecture: Architecture,
    shapes: Mapping[str, Sequence[int]],
    config: Mapping[str, object],
) -> dict[int, tuple[LinearGroup, ...]]:
    """Return the linear layers of each decoder block, with what feeds them.

    Args:
        architecture: The model's family.
        shapes: Shapes of the checkpoint's tensors by name, as the files hold them.
        config: The model's ``config.json``.

    Returns:
        Groups by number of the block, ascending. A feeder that cannot take in scales (grouped
        queries, an activation between, a norm whose output goes elsewhere) is left out.

    Raises:
        IncompatibleError: As ``quantizable_linears``.
        CheckpointError: As ``quantizable_linears``.
    """
    structure = block_structure(architecture)
    blocks = _tensors_by_block(architecture, shapes)
    if not blocks:
        raise CheckpointError(
            f"No tensor of a decoder block was found; those of {architecture.name} begin with "
            f"{' or '.join(repr(prefix) for prefix in architecture.layer_prefixes)}."
        )
    text = architecture.text_config(config)
    return {
        number: _groups_of_block(structure, number, prefix, tensors, text)
        for number, (prefix, tensors) in sorted(blocks.items())
    }


def is_kept(module: str, keep: Iterable[str]) -> bool:
    """Tell whether a module is to stay in full precision.

    Args:
        module: Its full name.
        keep: Full names, or whole parts of them between dots (``down_proj``, ``layers.0``).

    Returns:
        Whether one of them matches.
    """
    return any(f".{part.strip('.')}." in f".{module}." for part in keep)


def _tensors_by_block(
    architecture: Architecture, shapes: Mapping[str, Sequence[int]]
) -> dict[int, tuple[str, dict[str, tuple[int, ...]]]]:
    blocks: dict[int, tuple[str, dict[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        number = architecture.layer_of(name)
        if number is None:
            continue
        prefix = next(
            start
            for each in architecture.layer_prefixes
            if name.startswith(start := f"{each}{number}.")
        )
        tensors = blocks.setdefault(number, (prefix, {}))[1]
        tensors[name.removeprefix(prefix)] = tuple(shape)
    return blocks


def _groups_of_block(
    structure: BlockStructure,
    number: int,
    prefix: str,
    tensors: Mapping[str, tuple[int, ...]],
    config: Mapping[str, object],
) -> tuple[LinearGroup, ...]:
    groups = structure.groups
    for module, alternative in structure.alternatives:
        if f"{module}.weight" in tensors:
            groups = alternative
            break
    concrete = tuple(one for group in groups for one in _expand(group, prefix, tensors))
    _check_covered(structure.name, concrete, prefix, tensors)
    return tuple(
        _resolve(group, structure, number, prefix, tensors, config) for group in concrete
    )  # fmt: skip


def _expand(group: Group, prefix: str, tensors: Mapping[str, tuple[int, ...]]) -> tuple[Group, ...]:
    """Put in the experts' numbers: one group for all when a norm feeds it, else one an expert."""
    experts = _experts_of(group, tensors)
    if experts is None:
        expanded: tuple[Group, ...] = (group,)
    elif group.feeder is None:
        linears = tuple(
            name
            for pattern in group.linears
            for name in (_each(pattern, experts) if "{e}" in pattern else (pattern,))
        )
        expanded = (Group(linears, group.norm, None, group.companions),) if linears else ()
    else:
        feeder = group.feeder
        expanded = tuple(
            Group(
                tuple(_EXPERT.sub(str(expert), name) for name in group.linears),
                feeder=Feeder(_EXPERT.sub(str(expert), feeder.module)),
            )
            for expert in experts
        )
    return tuple(each for each in expanded if _is_present(each, prefix, tensors))


def _experts_of(group: Group, tensors: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    patterns = [
        re.compile(re.escape(name).replace(r"\{e\}", r"(\d+)") + r"\.weight")
        for name in group.linears
        if "{e}" in name
    ]
    if not patterns:
        return None
    found = {
        int(match[1]) for name in tensors for each in patterns if (match := each.fullmatch(name))
    }
    return tuple(sorted(found))


def _each(pattern: str, experts: Iterable[int]) -> tuple[str, ...]:
    return tuple(_EXPERT.sub(str(expert), pattern) for expert in experts)


def _is_present(group: Group, prefix: str, tensors: Mapping[str, tuple[int, ...]]) -> bool:
    missing = [name for name in group.linears if f"{name}.weight" not in tensors]
    if missing and len(missing) < len(group.linears):
        raise CheckpointError(
            f"'{prefix}{missing[0]}.weight' is missing, although the block has "
            f"'{prefix}{next(n for n in group.linears if n not in missing)}.weight'. "
            "The checkpoint is incomplete; download it again."
        )
    return not missing


def _check_covered(
    family: str, groups: Iterable[Group], prefix: str, tensors: Mapping[str, tuple[int, ...]]
) -> None:
    known = {
        f"{name}.weight" for group in groups for name in (*group.linears, *group.companions)
    }  # fmt: skip
    # Fused experts first: without experts of its own, a block's router is unknown, too.
    for name, shape in sorted(tensors.items(), key=lambda item: -len(item[1])):
        if name in known or "norm" in name or len(shape) not in (2, 3) or "bias" in name:
            continue
        if len(shape) == 3:
            raise IncompatibleError(
                f"'{prefix}{name}' is {list(shape)}: experts fused into one tensor, which would "
                "stay unquantized. Where the family has a form with one tensor an expert, save the "
                "model in that form (save_pretrained of transformers 5 does) and quantize it."
            )
        raise IncompatibleError(
            f"'{prefix}{name}' {list(shape)} is not in forge's row of {family} blocks, so what "
            "feeds it is unknown. Add it to the row (forge/architectures/block_table.py): as a "
            "linear with its feeder, or as a companion that is never quantized."
        )


def _resolve(
    group: Group,
    structure: BlockStructure,
    number: int,
    prefix: str,
    tensors: Mapping[str, tuple[int, ...]],
    config: Mapping[str, object],
) -> LinearGroup:
    linears = []
    for name in group.linears:
        shape = tensors[f"{name}.weight"]
        if len(shape) != 2:
            raise CheckpointError(f"'{prefix}{name}.weight' is {list(shape)}, not a matrix.")
        out, inner = reversed(shape) if structure.transposed else shape
        linears.append(
            Linear(
                f"{prefix}{name}", f"{prefix}{name}.weight", (out, inner), structure.transposed,
                number, name not in group.unclipped,
            )
        )  # fmt: skip
    companions = tuple(
        f"{prefix}{name}.weight" for name in group.companions if f"{name}.weight" in tensors
    )
    norm = group.norm
    if norm is not None:
        if f"{norm}.weight" not in tensors:
            raise CheckpointError(
                f"'{prefix}{norm}.weight' is missing; it feeds '{linears[0].module}'. "
                "The checkpoint is incomplete, or a variant that forge's table does not know."
            )
        elsewhere = any(config.get(key) == value for key, value in structure.norms_feed_unless)
        norm = None if elsewhere else f"{prefix}{norm}"
    rows = _feeding_rows(group.feeder, linears[0].shape_OI[1], structure, tensors, config)
    feeder = f"{prefix}{group.feeder.module}" if group.feeder and rows else None
    return LinearGroup(tuple(linears), norm, feeder, rows, companions)


def _feeding_rows(
    feeder: Feeder | None,
    num_inputs: int,
    structure: BlockStructure,
    tensors: Mapping[str, tuple[int, ...]],
    config: Mapping[str, object],
) -> Sequence[int]:
    """Return which row of the feeder makes each input feature; empty when none does alone."""
    if feeder is None or f"{feeder.module}.weight" not in tensors:
        return ()
    shape = tensors[f"{feeder.module}.weight"]
    if shape[1 if structure.transposed else 0] != feeder.parts * num_inputs:
        # Grouped queries: several heads share a row of values.
        return ()
    if feeder.needs_relu and _value(config, _ACTIVATION_KEYS) != "relu":
        return ()
    if not feeder.per_head:
        start = feeder.part * num_inputs
        # As numbers, the rows of 15,000 experts would take a gigabyte.
        return range(start, start + num_inputs)
    heads = _value(config, ("num_attention_heads", "n_head", "num_heads"))
    if type(heads) is not int or heads < 1 or num_inputs % heads:
        return ()
    width = num_inputs // heads
    starts = ((head * feeder.parts + feeder.part) * width for head in range(heads))
    return tuple(start + i for start in starts for i in range(width))


def _value(config: Mapping[str, object], keys: Iterable[str]) -> object:
    return next((config[key] for key in keys if key in config), None)
