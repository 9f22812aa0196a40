"""What the spectral methods do with shapes and ranks that random rectangles do not have."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from forge.kernels import blas
from forge.merge.contract import MethodCall, TensorStatistics
from tests.merge.operands import Array, Result
from tests.reference import methods as reference

METHODS = ("tsv_m", "iso_c", "iso_cts")
FRACTION = {"common_space_fraction": 0.8}


def merged(
    method: str,
    arrays: Sequence[Array],
    *,
    depth: float | None = 0.5,
    weights: Sequence[float] | None = None,
    dtype: str = "F64",
    values: Mapping[str, float | str] | None = None,
) -> tuple[Array, TensorStatistics]:
    count = len(arrays) - 1
    call = MethodCall(
        {"lambda": 1.0, "outside_layers": "mean", **FRACTION, **(values or {})},
        tuple({"weight": weight} for weight in weights or [1.0] * count),
        depth=depth,
    )
    result = Result(list(arrays), has_base=True, dtype=dtype)
    module = importlib.import_module(f"forge.merge.methods.{method}")
    statistics: TensorStatistics = module.merge(result.operands, call)
    return result.values(), statistics


def models(shape: tuple[int, ...], count: int, *, rank: int | None = None) -> list[Array]:
    """A base of zeros, so that nothing but task vectors is compared, and fine-tunes."""
    generator = np.random.default_rng([3, count, *shape])
    if rank is None:
        return [np.zeros(shape), *(generator.standard_normal(shape) for _ in range(count))]
    rows, columns = shape
    parts = [(generator.standard_normal((rows, rank)), generator.standard_normal((rank, columns)))
             for _ in range(count)]  # fmt: skip
    return [np.zeros(shape), *(left @ right for left, right in parts)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(64, 64), (40, 300), (700, 3), (3, 700), (2, 2)], ids=str)
def test_any_orientation_equals_the_decompositions(method: str, shape: tuple[int, int]) -> None:
    arrays = models(shape, 2)
    values, statistics = merged(method, arrays, weights=[1.0, 0.6])
    expected = getattr(reference, method)(arrays[0], arrays[1:], weights=[1.0, 0.6])
    assert statistics.fallback is None
    # The least singular value of a square is a hundredth of the greatest, and is squared.
    assert np.abs(values - expected).max() <= 1e-9 * np.abs(expected).max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(48, 30), (30, 48)], ids=str)
def test_low_rank_gains_no_direction(method: str, shape: tuple[int, int]) -> None:
    """Task vectors of adapters: nothing leaves the space that their columns and rows span."""
    arrays = models(shape, 2, rank=4)
    values, _ = merged(method, arrays)
    expected = getattr(reference, method)(arrays[0], arrays[1:], weights=[1.0, 1.0])
    assert np.abs(values - expected).max() <= 1e-7 * np.abs(expected).max()
    assert np.linalg.matrix_rank(values, tol=1e-6) <= 8
    columns = np.linalg.svd(np.concatenate(arrays[1:], axis=1))[0][:, :8]
    assert np.abs(values - columns @ (columns.T @ values)).max() <= 1e-6


def test_two_copies_count_once_in_tsv_m() -> None:
    tune = models((30, 20), 1)[1]
    values, _ = merged("tsv_m", [np.zeros((30, 20)), tune, tune])
    u, s, vt = np.linalg.svd(tune, full_matrices=False)
    np.testing.assert_allclose(values, (u[:, :10] * s[:10]) @ vt[:10], atol=1e-9)


@pytest.mark.parametrize("method", ["tsv_m", "iso_c"])
def test_one_model_is_what_the_formula_leaves(method: str) -> None:
    tune = models((24, 24), 1)[1]
    values, _ = merged(method, [np.zeros((24, 24)), tune])
    u, s, vt = np.linalg.svd(tune)
    expected = tune if method == "tsv_m" else s.mean() * u @ vt
    np.testing.assert_allclose(values, expected, atol=1e-9)


def test_iso_c_has_an_even_spectrum() -> None:
    arrays = models((60, 45), 3)
    values, statistics = merged("iso_c", arrays)
    spectrum = np.linalg.svd(values, compute_uv=False)
    total = np.linalg.svd(np.sum(arrays, axis=0), compute_uv=False)
    np.testing.assert_allclose(spectrum, total.mean(), rtol=1e-9)
    assert statistics.notes["singular_value"] == pytest.approx(total.mean())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "depth", "reason"),
    [
        ((40,), 0.5, "no matrix"),
        ((2, 3, 4), 0.5, "no matrix"),
        ((40, 8), None, "outside the layers"),
    ],
    ids=str,
)
def test_the_rest_is_the_mean(
    method: str, shape: tuple[int, ...], depth: float | None, reason: str
) -> None:
    arrays = models(shape, 3)
    values, statistics = merged(method, arrays, depth=depth, weights=[1.0, 2.0, 0.5])
    expected = (arrays[1] + 2 * arrays[2] + 0.5 * arrays[3]) / 3
    np.testing.assert_allclose(values, expected, atol=1e-15)
    assert statistics.fallback == f"mean: {reason}"


@pytest.mark.parametrize("method", METHODS)
def test_outside_layers_may_be_spectral(method: str) -> None:
    arrays = models((40, 8), 2)
    inside, _ = merged(method, arrays)
    outside, _ = merged(method, arrays, depth=None, values={"outside_layers": "spectral"})
    np.testing.assert_array_equal(inside, outside)


@pytest.mark.parametrize("method", METHODS)
def test_unchanged_models_leave_the_base(method: str) -> None:
    base = models((20, 12), 1)[1]
    values, statistics = merged(method, [base, base, base])
    np.testing.assert_array_equal(values, base)
    assert not statistics.bad_output


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_is_reported_and_stays_where_it_is(method: str) -> None:
    arrays = models((20, 12), 2)
    arrays[2][3, 4] = np.nan
    values, statistics = merged(method, arrays)
    assert statistics.bad_inputs == (False, False, True)
    assert statistics.fallback == "mean: a NaN or an infinity"
    assert np.isnan(values).sum() == 1


def test_pieces_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The long side is read and written in pieces; their size changes nothing but last digits."""
    from forge.merge import spectral

    for shape in ((90, 13), (13, 90)):
        arrays = models(shape, 2)
        for method in METHODS:
            whole, _ = merged(method, arrays)
            monkeypatch.setattr(spectral, "CHUNK", 13 * 7)
            monkeypatch.setattr(spectral, "ROWS", 1)
            pieces, _ = merged(method, arrays)
            monkeypatch.undo()
            np.testing.assert_allclose(pieces, whole, atol=1e-10)


def test_blas_is_held_to_one_thread() -> None:
    before = blas.num_threads()
    with blas.one_thread():
        assert set(blas.num_threads()) <= {1}
    assert blas.num_threads() == before
