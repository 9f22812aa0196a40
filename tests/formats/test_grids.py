"""The detector of quantized grids: each format is found, and nothing in full precision is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from forge.formats import bnb_4bit
from forge.formats.contract import ScaledCodes
from forge.formats.grids import Grid, grid_of
from forge.formats.numbers import float4_values, float8_values, numbers_of
from tests.factory import bf16_bits, bf16_values

Floats = npt.NDArray[np.float32]
SHAPE = (256, 512)


def _normal(seed: int = 0) -> Floats:
    values = np.random.default_rng(seed).standard_normal(SHAPE) * 0.02
    return values.astype(np.float32)


def _rounded(values: Floats, dtype: str) -> Floats:
    if dtype == "BF16":
        return bf16_values(bf16_bits(values)).reshape(values.shape)
    return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values


def _integers(values: Floats, bits: int, group: int, *, symmetric: bool) -> Floats:
    groups = values.reshape(len(values), -1, group)
    if symmetric:
        step = np.abs(groups).max(axis=-1, keepdims=True) / (2 ** (bits - 1) - 1)
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        codes = np.clip(np.rint(groups / step), low, high)
    else:
        bottom = np.minimum(groups.min(axis=-1, keepdims=True), 0)
        step = (np.maximum(groups.max(axis=-1, keepdims=True), 0) - bottom) / (2**bits - 1)
        zero = np.rint(-bottom / step)
        codes = np.clip(np.rint(groups / step) + zero, 0, 2**bits - 1) - zero
    return (codes * step).reshape(values.shape).astype(np.float32)


def _shifted(values: Floats, group: int) -> Floats:
    """Return four bits as GGUF's K-quants have them: a step and an offset that is no multiple."""
    groups = values.reshape(len(values), -1, group)
    bottom = groups.min(axis=-1, keepdims=True)
    step = (groups.max(axis=-1, keepdims=True) - bottom) / 15
    return (np.rint((groups - bottom) / step) * step + bottom).reshape(values.shape)


def _nearest(values: Floats, table: Floats, block: tuple[int, int], top: float) -> Floats:
    """Round to the nearest of a table times the scale of each block."""
    table = np.unique(table[np.isfinite(table)])
    result = np.empty_like(values)
    for row in range(0, values.shape[0], block[0]):
        for column in range(0, values.shape[1], block[1]):
            part = values[row : row + block[0], column : column + block[1]]
            scale = np.abs(part).max() / top
            at = np.searchsorted((table[1:] + table[:-1]) / 2, part / scale)
            result[row : row + block[0], column : column + block[1]] = table[at] * scale
    return result


def _int8_of_tensor(values: Floats) -> Floats:
    step = np.abs(values).max() / 127
    return (np.rint(values / step) * step).astype(np.float32)


GRIDS: dict[str, tuple[Callable[[Floats], Floats], str, int]] = {
    **{
        f"int{bits} {group} {symmetric}": (
            lambda values, b=bits, g=group, s=symmetric: _integers(values, b, g, symmetric=s),
            f"{bits}-bit", group,
        )
        for bits in (3, 4, 8) for group in (32, 64, 128) for symmetric in (True, False)
    },
    "int4 of rows": (lambda v: _integers(v, 4, 512, symmetric=True), "4-bit codes (integers)", 128),
    "int8 of rows": (lambda v: _integers(v, 8, 512, symmetric=True), "8-bit integers", 512),
    "int8 of the tensor": (_int8_of_tensor, "8-bit integers", 512),
    "Q4_K": (lambda v: _shifted(v, 32), "4-bit codes (integers)", 32),
    "NF4": (lambda v: _nearest(v, bnb_4bit.code_values("nf4"), (1, 64), 1.0),
            "4-bit codes (NF4 or FP4)", 64),
    "NVFP4": (lambda v: _nearest(v, float4_values(), (1, 16), 6.0), "FP4", 16),
    "FP8 of the tensor": (lambda v: _nearest(v, float8_values("F8_E4M3"), SHAPE, 448.0),
                          "FP8", 128),
    "FP8 of rows": (lambda v: _nearest(v, float8_values("F8_E4M3"), (1, 512), 448.0), "FP8", 128),
    "FP8 of blocks": (lambda v: _nearest(v, float8_values("F8_E4M3"), (128, 128), 448.0),
                      "FP8", 128),
    "MXFP8": (lambda v: _nearest(v, float8_values("F8_E4M3"), (1, 32), 448.0), "FP8", 32),
    "E5M2": (lambda v: _nearest(v, float8_values("F8_E5M2"), SHAPE, 57344.0), "FP8", 128),
    "ternary": (lambda v: (np.clip(np.rint(v / 0.015), -1, 1) * 0.013).astype(np.float32),
                "ternary values", 0),
}  # fmt: skip

