"""The compiled loops round as round-to-nearest does, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.formats.contract import QuantizedWeight, Scheme
from forge.quantize.awq.rounding_loops import (
    Rounded,
    feed_back,
    round_into,
    scaled_errors,
    shrunk_errors,
)
from forge.quantize.methods.rtn import dequantize, quantize_rtn


def _weight(rows: int, groups: int, size: int, seed: int) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    weight = generator.standard_t(3, (rows, groups * size)).astype(np.float32) * 0.05
    weight[0, :size] = 0.0
    weight[-1, -size:] = np.abs(weight[-1, -size:]) + 1.0
    weight[rows // 2, :size] = -np.abs(weight[rows // 2, :size]) * 1e-7
    return torch.from_numpy(weight)


def _rounded(weight: torch.Tensor, factors: torch.Tensor, scheme: Scheme) -> Rounded:
    target = Rounded.empty(*weight.shape, scheme.group_size)
    round_into(weight, factors, scheme, target)
    return target


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 5), st.sampled_from([8, 20, 32, 64, 128]),
    st.sampled_from([2, 3, 4, 8]), st.integers(0, 10**6),
)  # fmt: skip
def test_uncut_groups_are_rounded_to_nearest(
    rows: int, groups: int, size: int, bits: int, seed: int
) -> None:
    scheme = Scheme(bits, size)
    weight = _weight(rows, groups, size, seed)
    found = _rounded(weight, torch.ones(rows, groups), scheme)
    expected = quantize_rtn(weight.numpy(), scheme)
    np.testing.assert_array_equal(found.codes_RI.numpy(), expected.codes_OI)
    np.testing.assert_array_equal(found.scales_RG.numpy(), expected.scales_OG)
    np.testing.assert_array_equal(found.zeros_RG.numpy(), expected.zeros_OG)
    np.testing.assert_array_equal(found.errors_RI.numpy(), dequantize(expected) - weight.numpy())


def test_scaled_errors_are_those_of_rounding_the_scaled_weight() -> None:
    scheme = Scheme(4, 32)
    weight = _weight(7, 4, 32, 3)
    scale = torch.exp(torch.randn(128, generator=torch.Generator().manual_seed(1)))
    rounded = dequantize(quantize_rtn((weight * scale).numpy(), scheme))
    expected = rounded * (1 / scale).numpy() - weight.numpy()
    # The loop may fuse the last product and difference, which rounds once instead of twice.
    np.testing.assert_allclose(
        scaled_errors(weight, scale, scheme).numpy(), expected, rtol=0, atol=2e-7
    )


def test_cut_groups_are_clamped_and_then_rounded() -> None:
    scheme = Scheme(4, 32)
    weight = _weight(6, 3, 32, 5)
    factors = torch.tensor([1.0, 0.8, 0.55])
    errors = shrunk_errors(weight, factors, scheme)
    for number, factor in enumerate(factors):
        groups = weight.view(6, 3, 32)
        limit = groups.abs().amax(2, keepdim=True) * factor
        cut = groups.clamp(-limit, limit).reshape(6, 96)
        expected = dequantize(quantize_rtn(cut.numpy(), scheme)) - weight.numpy()
        np.testing.assert_array_equal(
            errors[:, number].transpose(0, 1).reshape(6, 96).numpy(), expected
        )
        whole = _rounded(weight, torch.full((6, 3), float(factor)), scheme)
        np.testing.assert_array_equal(whole.errors_RI.numpy(), expected)


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_error_feedback_equals_the_textbook_loop(rows: int) -> None:
    scheme = Scheme(4, 16)
    weight = _weight(rows, 3, 16, 9)
    generator = torch.Generator().manual_seed(2)
    upper = torch.triu(torch.randn(48, 48, generator=generator) * 0.2, 1) + torch.eye(48)
    target = _rounded(weight, torch.ones(rows, 3), scheme)
    feed_back(weight, upper.contiguous(), scheme, target)

    left = weight.double().clone()
    codes = np.empty((rows, 48), np.uint8)
    scales = target.scales_RG.double()
    zeros = target.zeros_RG.double()
    for column in range(48):
        group = column // 16
        code = torch.round(left[:, column] / scales[:, group]) + zeros[:, group]
        codes[:, column] = code.clamp(0, 15).numpy()
        value = (code.clamp(0, 15) - zeros[:, group]) * scales[:, group]
        error = left[:, column] - value
        left[:, column:] -= error[:, None] * upper[column, column:].double()
    agree = (codes == target.codes_RI.numpy()).mean()
    assert agree > 0.99  # float32 against float64 may differ where a value lies on a border
    quantized = QuantizedWeight(
        target.codes_RI.numpy(), target.scales_RG.numpy(), target.zeros_RG.numpy(), scheme
    )
    np.testing.assert_array_equal(target.errors_RI.numpy(), dequantize(quantized) - weight.numpy())
