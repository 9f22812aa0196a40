"""The kernels over packed weights against the sums written out in float64."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
import pytest

from forge.core.errors import IncompatibleError
from forge.kernels.cpu import native
from forge.kernels.cpu.quantized.packed_layout import KINDS, LANES, NUM_ARGUMENTS, TILE_ROWS
from forge.kernels.operands import address_of
from forge.runtime.packed import PackedWeight, lay_out

Doubles = npt.NDArray[np.float64]


def weight_of(
    kind: str, num_out: int, num_in: int, group_size: int, *, seed: int = 0
) -> tuple[PackedWeight, Doubles]:
    """Return random codes, laid out, and the numbers that they stand for."""
    row = KINDS[kind]
    generator = np.random.default_rng(seed)
    codes_OI = generator.integers(0, 1 << row.bits, (num_out, num_in), dtype=np.uint8)
    shape = (num_out, num_in // group_size)
    scales_OG = (generator.random(shape) * 0.02 + 0.001).astype(np.float16).astype(np.float32)
    zeros_OG = generator.integers(0, 1 << row.bits, shape, dtype=np.uint8)
    if row.table:
        values = np.array(row.table, np.float32).astype(np.float64)[codes_OI]
    else:
        values = codes_OI.astype(np.float64) - np.repeat(zeros_OG, group_size, axis=1)
    dense_OI = values * np.repeat(scales_OG.astype(np.float64), group_size, axis=1)
    zeros = None if row.table else zeros_OG
    return lay_out(codes_OI, scales_OG, zeros, kind=kind), dense_OI


def multiply(
    weight: PackedWeight, rows_NI: npt.NDArray[np.float32], *, tile: int, variant: str = ""
) -> npt.NDArray[np.float32]:
    """Call a kernel as the runtime does, for as many whole tiles as there are rows."""
    num_tiles = len(rows_NI) // tile
    num_blocks, num_words, _ = weight.words.shape
    num_groups = weight.scales.shape[1]
    panel = np.ascontiguousarray(rows_NI.reshape(num_tiles, tile, -1).transpose(0, 2, 1))
    sums = panel.reshape(num_tiles, num_groups, -1, tile).sum(2)
    out = np.full((len(rows_NI), num_blocks * LANES), np.nan, np.float32)
    arguments = (ctypes.c_int64 * NUM_ARGUMENTS)(
        0, address_of(weight.words), address_of(weight.scales), address_of(weight.zeros),
        address_of(panel), address_of(sums), address_of(out),
        num_groups, num_words // num_groups, num_blocks, 3, out.strides[0], num_tiles,
    )  # fmt: skip
    kernel = f"quantized.packed_matmul.{weight.kind.name}_{tile}{variant}"
    native.word_kernel(kernel, 1)(ctypes.addressof(arguments))
    return out


CASES = [
    (kind, tile, variant)
    for kind, tiles in (("u4", TILE_ROWS), ("u8", (1, 16)), ("nf4", (1, 16)), ("fp4", (1,)))
    for tile in tiles
    for variant in ("", "_portable")
    if not variant or tile in (1, 4)
]


@pytest.mark.parametrize(("kind", "tile", "variant"), CASES)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_equals_dequantizing_and_multiplying(
    kind: str, tile: int, variant: str, group_size: int
) -> None:
    weight, dense_OI = weight_of(kind, 88, 384, group_size)
    rows_NI = np.random.default_rng(1).standard_normal((2 * tile, 384)).astype(np.float32)
    got = multiply(weight, rows_NI, tile=tile, variant=variant)
    expected = rows_NI.astype(np.float64) @ dense_OI.T
    # Half a unit in the last place for each of 384 terms, if all rounded the same way.
    bound = 384 * 2**-24 * (np.abs(rows_NI.astype(np.float64)) @ np.abs(dense_OI).T + 1)
    assert (np.abs(got[:, :88] - expected) <= bound).all()
    assert (got[:, 88:] == 0).all()


def test_a_wrong_code_is_seen() -> None:
    weight, dense_OI = weight_of("u4", 16, 128, 128)
    weight.words[0, 3, 5] ^= 1 << 8
    got = multiply(weight, np.ones((1, 128), np.float32), tile=1)
    wrong = np.abs(got[0] - dense_OI.sum(1)) > 1e-4
    assert wrong.nonzero()[0].tolist() == [5]


@pytest.mark.parametrize("kind", ["u4", "u8", "nf4"])
def test_expansion_rounds_to_nearest_even(kind: str) -> None:
    weight, dense_OI = weight_of(kind, 40, 192, 64)
    out = np.zeros((192, 48), np.uint16)
    arguments = (ctypes.c_int64 * NUM_ARGUMENTS)(
        0, address_of(weight.words), address_of(weight.scales), address_of(weight.zeros),
        0, 0, address_of(out), 3, weight.words.shape[1] // 3, 3, 2, out.strides[0], 1,
    )  # fmt: skip
    native.word_kernel(f"quantized.packed_matmul.{kind}_bf16", 1)(ctypes.addressof(arguments))
    bits = dense_OI.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    assert (out[:, :40] == rounded.T).all()


def test_last_word_is_filled_when_one_scale_spans_the_row() -> None:
    weight, dense_OI = weight_of("u8", 5, 30, 30)
    assert weight.words.shape == (1, 8, 16)
    rows = np.zeros((1, 32), np.float32)
    rows[0, :30] = np.random.default_rng(0).standard_normal(30)
    got = multiply(weight, rows, tile=1)
    assert got[0, :5] == pytest.approx(rows[0, :30] @ dense_OI.T, rel=1e-5)


def test_groups_that_split_words_are_refused() -> None:
    codes = np.zeros((16, 24), np.uint8)
    with pytest.raises(IncompatibleError, match="do not fill whole words of 8"):
        lay_out(codes, np.ones((16, 2), np.float16), np.zeros((16, 2), np.uint8), kind="u4")


def test_there_is_no_other_kernel() -> None:
    from forge.kernels.cpu.quantized import packed_matmul

    with pytest.raises(AttributeError, match="u4_3"):
        packed_matmul.u4_3  # noqa: B018