PLAIN: dict[str, Callable[[Floats], Floats]] = {
    "normal": lambda v: v,
    "small": lambda v: v * np.float32(0.01),
    "uniform": lambda v: np.random.default_rng(1).uniform(-0.02, 0.02, SHAPE),
    "one binade": lambda v: np.random.default_rng(1).uniform(0.5, 1, SHAPE),
    "heavy tails": lambda v: np.random.default_rng(2).standard_t(2, SHAPE) * 0.02,
    "zeros": lambda v: v * 0,
    "constant": lambda v: v * 0 + np.float32(0.5),
    "half pruned": lambda v: v * (np.random.default_rng(3).random(SHAPE) < 0.5),
    "pruned 2 of 4": lambda v: v * np.tile([1, 0, 1, 0], SHAPE[1] // 4),
    "pruned to a tenth": lambda v: v * (np.random.default_rng(3).random(SHAPE) < 0.1),
    "of rank one": lambda v: np.outer(v[:, 0], v[0]),
    "the same rows": lambda v: np.repeat(v[:4], SHAPE[0] // 4, axis=0),
    "averaged with its quantized self": lambda v: (
        0.5 * v + 0.5 * _integers(v, 4, 64, symmetric=True)
    ),
}


def _found(values: npt.ArrayLike, dtype: str = "BF16") -> Grid | None:
    stored = _rounded(np.ascontiguousarray(values, np.float32), dtype)
    return grid_of(stored[:8], stored[:128, 64:96], dtype=dtype)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_found_by_name_and_group(name: str, dtype: str) -> None:
    make, title, group = GRIDS[name]
    found = _found(make(_normal()), dtype)
    assert found is not None
    assert found.name.startswith(title)
    assert found.group == group


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 128])
def test_groups_may_run_down_the_columns(bits: int, group: int) -> None:
    found = _found(_integers(np.ascontiguousarray(_normal().T), bits, group, symmetric=False).T)
    assert found is not None
    assert found.name.startswith(f"{bits}-bit")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", PLAIN)
def test_full_precision_is_left_alone(name: str, dtype: str) -> None:
    assert _found(PLAIN[name](_normal()), dtype) is None


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
@pytest.mark.parametrize("seed", range(20))
def test_no_random_weight_is_taken_for_a_grid(seed: int, dtype: str) -> None:
    scale = 10.0 ** np.random.default_rng(seed).uniform(-5, 1)
    assert _found(_normal(seed) * scale, dtype) is None


def test_what_the_kernels_decode_is_found_too() -> None:
    random = np.random.default_rng(4)
    codes = random.integers(0, 16, SHAPE, dtype=np.uint8)
    scales = random.uniform(0.001, 0.01, (SHAPE[0], SHAPE[1] // 128)).astype(np.float32)
    zeros = np.full(scales.shape, 8, np.uint8)
    bits = numbers_of(ScaledCodes(codes, scales, 128, zeros_OG=zeros, precision="F16"), "BF16")
    found = _found(bf16_values(bits))
    assert found == Grid("4-bit codes (integers)", 128)
