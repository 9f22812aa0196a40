"""DELLA's factors equal those of a plain stable ranking, whatever a row looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from forge.kernels.operands import Operands
from forge.merge.contract import Stream
from forge.merge.sparsify import drop_by_rank

DENSITY, EPSILON = 0.5, 0.4999

Rows = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float32]]


def factors_of(x: NDArray[Any], *, by_density: bool, dtype: str) -> NDArray[Any]:
    operands = Operands(
        (np.zeros_like(x).reshape(-1), x.reshape(-1)),
        (dtype,) * 2,
        True,
        x.shape,
        dtype,
        lambda offset, data: None,
    )
    [sparsity] = drop_by_rank(operands, [DENSITY], [EPSILON], [Stream(5, 7)], by_density=by_density)
    assert sparsity.fill is not None
    factors = np.full(x.size, -1, x.dtype)
    rows = max(1, x.shape[0] // 3) * x.shape[1]
    for start in range(0, x.size, rows):
        count = min(rows, x.size - start)
        sparsity.fill(start, count, factors[start : start + count])
    return factors.reshape(x.shape)


def chances_of(x: NDArray[Any]) -> NDArray[Any]:
    """Rank by a stable sort: among equal magnitudes the lowest column ranks highest."""
    width = x.shape[1]
    columns = width - 1 - np.argsort(np.abs(x)[:, ::-1], axis=1, kind="stable")
    lowest = DENSITY - EPSILON if width > 1 else DENSITY
    step = 2 * EPSILON / (width - 1) if width > 1 else 0.0
    by_rank = (lowest + step * np.arange(width)).astype(x.dtype)
    chances = np.empty_like(x)
    np.put_along_axis(chances, columns, np.broadcast_to(by_rank, x.shape), axis=1)
    return chances


def close_together(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """All of one truncated magnitude, beside outliers that spread the row."""
    x = (0x3F800000 + rng.integers(0, 200, shape)).astype(np.uint32).view(np.float32)
    x[:, 0] = 1e30
    x[:, 1:2] = 1e-40
    return x


def special(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    x = rng.standard_normal(shape).astype(np.float32)
    for value in (0, -0.0, np.inf, -1e-45, 3.4e38):
        x[rng.random(shape) < 0.1] = value
    return x


def any_bits(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    x = rng.integers(0, 1 << 32, shape).astype(np.uint32).view(np.float32)
    x[np.isnan(x)] = 0
    return x


KINDS: dict[str, Rows] = {
    "normal": lambda rng, shape: rng.standard_normal(shape).astype(np.float32),
    "close": close_together,
    "descending": lambda rng, shape: np.sort(close_together(rng, shape), axis=1)[:, ::-1].copy(),
    "special": special,
    "zero": lambda rng, shape: np.zeros(shape, np.float32),
    "equal": lambda rng, shape: np.ones(shape, np.float32),
    "any bits": any_bits,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 17, 1000, 1025, 65536, 65537])
def test_factors_follow_the_stable_ranking(kind: str, width: int) -> None:
    shape = (max(1, min(40, (1 << 17) // width)), width)
    x = KINDS[kind](np.random.default_rng(width), shape)
    scaled = factors_of(x, by_density=True, dtype="F32")
    kept = scaled != 0
    assert np.array_equal(scaled[kept], (np.float32(1) / chances_of(x))[kept])
    assert np.array_equal(factors_of(x, by_density=False, dtype="F32"), kept)
    double = x.astype(np.float64)
    wide = factors_of(double, by_density=True, dtype="F64")
    assert np.array_equal(wide[wide != 0], (1 / chances_of(double))[wide != 0])
