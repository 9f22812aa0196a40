"""Round to nearest: each weight becomes the nearest code of its group.

Asymmetric, for the weights w of a group and n = 2^bits - 1:

    scale = max(max(w, 0) - min(w, 0), 1e-5) / n      rounded to float16
    zero  = clamp(-round(min(w, 0) / scale), 0, n)
    code  = clamp(round(w / scale) + zero, 0, n)

Symmetric, with m = 2^(bits-1): scale = max(max|w|, 1e-5) / (m - 1), zero = m, and
code = clamp(round(w / scale), -m, m - 1) + m. Halves round to even.

A group of zeros gets the smallest scale and codes equal to the zero point, so it stays zero.

Differs: AutoAWQ finds scales in the weights' own precision and stores them in float16. Here they
are rounded to float16 first, and zero points and codes are chosen for the number that readers
will multiply by; each weight then becomes the nearest value that can be stored. AutoAWQ also
leaves zero out of the range of a group that lies on one side of it, and then clips the group to
[0, max - min], whatever it was; with zero in the range it keeps its values. For groups on both
sides of zero the formulas are the same.

Reference: AutoAWQ 0.2.9, ``AwqQuantizer.pseudo_quantize_tensor``. Legend: O output features,
I input features, G groups, g features of a group.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from forge.core.errors import NonFiniteError
from forge.quantize.contract import QuantizedWeight, Scheme

LEAST_RANGE: Final = 1e-5
"""Range of a group below which AutoAWQ does not go; its scale is not zero in float16."""
_BLOCK_ELEMENTS: Final = 1 << 18
"""Elements that are worked on at once; what lies between the steps then stays in the cache."""


def quantize_rtn(weight_OI: npt.NDArray[np.float32], scheme: Scheme) -> QuantizedWeight:
    """Quantize a weight.

    Args:
        weight_OI: float32; bfloat16 and float16 are widened to it without loss.
        scheme: Bits (at most 8) and groups; the group size divides I.

    Returns:
        Codes, scales and zero points.

    Raises:
        NonFiniteError: A weight is NaN or infinite, or a scale is too large for float16.
        ValueError: The group size does not divide I.
    """
    num_out, num_in = weight_OI.shape
    if num_in % scheme.group_size:
        raise ValueError(f"{num_in} columns do not divide into groups of {scheme.group_size}")
    num_groups = num_in // scheme.group_size
    codes_OI = np.empty((num_out, num_in), np.uint8)
    scales_OG = np.empty((num_out, num_groups), np.float16)
    zeros_OG = np.empty((num_out, num_groups), np.uint8)
    rows = max(1, _BLOCK_ELEMENTS // max(num_in, 1))
    quantize = _symmetric if scheme.symmetric else _asymmetric
    for start in range(0, num_out, rows):
        block = slice(start, start + rows)
        values_OGg = weight_OI[block].reshape(-1, num_groups, scheme.group_size)
        codes_OGg, scales_OG[block], zeros_OG[block] = quantize(values_OGg, scheme.bits)
        codes_OI[block] = codes_OGg.reshape(-1, num_in)
    return QuantizedWeight(codes_OI, scales_OG, zeros_OG, scheme)


def dequantize(weight: QuantizedWeight) -> npt.NDArray[np.float32]:
    """Return ``(codes - zeros) * scales`` as float32 [O, I].

    Args:
        weight: The weight.
    """
    num_out, num_in = weight.codes_OI.shape
    size = weight.scheme.group_size
    values_OGg = weight.codes_OI.reshape(num_out, -1, size).astype(np.float32)
    values_OGg -= weight.zeros_OG[..., None]
    values_OGg *= weight.scales_OG[..., None].astype(np.float32)
    return values_OGg.reshape(num_out, num_in)


def _asymmetric(
    values_OGg: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    last = np.float32((1 << bits) - 1)
    high_OG = np.maximum(values_OGg.max(axis=2), 0)
    low_OG = np.minimum(values_OGg.min(axis=2), 0)
    with np.errstate(over="ignore", invalid="ignore"):
        range_OG = np.maximum(high_OG - low_OG, np.float32(LEAST_RANGE))
        scales_OG = (range_OG / last).astype(np.float16)
    _check(scales_OG)
    divisors_OG = scales_OG.astype(np.float32)
    zeros_OG = np.clip(-np.rint(low_OG / divisors_OG), 0, last)
    codes_OGg = values_OGg / divisors_OG[..., None]
    np.rint(codes_OGg, out=codes_OGg)
    codes_OGg += zeros_OG[..., None]
    np.clip(codes_OGg, 0, last, out=codes_OGg)
    return codes_OGg, scales_OG, zeros_OG


def _symmetric(
    values_OGg: npt.NDArray[np.float32], bits: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16], npt.NDArray[np.float32]]:
    middle = np.float32(1 << (bits - 1))
    largest_OG = np.maximum(values_OGg.max(axis=2), -values_OGg.min(axis=2))
    with np.errstate(over="ignore", invalid="ignore"):
        range_OG = np.maximum(largest_OG, np.float32(LEAST_RANGE))
        scales_OG = (range_OG / (middle - 1)).astype(np.float16)
    _check(scales_OG)
    codes_OGg = values_OGg / scales_OG[..., None].astype(np.float32)
    np.rint(codes_OGg, out=codes_OGg)
    codes_OGg += middle
    np.clip(codes_OGg, 0, 2 * middle - 1, out=codes_OGg)
    return codes_OGg, scales_OG, np.full(scales_OG.shape, middle, np.float32)


def _check(scales_OG: npt.NDArray[np.float16]) -> None:
    # NaN and infinity survive into a group's extremes and from there into its scale.
    if not np.isfinite(scales_OG).all():
        raise NonFiniteError(
            "A weight is NaN, infinite, or so large that its group's scale is beyond float16."
        )
