"""Weights of 4-bit floats (FP4, E2M1) by small groups: NVFP4 and MXFP4.

    layout                     part                 dtype     shape
    NVFP4                      weight_packed        U8        [O, I/2]
                               weight_scale         F8_E4M3   [O, I/16]
                               weight_global_scale  F32       [1]           divides the scales
    MXFP4                      weight_packed        U8        [O, I/2]
                               weight_scale         U8, E8M0  [O, I/32]     2^(s - 127)
    MXFP4 of experts, GPT-OSS  X_blocks             U8        [E, O, G, 16]
                               X_scales             U8        [E, O, G]     2^(s - 127)

A byte holds two neighbours of I, the first one low. A code is a sign and one of 0, 0.5, 1, 1.5,
2, 3, 4, 6. GPT-OSS' own tensors are X, [E, I, O]: transposed, because its experts multiply from
the other side; its fused gates and ups alternate along O as they lie.

The scale of NVFP4 is ``weight_scale / weight_global_scale``, one division in float32; the product
is then rounded once. Powers of two are exact.

Reference: compressed-tensors 0.20, ``NVFP4PackedCompressor``; transformers 5.23,
``convert_moe_packed_tensors``; OCP Microscaling Formats 1.0. Legend: O output features, I input
features, G groups, E experts, R rows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import CheckpointError
from forge.formats.contract import ScaledCodes
from forge.formats.numbers import finite_singles, float4_values

NVFP4_GROUP: Final = 16
MXFP4_GROUP: Final = 32
POWER_TYPES: Final[tuple[str, ...]] = ("U8", "F8_E8M0")


def unpacked(packed_RB: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Return the codes of rows of bytes, the low one of each byte first.

    Args:
        packed_RB: uint8.

    Returns:
        uint8 [R, 2B].
    """
    rows, columns = packed_RB.shape
    codes = np.empty((rows, columns, 2), np.uint8)
    codes[..., 0] = packed_RB.astype(np.uint8, copy=False) & 15
    codes[..., 1] = packed_RB.astype(np.uint8, copy=False) >> 4
    return codes.reshape(rows, 2 * columns)


def decode_nvfp4(
    packed_OB: npt.NDArray[np.generic],
    scales_OG: npt.NDArray[np.generic],
    divisor: npt.NDArray[np.generic],
) -> ScaledCodes:
    """Read a weight of NVFP4.

    Args:
        packed_OB: uint8 [O, I/2].
        scales_OG: Codes of F8_E4M3, [O, I/16].
        divisor: float32, one number.

    Raises:
        CheckpointError: A scale is not finite, or the divisor is 0.
    """
    by = np.float32(finite_singles(divisor, "F32", what="weight_global_scale").reshape(-1)[0])
    if by == 0:
        raise CheckpointError("'weight_global_scale' is 0. The checkpoint is damaged.")
    with np.errstate(over="ignore"):
        scales = finite_singles(scales_OG, "F8_E4M3", what="weight_scale") / by
    if not np.isfinite(scales).all():
        raise CheckpointError("'weight_global_scale' is too small. The checkpoint is damaged.")
    return ScaledCodes(
        unpacked(packed_OB), scales, NVFP4_GROUP, values=float4_values(), precision="BF16"
    )


def decode_mxfp4(
    packed_RB: npt.NDArray[np.generic], scales_RG: npt.NDArray[np.generic], *, precision: str
) -> ScaledCodes:
    """Read rows of MXFP4.

    Args:
        packed_RB: uint8 [R, I/2].
        scales_RG: Codes of E8M0, [R, I/32].
        precision: Type in which the library multiplies.

    Raises:
        CheckpointError: A scale is the code of no number.
    """
    scales = finite_singles(scales_RG, "F8_E8M0", what="scales")
    return ScaledCodes(
        unpacked(packed_RB), scales, MXFP4_GROUP, values=float4_values(), precision=precision
    )
