"""A threshold found in a window equals the one that sorting finds, whatever the values."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from forge.kernels import selection
from forge.kernels.operands import Operands
from forge.kernels.selection import Bound, Target, _search_windows, task_vector_bounds

NUMEL = (1 << 17) + 700
VALUES = {
    "normal": lambda g: g.standard_normal(NUMEL),
    "few values": lambda g: np.round(g.standard_normal(NUMEL) * 4) / 4,
    "mostly zero": lambda g: g.standard_normal(NUMEL) * (g.random(NUMEL) < 0.3),
    "one value": lambda g: np.full(NUMEL, 0.5),
    "rows of their own scale": lambda g: (
        g.standard_normal(NUMEL) * np.exp2(np.arange(NUMEL) // 700 % 40)
    ),
    "sorted": lambda g: np.sort(g.standard_normal(NUMEL)),
}


def exact_bound(delta: NDArray[np.floating], rank: int) -> Bound:
    bits = np.abs(delta).view(np.uint32 if delta.dtype == np.float32 else np.uint64)
    border = int(np.sort(bits)[::-1][rank - 1])
    return Bound(border, rank - int(np.count_nonzero(bits > border)))


@pytest.mark.parametrize("dtype", ["F32", "F64"])
@pytest.mark.parametrize("name", VALUES)
def test_bounds_are_those_of_a_sort(name: str, dtype: str) -> None:
    real = np.float32 if dtype == "F32" else np.float64
    delta = VALUES[name](np.random.default_rng(3)).astype(real)
    operands = Operands(
        inputs=(np.zeros(NUMEL, real).data.cast("B"), delta.data.cast("B")),
        dtypes=(dtype, dtype), has_base=True, shape=(NUMEL,), out_dtype=dtype,
        emit=lambda offset, data: None,
    )  # fmt: skip
    targets = [Target(0, rank) for rank in (1, 9, NUMEL // 10, NUMEL // 2, NUMEL - 1)]
    expected = [exact_bound(delta, target.rank) for target in targets]
    assert task_vector_bounds(operands, targets) == expected
    found = _search_windows(operands, targets)
    assert all(found[target] == bound for target, bound in zip(targets, expected, strict=True)
               if target in found)  # fmt: skip
    if name == "normal":
        assert set(found) == set(targets), "an ordinary tensor must not need the histograms"


def test_a_sample_that_grows_no_further_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the largest tensors a smaller share is sampled, and more of them is gathered."""
    monkeypatch.setattr(selection, "_MOST_SAMPLED", 256)
    delta = np.random.default_rng(4).standard_normal(NUMEL, np.float32)
    operands = Operands(
        inputs=(np.zeros(NUMEL, np.float32).data.cast("B"), delta.data.cast("B")),
        dtypes=("F32", "F32"), has_base=True, shape=(NUMEL,), out_dtype="F32",
        emit=lambda offset, data: None,
    )  # fmt: skip
    assert selection._sample(operands, [0])[0].size <= 256 + 32
    targets = [Target(0, rank) for rank in (NUMEL // 10, NUMEL // 2, NUMEL - 9)]
    expected = {target: exact_bound(delta, target.rank) for target in targets}
    assert selection._search_windows(operands, targets) == expected


@pytest.mark.parametrize("size", [1, 4096, 4097, 200_001])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("grid", [1, 1 << 25])
def test_an_element_at_a_place_is_that_of_a_sort(size: int, dtype: type, grid: int) -> None:
    bits = (np.random.default_rng(5).integers(0, 1 << 30, size) // grid * grid).astype(dtype)
    in_order = np.sort(bits)
    most = 1 << (30 if dtype is np.int32 else 62)
    for least, greatest in ((0, most), (int(in_order[0]), int(in_order[-1]))):
        for place in {0, size // 3, size - 1}:
            here = in_order[place]
            expected = (here, here, np.count_nonzero(bits < here), np.count_nonzero(bits == here))
            assert selection._around_place(bits, place, least, greatest) == expected
            enough = size // 50
            low, high, below, between = selection._around_place(
                bits, place, least, greatest, enough=enough
            )
            assert low <= here <= high
            assert below == np.count_nonzero(bits < low)
            assert between == np.count_nonzero((bits >= low) & (bits <= high))
            assert between <= enough or low == high
