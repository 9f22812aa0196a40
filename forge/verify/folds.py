"""Find the scales that calibration folded into a model, from the model and its source.

AWQ multiplies columns of a linear layer by scales and divides what feeds it by the same, so a
layer alone no longer resembles its source. The scales are not taken from a record of the maker: a
norm's are the ratio of its two weights, and those that went into the rows of another linear layer
are the least-squares fit of the columns that they multiplied. A layer whose feeder was divided by
anything else then misses its bound.

Legend: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.architectures.blocks import LinearGroup
from forge.checkpoints.floats import decode
from forge.checkpoints.source import TensorSource
from forge.verify.findings import Finding

Scales = npt.NDArray[np.float32]
FitColumns = Callable[[str], Scales]
"""Returns the least-squares scale of each column of a layer, by module."""

_LIMIT: Final = 1e6
"""A scale beyond this, or below its inverse, is damage and not a choice."""


@dataclass(slots=True)
class Folds:
    """The scales of a block.

    Attributes:
        columns: Scale of each input feature by module.
        rows: Scale of each output feature by module.
        tensors: Plain tensors that take part: expected scale of each element or row by name.
        norms: Plain tensors that hold a norm, whose scales define those of ``columns``.
        fitted: Those of ``tensors`` whose scales are a fit and not exact.
    """

    columns: dict[str, Scales] = field(default_factory=dict)
    rows: dict[str, Scales] = field(default_factory=dict)
    tensors: dict[str, Scales] = field(default_factory=dict)
    norms: set[str] = field(default_factory=set)
    fitted: set[str] = field(default_factory=set)


def folds_of_block(
    groups: Sequence[LinearGroup],
    variant: TensorSource,
    source: TensorSource,
    *,
    one_plus: bool,
    fit: FitColumns,
) -> tuple[Folds, list[Finding]]:
    """Find the scales of one decoder block.

    Args:
        groups: Its linear layers and what feeds them.
        variant: The quantized checkpoint.
        source: What it was made from.
        one_plus: Whether norms multiply by one plus their weight.
        fit: Fits the columns of a layer that another linear layer feeds.

    Returns:
        The scales, and what is wrong with them.
    """
    folds, findings = Folds(), list[Finding]()
    names = frozenset(variant.names())
    rows_of = {linear.module: linear.shape_OI[0] for group in groups for linear in group.linears}
    for group in groups:
        if group.norm is not None and f"{group.norm}.weight" in names:
            scales, faults = _norm_scales(group.norm, variant, source, one_plus=one_plus)
            findings += faults
            folds.norms.add(f"{group.norm}.weight")
            if f"{group.norm}.bias" in names:
                folds.tensors[f"{group.norm}.bias"] = np.float32(1) / scales
        elif group.feeder is not None:
            scales = fit(group.linears[0].module)
            rows = folds.rows.setdefault(group.feeder, np.ones(rows_of[group.feeder], np.float32))
            rows[list(group.rows)] = np.float32(1) / scales
            if f"{group.feeder}.bias" in names:
                folds.tensors[f"{group.feeder}.bias"] = rows
                folds.fitted.add(f"{group.feeder}.bias")
        else:
            continue
        for linear in group.linears:
            folds.columns[linear.module] = scales
        folds.tensors |= dict.fromkeys(group.companions, scales)
    return folds, findings


def values_of(source: TensorSource, name: str) -> npt.NDArray[np.float32]:
    """Return a tensor's values, float32, in its shape.

    Args:
        source: Where it is.
        name: The tensor, of a floating-point type.
    """
    info = source.info(name)
    return decode(source.read(name), info.dtype).astype(np.float32, copy=False).reshape(info.shape)


def _norm_scales(
    norm: str, variant: TensorSource, source: TensorSource, *, one_plus: bool
) -> tuple[Scales, list[Finding]]:
    name = f"{norm}.weight"
    offset = np.float32(1 if one_plus else 0)
    before, after = values_of(source, name) + offset, values_of(variant, name) + offset
    if before.shape != after.shape:
        return np.ones_like(before), []  # The account says so.
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = np.where(before == after, np.float32(1), before / after).astype(np.float32)
    wrong = ~(np.isfinite(scales) & (scales > 1 / _LIMIT) & (scales < _LIMIT))
    if not wrong.any():
        return scales, []
    text = (
        f"'{name}' is not its source divided by positive scales: {int(wrong.sum())} of "
        f"{wrong.size} values, first number {int(wrong.argmax())}."
    )
    return np.where(wrong, np.float32(1), scales), [Finding("error", name, text)]


def row_scale(folds: Mapping[str, Scales], module: str, count: int) -> Scales:
    """Return a module's scales, ones where it has none.

    Args:
        folds: Scales by module.
        module: The module.
        count: Its features.
    """
    return folds.get(module, np.ones(count, np.float32))
