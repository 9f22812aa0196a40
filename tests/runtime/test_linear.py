"""The layer: any number of rows, any activation type, any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forge.core.errors import IncompatibleError
from forge.runtime import linear, team
from forge.runtime.linear import QuantizedLinear
from tests.kernels.test_packed_matmul import weight_of


def layer_of(
    kind: str = "u4", num_out: int = 200, num_in: int = 256, group: int = 64, *, bias: bool = False
) -> tuple[QuantizedLinear, torch.Tensor]:
    weight, dense_OI = weight_of(kind, num_out, num_in, group)
    layer = QuantizedLinear(num_in, num_out, bias=bias)
    layer.fill(weight)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias, generator=torch.Generator().manual_seed(3))
    return layer, torch.from_numpy(dense_OI)


def rows_of(count: int, num_in: int = 256) -> torch.Tensor:
    return torch.randn(count, num_in, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 40, 150])
def test_any_number_of_rows(count: int) -> None:
    layer, dense_OI = layer_of()
    x = rows_of(count)
    y = layer(x)
    assert y.shape == (count, 200)
    torch.testing.assert_close(y.double(), x.double() @ dense_OI.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-10)],
)
@pytest.mark.parametrize("count", [1, 20])
def test_activations_are_not_rounded_further(
    dtype: torch.dtype, tolerance: float, count: int
) -> None:
    layer, dense_OI = layer_of(bias=True)
    assert layer.bias is not None
    layer.bias.data.zero_()
    layer = layer.to(dtype)
    x = rows_of(count).to(dtype)
    expected = x.double() @ dense_OI.T
    y = layer(x)
    assert y.dtype == dtype
    # One rounding of the result, and what float32 sums lose.
    error = (y.double() - expected).abs()
    assert (error <= tolerance * expected.abs() + 2e-5).all()


def test_shape_and_bias() -> None:
    layer, dense_OI = layer_of(bias=True)
    assert layer.bias is not None
    x = rows_of(6).view(2, 3, 256)
    expected = x.double() @ dense_OI.T + layer.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-4)
    assert layer(x[:, :0]).shape == (2, 0, 200)
    assert layer(x.transpose(0, 1)).shape == (3, 2, 200)


@pytest.mark.parametrize(
    ("num_out", "num_in", "group"), [(1, 32, 32), (17, 96, 32), (15, 384, 128)]
)
def test_odd_shapes(num_out: int, num_in: int, group: int) -> None:
    layer, dense_OI = layer_of("u4", num_out, num_in, group)
    x = rows_of(3, num_in)
    torch.testing.assert_close(layer(x).double(), x.double() @ dense_OI.T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [1, 40])
def test_bits_do_not_depend_on_threads(count: int) -> None:
    layer, _ = layer_of(num_out=1000)
    x = rows_of(count)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_pool_serves_where_there_is_no_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = layer_of(num_out=1000)
    x = rows_of(3)
    expected = layer(x)
    monkeypatch.setattr(team, "_openmp", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(layer(x), expected)


def test_panels_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = layer_of()
    x = rows_of(100)
    expected = layer(x)
    monkeypatch.setattr(linear, "_PANEL_BYTES", 1)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("kind", ["u4", "u8", "nf4"])
def test_slices_in_bfloat16(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_multiplies_tiles", lambda: True)
    monkeypatch.setattr(linear, "_SLICE", 64)
    layer, dense_OI = layer_of(kind)
    x = rows_of(70).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    # The weight is rounded to bfloat16 as well here.
    expected = x.double() @ dense_OI.bfloat16().double().T
    error = (y.double() - expected).abs()
    assert (error <= 2**-8 * expected.abs() + 1e-3).all()


def test_scales_survive_a_change_of_type() -> None:
    layer, _ = layer_of()
    x = rows_of(2)
    expected = layer(x)
    assert torch.equal(layer.bfloat16()(x), expected)
    assert torch.equal(layer.double()(x), expected)


def test_gradients_are_refused() -> None:
    layer, _ = layer_of()
    with pytest.raises(IncompatibleError, match="has no gradient"):
        layer(rows_of(1).requires_grad_())
    with torch.no_grad():
        layer(rows_of(1).requires_grad_())


def test_nan_stays_in_its_row() -> None:
    layer, _ = layer_of()
    x = rows_of(4)
    clean = layer(x)
    x[1, 7] = np.nan
    y = layer(x)
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2, 3]], clean[[0, 2, 3]])
