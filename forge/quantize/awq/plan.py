"""Say from headers alone which linears will be quantized and which tensors will change with them.

A scale that a linear's columns take on must be taken off by the norm or the linear that feeds it.
What changes but is not quantized is a *folded* tensor: norms, biases of feeding linears, routers
and linears that are kept in full precision but read the same input. All of them are known before
anything is read, so that the whole output can be laid out first. A linear that is kept and feeds
a quantized one changes, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from forge.architectures.blocks import (
    Linear,
    block_structure,
    is_kept,
    linear_groups,
)
from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.contract import Scheme


@dataclass(frozen=True, slots=True)
class FoldGroup:
    """Linears of one block that read one input and share a scale.

    Attributes:
        linears: Those that are quantized.
        companions: Weights that read the same input and stay in full precision.
        norm: Module of the norm that takes the scale off, or ``None``.
        feeder: Module of the linear that takes it off, or ``None``.
        feeder_kept: Whether that linear stays in full precision.
        rows: Rows of the feeder by input feature.
    """

    linears: tuple[Linear, ...]
    companions: tuple[str, ...] = ()
    norm: str | None = None
    feeder: str | None = None
    feeder_kept: bool = False
    rows: Sequence[int] = ()

    @property
    def is_scaled(self) -> bool:
        """Whether something can take a scale off."""
        return self.norm is not None or self.feeder is not None

    @property
    def pair(self) -> str:
        """The feeder and the fed, for messages."""
        fed = ", ".join(linear.module.rpartition(".")[2] for linear in self.linears)
        return f"'{self.norm or self.feeder}' -> {fed}"


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """What happens to one decoder block.

    Attributes:
        index: Number of the block.
        groups: Its linears that are quantized.
        folded: Names of tensors that change and stay in full precision, in checkpoint order.
    """

    index: int
    groups: tuple[FoldGroup, ...]
    folded: tuple[str, ...]


def plan_blocks(checkpoint: Checkpoint, *, keep: Iterable[str] = ()) -> tuple[BlockPlan, ...]:
    """Plan every decoder block of a checkpoint.

    Args:
        checkpoint: The model.
        keep: Modules that stay in full precision.

    Returns:
        The plans, by number of the block.

    Raises:
        IncompatibleError: The family or a matrix of a block is unknown.
        CheckpointError: A block is incomplete.
    """
    source = checkpoint.source
    architecture = architecture_of(checkpoint.config, tensor_names=source.names())
    shapes = {name: source.info(name).shape for name in source.names()}
    blocks = linear_groups(architecture, shapes, checkpoint.config)
    expected = architecture.num_layers(checkpoint.config)
    if tuple(blocks) != tuple(range(expected)):
        raise CheckpointError(
            f"config.json of '{source.label}' states {expected} layers, but its files hold "
            f"{len(blocks)}. The checkpoint is incomplete, or its config belongs to another model."
        )
    kept = tuple(keep)
    plans = []
    for index, groups in blocks.items():
        planned = tuple(
            FoldGroup(
                tuple(linear for linear in group.linears if not is_kept(linear.module, kept)),
                (
                    *group.companions,
                    *(each.tensor for each in group.linears if is_kept(each.module, kept)),
                ),
                group.norm,
                group.feeder,
                group.feeder is not None and is_kept(group.feeder, kept),
                group.rows,
            )
            for group in groups
            if not all(is_kept(linear.module, kept) for linear in group.linears)
        )
        changed = {name for group in planned for name in _changed(group)}
        plans.append(BlockPlan(index, planned, tuple(name for name in shapes if name in changed)))
    return tuple(plans)


def planned_changes(
    checkpoint: Checkpoint, *, keep: Iterable[str] = ()
) -> tuple[tuple[Linear, ...], tuple[str, ...]]:
    """Return what calibrated quantization changes; everything else is copied.

    Args:
        checkpoint: The model; only headers are read.
        keep: Modules that stay in full precision.

    Returns:
        The linears that are quantized, and the names of tensors that change otherwise.

    Raises:
        IncompatibleError: The family or a matrix of a block is unknown.
        CheckpointError: A block is incomplete.
    """
    plans = plan_blocks(checkpoint, keep=keep)
    linears = tuple(each for plan in plans for group in plan.groups for each in group.linears)
    return linears, tuple(name for plan in plans for name in plan.folded)


def check_groups(linears: Iterable[Linear], scheme: Scheme) -> None:
    """Check that the groups divide every linear.

    Args:
        linears: What is to be quantized.
        scheme: Bits and groups.

    Raises:
        IncompatibleError: A linear does not divide, or the scheme is symmetric.
    """
    if scheme.symmetric:
        raise IncompatibleError(
            "The calibrated search rounds to codes with zero points; use method 'rtn' for a "
            "symmetric scheme."
        )
    widths: Mapping[int, str] = {each.shape_OI[1]: each.module for each in linears}
    wrong = [width for width in widths if width % scheme.group_size]
    if wrong:
        fitting = [size for size in (32, 64, 128) if not any(width % size for width in widths)]
        advice = (
            f"Groups of {', '.join(map(str, fitting))} divide all of them."
            if fitting
            else "No usual group size divides all of them; keep those modules out ('keep')."
        )
        raise IncompatibleError(
            f"Groups of {scheme.group_size} do not divide the {wrong[0]} inputs of "
            f"'{widths[wrong[0]]}'. {advice}"
        )


def one_plus_norms(checkpoint: Checkpoint) -> bool:
    """Tell whether the model's norms multiply by one plus their weight."""
    architecture = architecture_of(checkpoint.config, tensor_names=checkpoint.source.names())
    return block_structure(architecture).one_plus


def _changed(group: FoldGroup) -> tuple[str, ...]:
    if not group.is_scaled:
        return ()
    names = list(group.companions)
    if group.norm is not None:
        names += [f"{group.norm}.weight", f"{group.norm}.bias"]
    if group.feeder is not None:
        names.append(f"{group.feeder}.bias")
        if group.feeder_kept:
            names.append(f"{group.feeder}.weight")
    return tuple(names)
