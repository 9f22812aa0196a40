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
from tests.reference.philox import uniforms

DENSITY, EPSILON = 0.5, 0.4999
STREAM = Stream(5, 7)

Rows = Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float32]]


def stored(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the elements as a checkpoint holds them."""
    if dtype == "BF16":
        return (x.view(np.uint32) >> 16).astype(np.uint16).reshape(-1)
    return x.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).reshape(-1)


def factors_of(
    base: NDArray[Any], x: NDArray[Any], *, by_density: bool, dtypes: tuple[str, str]
) -> NDArray[Any]:
    operands = Operands(
        (stored(base, dtypes[0]), stored(x, dtypes[1])),
        dtypes,
        True,
        x.shape,
        dtypes[1],
        lambda offset, data: None,
    )
    [sparsity] = drop_by_rank(operands, [DENSITY], [EPSILON], [STREAM], by_density=by_density)
    assert sparsity.fill is not None
    factors = np.full(x.size, -1, operands.compute)
    rows = max(1, x.shape[0] // 3) * x.shape[1]
    for start in range(0, x.size, rows):
        count = min(rows, x.size - start)
        sparsity.fill(start, count, factors[start : start + count])
    return factors.reshape(x.shape)


def chances_of(delta: NDArray[Any]) -> NDArray[Any]:
    """Rank by a stable sort: among equal magnitudes the lowest column ranks highest."""
    width = delta.shape[1]
    columns = width - 1 - np.argsort(np.abs(delta)[:, ::-1], axis=1, kind="stable")
    lowest = DENSITY - EPSILON if width > 1 else DENSITY
    step = 2 * EPSILON / (width - 1) if width > 1 else 0.0
    by_rank = (lowest + step * np.arange(width)).astype(delta.dtype)
    chances = np.empty_like(delta)
    np.put_along_axis(chances, columns, np.broadcast_to(by_rank, delta.shape), axis=1)
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


def tiny(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Subnormals from the least on, so that the buckets begin at no magnitude at all."""
    x = rng.integers(0, 1 << rng.integers(1, 24, shape)).astype(np.uint32).view(np.float32)
    x[:, -1] = 1e-45
    return x


def on_a_grid(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Multiples of few powers of two, as differences of 16-bit numbers are."""
    step = np.exp2(-rng.integers(10, 20, shape)).astype(np.float32)
    return np.rint(rng.standard_normal(shape) * 0.002 / step).astype(np.float32) * step


KINDS: dict[str, Rows] = {
    "normal": lambda rng, shape: rng.standard_normal(shape).astype(np.float32),
    "close": close_together,
    "descending": lambda rng, shape: np.sort(close_together(rng, shape), axis=1)[:, ::-1].copy(),
    "special": special,
    "zero": lambda rng, shape: np.zeros(shape, np.float32),
    "equal": lambda rng, shape: np.ones(shape, np.float32),
    "any bits": any_bits,
    "tiny": tiny,
    "grid": on_a_grid,
}


def check(base: NDArray[Any], x: NDArray[Any], dtypes: tuple[str, str]) -> None:
    """Compare the factors of rows, which the formats hold exactly, with those of the ranking."""
    p = chances_of(x - base)
    kept = uniforms(x.size, key=STREAM.key, stream=STREAM.stream).reshape(x.shape) < p
    expected = np.where(kept, 1 / p, 0)
    assert np.array_equal(factors_of(base, x, by_density=True, dtypes=dtypes), expected)
    assert np.array_equal(factors_of(base, x, by_density=False, dtypes=dtypes), kept)


def shape_of(width: int) -> tuple[int, int]:
    return max(1, min(40, (1 << 17) // width)), width


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 17, 1000, 1025, 32767, 32768, 65504, 65505, 65537])
def test_factors_follow_the_stable_ranking(kind: str, width: int) -> None:
    x = KINDS[kind](np.random.default_rng(width), shape_of(width))
    check(np.zeros_like(x), x, ("F32", "F32"))
    if width < 2000:
        double = x.astype(np.float64)
        check(np.zeros_like(double), double, ("F64", "F64"))


def rounded(x: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Cut to what a format of 16 bits holds."""
    if dtype == "F16":
        return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1, 2, 17, 992, 1000, 1025, 32767, 32768, 65504, 65505])
@pytest.mark.parametrize("dtypes", [("BF16", "BF16"), ("F16", "F16"), ("BF16", "F16")])
def test_factors_of_short_formats_follow_it(kind: str, width: int, dtypes: tuple[str, str]) -> None:
    rng = np.random.default_rng(width)
    x = rounded(KINDS[kind](rng, shape_of(width)), dtypes[1])
    check(np.zeros_like(x), x, dtypes)
    base = rounded(rng.standard_normal(x.shape, np.float32) * np.float32(0.02), dtypes[0])
    moved = base + rng.standard_normal(x.shape, np.float32) * np.float32(0.002)
    check(base, rounded(moved, dtypes[1]), dtypes)
