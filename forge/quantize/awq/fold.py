"""Fold a scale into what feeds a group of linears, and prove that the block computes the same.

The linears' columns are multiplied by s. What feeds them is divided by it: a norm's weight and
bias, or rows of the linear before. A norm stays in full precision and is stored in the
checkpoint's type, so w / s is rounded, and rounding is coarse where norms multiply by 1 + w. The
scale that counts is therefore the one that rounding leaves,

    s = (1 + w) / (1 + round((1 + w) / s - 1)),

and the columns are multiplied by that: codes are then computed for exactly what a loader will
compute with, and folding a norm into quantized linears costs no precision at all.

What remains rounded are biases, routers and kept linears. The proof runs the folded block in
float32 and compares: once before those are rounded, when nothing but the last bits of float32 may
differ, and once as they will be stored. A fold into the wrong tensor shows in the first, whatever
the scale is.

Legend: O output features, I input features, B sequences, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from forge.core.errors import IncompatibleError
from forge.quantize.awq.plan import BlockPlan, FoldGroup

TORCH_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EXACT_TOLERANCE: Final = 1e-3
"""Relative change of a block's contribution that float32 arithmetic may cause."""
_TOLERANCES: Final = {"F32": EXACT_TOLERANCE, "F16": 1e-2, "BF16": 5e-2}
"""And that rounding biases, routers and kept linears to what is stored may cause."""


def fold_group(
    group: FoldGroup,
    tensors: Mapping[str, torch.Tensor],
    scale_I: torch.Tensor,
    *,
    dtypes: Mapping[str, str],
    one_plus: bool,
    transposed: bool,
) -> torch.Tensor:
    """Fold a scale into a block.

    Args:
        group: The linears and what feeds them.
        tensors: The block's float32 tensors by name; changed in place.
        scale_I: float32, positive.
        dtypes: Types in which the checkpoint stores them.
        one_plus: Whether norms multiply by one plus their weight.
        transposed: Whether linear weights are stored ``[in, out]``.

    Returns:
        The scale that counts, float32 [I].
    """
    if group.norm is not None:
        weight = tensors[f"{group.norm}.weight"]
        dtype = dtypes[f"{group.norm}.weight"]
        scale_I = _fold_norm(weight, scale_I, dtype, 1.0 if one_plus else 0.0)
        if f"{group.norm}.bias" in tensors:
            tensors[f"{group.norm}.bias"] /= scale_I
    elif group.feeder is not None:
        rows = torch.tensor(group.rows)
        feeder = tensors[f"{group.feeder}.weight"]
        (feeder.T if transposed else feeder)[rows] /= scale_I[:, None]
        if f"{group.feeder}.bias" in tensors:
            tensors[f"{group.feeder}.bias"][rows] /= scale_I
    for name in (*(linear.tensor for linear in group.linears), *group.companions):
        weight = tensors[name]
        (weight.T if transposed else weight).mul_(scale_I)
    return scale_I


def store_folded(
    plan: BlockPlan, tensors: Mapping[str, torch.Tensor], dtypes: Mapping[str, str]
) -> None:
    """Round what stays in full precision to what will be stored.

    Args:
        plan: Names what was folded.
        tensors: The block's float32 tensors by name; changed in place.
        dtypes: Types in which the checkpoint stores them.
    """
    for name in plan.folded:
        tensors[name].copy_(stored(tensors[name], dtypes[name]))


def rounds_more_than_norms(plan: BlockPlan) -> bool:
    """Tell whether a fold rounds anything but norms, whose rounding the scale makes up for.

    Args:
        plan: Names what is folded.
    """
    norms = {f"{group.norm}.weight" for group in plan.groups}
    return any(name not in norms for name in plan.folded)


def stored(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Round float32 values to a checkpoint's type, and widen them again."""
    return values.to(TORCH_DTYPES[dtype]).float()


def contribution_error(
    before_BTD: torch.Tensor,
    after_BTD: torch.Tensor,
    folded_BTD: torch.Tensor,
    *,
    is_mixture: bool,
) -> float:
    """Return by how much a fold changed what a block adds to its input, relative to that.

    Args:
        before_BTD: Hidden states before the block.
        after_BTD: And after the original block.
        folded_BTD: And after the folded one.
        is_mixture: Whether a router sends tokens to experts. A token on the fence may then go to
            another expert after rounding, so the median token counts; otherwise all tokens do.

    Returns:
        The relative change, NaN included.
    """
    added = (after_BTD - before_BTD).flatten(0, 1)
    changed = (folded_BTD - after_BTD).flatten(0, 1)
    if not is_mixture:
        return float(changed.norm() / added.norm().clamp(min=1e-20))
    return float((changed.norm(dim=1) / added.norm(dim=1).clamp(min=1e-20)).median())


def tolerance(plan: BlockPlan, dtypes: Mapping[str, str]) -> float:
    """Return the change that rounding may cause in a block.

    Args:
        plan: Names what is rounded.
        dtypes: To which type.
    """
    return max((_TOLERANCES[dtypes[name]] for name in plan.folded), default=_TOLERANCES["F32"])


def refuse(pair: str, where: str, error: float) -> IncompatibleError:
    """Make the error for a pair of layers that a scale cannot pass.

    Args:
        pair: Feeder and fed.
        where: What the block is called.
        error: The relative change.
    """
    return IncompatibleError(
        f"{where}: folding a scale into {pair} changes what the block computes by "
        f"{error:.2%}, more than rounding explains. The row of this family in "
        "forge/architectures/block_table.py names the wrong feeder (or the wrong kind of norm). "
        "The block was not quantized."
    )


def _fold_norm(
    weight_I: torch.Tensor, scale_I: torch.Tensor, dtype: str, one: float
) -> torch.Tensor:
    factor_I = weight_I + one
    folded_I = stored(factor_I / scale_I - one, dtype)
    effective_I = factor_I / (folded_I + one)
    # A feature that the norm switches off, or that rounding would, keeps its weight.
    usable_I = torch.isfinite(effective_I) & (effective_I > 0)
    effective_I = torch.where(usable_I, effective_I, torch.ones(()))
    weight_I.copy_(torch.where(usable_I, folded_I, weight_I))
    return effective_I.contiguous()
