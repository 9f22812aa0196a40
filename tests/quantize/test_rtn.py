"""Round to nearest against an independent float64 loop, and where it differs from AutoAWQ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from forge.core.errors import NonFiniteError
from forge.formats.contract import Scheme
from forge.formats.raw_weight import RawWeight
from forge.quantize.methods.rtn import dequantize, quantize_rtn
from tests.factory import to_bytes

Floats = NDArray[np.float32]


def _weight(seed: int, shape: tuple[int, int] = (6, 64)) -> Floats:
    random = np.random.default_rng(seed)
    spread = np.exp(random.uniform(-12, 4, (shape[0], 1)))
    return (random.standard_normal(shape) * spread + random.normal(0, 0.1 * spread)).astype(
        np.float32
    )


def _reference(group: NDArray[np.float64], scheme: Scheme) -> tuple[list[int], float, int]:
    """Quantize one group in float64, value by value; only the range is in float32, as stated."""
    last = 2**scheme.bits - 1
    low, high = min(0.0, *group.tolist()), max(0.0, *group.tolist())
    if scheme.symmetric:
        middle = 2 ** (scheme.bits - 1)
        largest = np.float32(max(-low, high, 1e-5))
        scale = float(np.float16(largest / np.float32(middle - 1)))
        codes = [round(value / scale) for value in group.tolist()]
        return [min(max(code, -middle), middle - 1) + middle for code in codes], scale, middle
    width = max(np.float32(high) - np.float32(low), np.float32(1e-5))
    scale = float(np.float16(width / np.float32(last)))
    zero = min(max(-round(low / scale), 0), last)
    codes = [min(max(round(value / scale) + zero, 0), last) for value in group.tolist()]
    return codes, scale, zero


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    bits=st.sampled_from((2, 3, 4, 8)),
    group_size=st.sampled_from((8, 16, 64)),
    symmetric=st.booleans(),
)
def test_equals_a_float64_loop(seed: int, bits: int, group_size: int, symmetric: bool) -> None:
    scheme = Scheme(bits, group_size, symmetric=symmetric)
    weight = _weight(seed)
    result = quantize_rtn(weight, scheme)
    assert (result.codes_OI.dtype, result.zeros_OG.dtype) == (np.uint8, np.uint8)
    for row in range(weight.shape[0]):
        for number in range(weight.shape[1] // group_size):
            columns = slice(number * group_size, (number + 1) * group_size)
            group = weight[row, columns].astype(np.float64)
            codes, scale, zero = _reference(group, scheme)
            assert float(result.scales_OG[row, number]) == scale
            # float32's quotient may round across a half that float64's just misses.
            exact = group / scale
            near_half = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < 1e-5
            assert int(result.zeros_OG[row, number]) == zero or near_half.any()
            if int(result.zeros_OG[row, number]) == zero:
                same = result.codes_OI[row, columns] == codes
                assert (same | near_half).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), symmetric=st.booleans())
def test_every_weight_becomes_the_nearest_that_can_be_stored(seed: int, symmetric: bool) -> None:
    weight = _weight(seed)
    result = quantize_rtn(weight, Scheme(4, 32, symmetric=symmetric))
    scales = np.repeat(result.scales_OG.astype(np.float64), 32, axis=1)
    zeros = np.repeat(result.zeros_OG.astype(np.float64), 32, axis=1)
    candidates = (np.arange(16)[:, None, None] - zeros) * scales
    best = np.abs(candidates - weight).min(axis=0)
    errors = np.abs(dequantize(result).astype(np.float64) - weight)
    np.testing.assert_allclose(errors, best, rtol=1e-5, atol=1e-6 * scales.max())


@pytest.mark.parametrize("symmetric", [False, True])
def test_zeros_stay_zeros(symmetric: bool) -> None:
    weight = _weight(3)
    weight[2] = 0
    weight[4, 32:] = 0
    result = quantize_rtn(weight, Scheme(4, 32, symmetric=symmetric))
    assert (result.scales_OG > 0).all()
    again = dequantize(result)
    assert not again[2].any()
    assert not again[4, 32:].any()
    assert again[4, :32].any()


def test_a_group_on_one_side_of_zero_keeps_its_values() -> None:
    weight = np.linspace(1.0, 1.5, 32, dtype=np.float32)[None].repeat(2, axis=0)
    weight[1] *= -1
    result = quantize_rtn(weight, Scheme(4, 32))
    assert np.abs(dequantize(result) - weight).max() <= 0.51 * 1.5 / 15
    assert result.zeros_OG.tolist() == [[0], [15]]


def test_rows_are_independent_of_each_other() -> None:
    weight = _weight(7, (37, 64))
    whole = quantize_rtn(weight, Scheme(4, 16))
    for start in range(0, 37, 5):
        part = quantize_rtn(weight[start : start + 5], Scheme(4, 16))
        np.testing.assert_array_equal(whole.codes_OI[start : start + 5], part.codes_OI)
        np.testing.assert_array_equal(whole.scales_OG[start : start + 5], part.scales_OG)
        np.testing.assert_array_equal(whole.zeros_OG[start : start + 5], part.zeros_OG)
    turned = np.asfortranarray(weight)
    np.testing.assert_array_equal(quantize_rtn(turned, Scheme(4, 16)).codes_OI, whole.codes_OI)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_weight_in_its_file_gives_the_codes_of_its_values(dtype: str, symmetric: bool) -> None:
    data = np.frombuffer(to_bytes(_weight(11), dtype), np.uint8)
    raw = RawWeight(data, dtype, (6, 64))
    scheme = Scheme(4, 32, symmetric=symmetric)
    direct, widened = quantize_rtn(raw, scheme), quantize_rtn(raw.values(), scheme)
    np.testing.assert_array_equal(direct.codes_OI, widened.codes_OI)
    np.testing.assert_array_equal(direct.scales_OG, widened.scales_OG)
    np.testing.assert_array_equal(direct.zeros_OG, widened.zeros_OG)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_refused(value: float, symmetric: bool) -> None:
    weight = _weight(5)
    weight[3, 17] = value
    with pytest.raises(NonFiniteError, match="NaN, infinite, or so large"):
        quantize_rtn(weight, Scheme(4, 32, symmetric=symmetric))


def test_groups_must_divide() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        quantize_rtn(_weight(1), Scheme(4, 48))
