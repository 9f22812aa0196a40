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

import numpy as np
import numpy.typing as npt

from forge.core.errors import NonFiniteError
from forge.formats.contract import QuantizedWeight, Scheme
from forge.formats.raw_weight import KINDS, RawWeight
from forge.kernels.cpu import native
from forge.kernels.operands import address_of


def quantize_rtn(weight_OI: npt.NDArray[np.float32] | RawWeight, scheme: Scheme) -> QuantizedWeight:
    """Quantize a weight.

    Args:
        weight_OI: float32, or a weight as it lies in its file, which is then read once.
        scheme: Bits (at most 8) and groups; the group size divides I.

    Returns:
        Codes, scales and zero points.

    Raises:
        NonFiniteError: A weight is NaN or infinite, or a scale is too large for float16.
        ValueError: The group size does not divide I.
    """
    if isinstance(weight_OI, RawWeight):
        data: npt.NDArray[np.generic] = weight_OI.data
        kind, (num_out, num_in) = weight_OI.kind, weight_OI.shape_OI
    else:
        data = np.ascontiguousarray(weight_OI, np.float32)
        kind, (num_out, num_in) = KINDS["F32"], weight_OI.shape
    if num_in % scheme.group_size:
        raise ValueError(f"{num_in} columns do not divide into groups of {scheme.group_size}")
    groups = (num_out, num_in // scheme.group_size)
    codes_OI = np.empty((num_out, num_in), np.uint8)
    scales_OG, zeros_OG = np.empty(groups, np.float16), np.empty(groups, np.uint8)
    work, flags = np.empty(scheme.group_size, np.float32), np.zeros(1, np.int64)
    native.word_kernel("quantized.rtn.round_to_nearest", 12)(
        address_of(data), kind, num_out, num_in, scheme.group_size,
        scheme.bits, int(scheme.symmetric),
        address_of(codes_OI), address_of(scales_OG), address_of(zeros_OG),
        address_of(work), address_of(flags),
    )  # fmt: skip
    if flags[0]:
        raise NonFiniteError(
            "A weight is NaN, infinite, or so large that its group's scale is beyond float16."
        )
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
