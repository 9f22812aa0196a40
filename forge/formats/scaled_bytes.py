"""Weights of one byte a number, and their scales: FP8 and int8, however the scales are shared.

    part               dtype                  shape
    weight             F8_E4M3, F8_E5M2, I8   [..., O, I]
    scale              F32, BF16, F16, E8M0   [], [1], [O, 1], [O, G], [..., ceil(O/m), ceil(I/n)]
    weight_zero_point  I8                     as the scale; asymmetric int8 only

``scale`` is called ``weight_scale`` by compressed-tensors, FBGEMM and ModelOpt and
``weight_scale_inv`` by DeepSeek and transformers; in spite of its name, it is multiplied, too:
``weight = (byte - zero) * scale``. Blocks of m rows and n columns may be cut short at the edges.
Stacked experts have a leading axis of their own; scales then have it as well.

Reference: compressed-tensors 0.20, ``NaiveQuantizationCompressor``; transformers 5.23,
``Fp8Dequantize``. Legend: O output features, I input features, G groups, R rows (stacked O),
m by n a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError
from forge.formats.contract import ScaledCodes
from forge.formats.numbers import finite_singles, float8_values

FLOAT_TYPES: Final = ("F8_E4M3", "F8_E5M2")
SCALE_TYPES: Final = ("F32", "BF16", "F16", "F8_E8M0", "U8")
_HALF: Final = np.uint8(128)


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which bytes share a scale.

    Attributes:
        rows: Neighbouring rows, m.
        columns: Neighbouring columns, n.
    """

    rows: int
    columns: int


def sharing_of(
    weight: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int] | None
) -> Sharing | None:
    """Tell by its shape which bytes a scale is for.

    Args:
        weight: Shape of the weight, [..., O, I].
        scale: Shape of its scales.
        block: m and n where the configuration states them.

    Returns:
        What shares a scale; ``None`` when the shapes do not fit each other.
    """
    if len(weight) < 2 or 0 in weight:
        return None
    lead, (num_out, num_in) = weight[:-2], weight[-2:]
    if math.prod(scale) == 1 and not math.prod(lead) > 1:
        return Sharing(num_out, num_in)
    if scale[: len(lead)] != lead:
        return None
    grid = scale[len(lead) :]
    if grid in ((), (1,)):
        return Sharing(num_out, num_in)
    if grid == (num_out,):
        return Sharing(1, num_in)
    if len(grid) != 2:
        return None
    if block is not None and grid == (-(-num_out // block[0]), -(-num_in // block[1])):
        return Sharing(*block)
    if 0 in grid or num_out % grid[0] or num_in % grid[1]:
        return None
    return Sharing(num_out // grid[0], num_in // grid[1])


def decode(
    weight: npt.NDArray[np.generic],
    scale: npt.NDArray[np.generic],
    zeros: npt.NDArray[np.generic] | None = None,
    *,
    dtype: str,
    scale_dtype: str,
    sharing: Sharing,
    precision: str,
) -> ScaledCodes:
    """Read a weight.

    Args:
        weight: [..., O, I], one byte a number.
        scale: Of a shape that ``sharing_of`` found to fit.
        zeros: Zero points of int8, of the scale's shape.
        dtype: ``F8_E4M3``, ``F8_E5M2`` or ``I8``.
        scale_dtype: One of ``SCALE_TYPES``.
        sharing: What shares a scale.
        precision: Type in which the library multiplies.

    Returns:
        The weight as a matrix, stacked ones below each other: [R, I].

    Raises:
        CheckpointError: A scale is not finite, or an FP8 weight has zero points.
    """
    num_out, num_in = weight.shape[-2:]
    codes_RI = np.ascontiguousarray(weight).view(np.uint8).reshape(-1, num_in)
    values = finite_singles(scale, scale_dtype, what="scale")
    scales_RG = _spread(values, codes_RI.shape[0], num_out, sharing, num_in)
    zeros_RG: npt.NDArray[np.uint8] | None = None
    table: npt.NDArray[np.float32] | None = None
    if dtype == "I8":
        codes_RI = codes_RI ^ _HALF
        stored = np.zeros(scale.shape, np.int8) if zeros is None else np.asarray(zeros, np.int8)
        spread = _spread(stored, codes_RI.shape[0], num_out, sharing, num_in)
        zeros_RG = spread.view(np.uint8) ^ _HALF
    else:
        table = float8_values(dtype)
        if zeros is not None and np.asarray(zeros).view(np.uint8).any():
            raise CheckpointError("An FP8 weight has zero points, which mean nothing there.")
    return ScaledCodes(
        codes_RI,
        np.asarray(scales_RG, np.float32),
        sharing.columns,
        zeros_OG=zeros_RG,
        values=table,
        precision=precision,
    )


def _spread(
    values: npt.NDArray[np.generic], num_rows: int, num_out: int, sharing: Sharing, num_in: int
) -> npt.NDArray[np.generic]:
    """Return one row of scales for each row of bytes, [R, G]."""
    stack = num_rows // num_out
    down, across = -(-num_out // sharing.rows), -(-num_in // sharing.columns)
    grid = values.reshape(stack, down, across)
    rows = np.repeat(grid, sharing.rows, axis=1)[:, :num_out]
    return np.ascontiguousarray(rows).reshape(num_rows, across)
