"""Call the compiled loops of ``forge/kernels/cpu/quantized/awq.py`` on arrays of torch.

Every weight here is float32, contiguous and on the CPU. Legend: R rows of a weight, I input
features, G groups, g features of a group, K factors.
"""

from __future__ import annotations

import torch

from forge.formats.contract import Scheme
from forge.kernels.cpu import native


def scaled_errors(
    weight_RI: torch.Tensor, scale_I: torch.Tensor, scheme: Scheme, *, float32_scales: bool = False
) -> torch.Tensor:
    """Return by how much a weight changes when it is scaled, rounded and scaled back.

    Args:
        weight_RI: float32.
        scale_I: float32, positive.
        scheme: Bits and groups.
        float32_scales: Whether groups' scales are not rounded to float16, as in AutoAWQ's search.

    Returns:
        float32 [R, I]: ``round_to_nearest(weight * scale) / scale - weight``.
    """
    errors_RI = torch.empty_like(weight_RI)
    inverse_I = 1.0 / scale_I
    work = torch.empty(scheme.group_size)
    native.word_kernel("quantized.awq.scaled_errors", 10)(
        _address(weight_RI), *weight_RI.shape, scheme.group_size, scheme.num_codes - 1,
        _address(scale_I), _address(inverse_I), _address(errors_RI), _address(work),
        int(float32_scales),
    )  # fmt: skip
    return errors_RI


def shrunk_errors(weight_RI: torch.Tensor, factors_K: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return by how much a weight changes when its groups are cut and it is rounded.

    Args:
        weight_RI: float32.
        factors_K: float32; of each group, magnitudes beyond a factor of its largest are cut.
        scheme: Bits and groups.

    Returns:
        float32 [G, K, R, g].
    """
    num_rows, width = weight_RI.shape
    num_groups = width // scheme.group_size
    errors = torch.empty(num_groups, len(factors_K), num_rows, scheme.group_size)
    native.word_kernel("quantized.awq.shrunk_errors", 8)(
        _address(weight_RI), num_rows, width, scheme.group_size, scheme.num_codes - 1,
        _address(factors_K), len(factors_K), _address(errors),
    )  # fmt: skip
    return errors


def round_into(
    weight_RI: torch.Tensor, factors_RG: torch.Tensor, scheme: Scheme, target: Rounded
) -> None:
    """Quantize rows whose groups are cut at a factor of their largest magnitude.

    Args:
        weight_RI: float32.
        factors_RG: float32, at most 1.
        scheme: Bits and groups.
        target: Where the rows' codes go.
    """
    native.word_kernel("quantized.awq.codes_of", 10)(
        _address(weight_RI), *weight_RI.shape, scheme.group_size, scheme.num_codes - 1,
        _address(factors_RG), *target.addresses(),
    )  # fmt: skip


def feed_back(
    weight_RI: torch.Tensor, factor_II: torch.Tensor, scheme: Scheme, target: Rounded
) -> None:
    """Choose codes column by column, each making up for the errors of those before it.

    Args:
        weight_RI: float32.
        factor_II: float32; see the loop.
        scheme: Bits and groups.
        target: Its scales and zero points are read, its codes and errors written.
    """
    work = torch.empty(4, weight_RI.shape[1])
    codes, scales, zeros, errors = target.addresses()
    native.word_kernel("quantized.awq.feedback_codes", 11)(
        _address(weight_RI), *weight_RI.shape, scheme.group_size, scheme.num_codes - 1,
        scales, zeros, _address(factor_II), codes, errors, _address(work),
    )  # fmt: skip


class Rounded:
    """Codes, scales, zero points and errors of a weight, or of some of its rows.

    Args:
        codes_RI: uint8.
        scales_RG: float16.
        zeros_RG: uint8.
        errors_RI: float32, the quantized weight minus the weight.
    """

    def __init__(
        self,
        codes_RI: torch.Tensor,
        scales_RG: torch.Tensor,
        zeros_RG: torch.Tensor,
        errors_RI: torch.Tensor,
    ) -> None:
        self.codes_RI = codes_RI
        self.scales_RG = scales_RG
        self.zeros_RG = zeros_RG
        self.errors_RI = errors_RI

    @classmethod
    def empty(cls, num_rows: int, width: int, group_size: int) -> Rounded:
        """Make room for a weight."""
        groups = (num_rows, width // group_size)
        return cls(
            torch.empty(num_rows, width, dtype=torch.uint8),
            torch.empty(groups, dtype=torch.float16),
            torch.empty(groups, dtype=torch.uint8),
            torch.empty(num_rows, width),
        )

    def rows(self, rows: slice) -> Rounded:
        """Return the part of some rows; it shares their memory."""
        return Rounded(
            self.codes_RI[rows], self.scales_RG[rows], self.zeros_RG[rows], self.errors_RI[rows]
        )

    def addresses(self) -> tuple[int, int, int, int]:
        """Return where codes, scales, zero points and errors lie."""
        return (
            _address(self.codes_RI), _address(self.scales_RG), _address(self.zeros_RG),
            _address(self.errors_RI),
        )  # fmt: skip


def _address(tensor: torch.Tensor) -> int:
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    return tensor.data_ptr()
