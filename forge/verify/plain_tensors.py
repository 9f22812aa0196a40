"""Compare what stayed in full precision with the source: equal, or multiplied by known scales."""

from __future__ import annotations

from typing import Final

import numpy as np

from forge.checkpoints.source import TensorSource
from forge.core.dtypes import DTYPES
from forge.verify.arithmetic import compare_floats
from forge.verify.findings import Finding
from forge.verify.folds import Scales, values_of

_ROUNDING: Final = 0.01
"""Relative error of a tensor that was multiplied by scales, or converted, and rounded."""
_FIT: Final = 0.05
"""The same where the scales are fitted to quantized columns: 10 % noise over 64 rows and more."""


def plain_faults(
    variant: TensorSource,
    source: TensorSource,
    name: str,
    scales: Scales | None,
    *,
    fitted: bool = False,
) -> list[Finding]:
    """Compare a tensor in full precision with its source.

    Args:
        variant: The quantized checkpoint.
        source: What it was made from; the variant itself to look for NaN only.
        name: The tensor.
        scales: What it was multiplied by, in a shape that fits its own; ``None`` for nothing.
        fitted: Whether the scales are a fit and not exact.

    Returns:
        What is wrong with it.
    """
    info, other = variant.info(name), source.info(name)
    if info.shape != other.shape:
        return []  # The account says so.
    if not (DTYPES[info.dtype].mergeable and DTYPES[other.dtype].mergeable):
        equal = bytes(variant.read(name)) == bytes(source.read(name))
        return [] if equal else [_changed(name)]
    if scales is not None:
        expected = values_of(source, name) * scales
        found = values_of(variant, name)
        norm = float(np.linalg.norm(expected))
        # Zeros stay zeros: norm 0 allows no difference.
        if float(np.linalg.norm(found - expected)) <= (_FIT if fitted else _ROUNDING) * norm:
            return []
        text = f"'{name}' is not its source multiplied by the scales of the layers around it."
        return [Finding("error", name, text)]
    sums = compare_floats(source.read(name), other.dtype, variant.read(name), info.dtype)
    if sums.num_nonfinite_b:
        text = f"'{name}' holds {sums.num_nonfinite_b:,} NaN or infinite values."
        return [Finding("tensors", name, text)]
    same_type = info.dtype == other.dtype
    if sums.num_equal == sums.num_elements or (
        not same_type and sums.relative is not None and sums.relative <= _ROUNDING
    ):
        return []
    return [_changed(name)]


def _changed(name: str) -> Finding:
    return Finding(
        "tensors", name, f"'{name}' differs from the source, although nothing was folded into it."
    )
