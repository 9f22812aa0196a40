"""Codes into numbers: the kernel against float64, and tables of small floats against their rule."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.core.errors import CheckpointError
from forge.formats.contract import ScaledCodes
from forge.formats.numbers import (
    finite_singles,
    float4_values,
    float8_values,
    numbers_of,
    powers_of_two,
    singles,
)
from forge.formats.packing import unpack_stream
from tests.factory import bf16_bits, bf16_values

DTYPES = ("BF16", "F16", "F32")


def _rounded(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float32]:
    if dtype == "BF16":
        return bf16_values(bf16_bits(values))
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values


def _values(found: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.float32]:
    return bf16_values(found) if dtype == "BF16" else found.astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 9), columns=st.integers(1, 200), group=st.integers(1, 130),
    seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES),
    precision=st.sampled_from(DTYPES), kind=st.sampled_from(["codes", "zeros", "table", "order"]),
    magnitude=st.sampled_from([1e-40, 1e-7, 1.0, 1e30]), factor=st.sampled_from([1.0, 0.007874]),
)  # fmt: skip
def test_numbers_are_rounded_step_by_step(
    rows: int, columns: int, group: int, seed: int, dtype: str, precision: str, kind: str,
    magnitude: float, factor: float,
) -> None:  # fmt: skip
    random = np.random.default_rng(seed)
    num_groups = -(-columns // group)
    codes = random.integers(0, 256, (rows, columns), dtype=np.uint8)
    scales = (random.standard_normal((rows, num_groups)) * magnitude).astype(np.float32)
    zeros = random.integers(0, 256, scales.shape, dtype=np.uint8)
    table = random.standard_normal(256).astype(np.float32)
    places = np.arange(columns) // group
    if kind == "order":
        places = random.permutation(places)
    weight = ScaledCodes(
        codes, scales, group,
        zeros_OG=zeros if kind in ("zeros", "order") else None,
        values=table if kind == "table" else None,
        groups_I=places.astype(np.int32) if kind == "order" else None,
        factor=factor, precision=precision,
    )  # fmt: skip
    numbers = table[codes] if kind == "table" else codes.astype(np.float32)
    if kind in ("zeros", "order"):
        numbers = numbers - zeros[:, places]
    with np.errstate(over="ignore", under="ignore"):
        product = (numbers.astype(np.float32) * scales[:, places]).astype(np.float32)
        product = (product * np.float32(factor)).astype(np.float32)
    expected = _rounded(_rounded(product, precision), dtype)
    found = _values(numbers_of(weight, dtype), dtype)
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_shapes_that_do_not_fit_are_a_defect() -> None:
    codes = np.zeros((2, 8), np.uint8)
    for weight in (
        ScaledCodes(codes, np.ones((2, 3), np.float32), 4),
        ScaledCodes(codes, np.ones((3, 2), np.float32), 4),
        ScaledCodes(codes, np.ones((2, 2), np.float32), 4, zeros_OG=np.zeros((2, 1), np.uint8)),
        ScaledCodes(codes, np.ones((2, 2), np.float32), 4, groups_I=np.full(8, 2, np.int32)),
        ScaledCodes(codes, np.ones((2, 2), np.float32), 4, groups_I=np.full(7, 0, np.int32)),
    ):
        with pytest.raises(ValueError, match=r"fit|groups"):
            numbers_of(weight, "BF16")


def test_tables_of_small_floats() -> None:
    e4m3, e5m2 = float8_values("F8_E4M3"), float8_values("F8_E5M2")
    assert e4m3[[0, 1, 8, 0x38, 0x39, 0x7E, 0xFE]].tolist() == [
        0, 2.0**-9, 2.0**-6, 1, 1.125, 448, -448,
    ]  # fmt: skip
    assert np.isnan(e4m3[[0x7F, 0xFF]]).all()
    assert np.isfinite(np.delete(e4m3, [0x7F, 0xFF])).all()
    assert e5m2[[0, 1, 4, 0x3C, 0x3D, 0x7B, 0x7C, 0xFC]].tolist() == [
        0, 2.0**-16, 2.0**-14, 1, 1.25, 57344, np.inf, -np.inf,
    ]  # fmt: skip
    assert np.isnan(e5m2[[0x7D, 0x7E, 0x7F, 0xFF]]).all()
    for table in (e4m3, e5m2):
        assert np.signbit(table[128])
        positive = table[:128][np.isfinite(table[:128])]
        assert (np.diff(positive) > 0).all()
    assert float4_values().tolist() == [
        0,
        0.5,
        1,
        1.5,
        2,
        3,
        4,
        6,
        0,
        -0.5,
        -1,
        -1.5,
        -2,
        -3,
        -4,
        -6,
    ]
    powers = powers_of_two()
    assert powers[[0, 1, 127, 128, 254]].tolist() == [2.0**-127, 2.0**-126, 1, 2, 2.0**127]
    assert np.isnan(powers[255])


def test_scales_of_every_type() -> None:
    assert singles(bf16_bits([1.5, -3.0]), "BF16").tolist() == [1.5, -3.0]
    assert singles(np.array([1.5], np.float16), "F16").tolist() == [1.5]
    assert singles(np.array([126, 128], np.uint8), "U8").tolist() == [0.5, 2.0]
    assert singles(np.array([0x39], np.uint8), "F8_E4M3").tolist() == [1.125]
    with pytest.raises(CheckpointError, match="'s' holds a NaN"):
        finite_singles(np.array([255], np.uint8), "F8_E8M0", what="s")


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 8), rows=st.integers(1, 70), count=st.integers(1, 80),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_stream_of_bits_gives_its_codes_back(bits: int, rows: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count), dtype=np.uint8)
    width = -(-count * bits // 32) * 4
    packed = [
        sum(int(code) << (place * bits) for place, code in enumerate(row)).to_bytes(width, "little")
        for row in codes
    ]
    words = np.frombuffer(b"".join(packed), np.int32).reshape(rows, -1)
    assert np.array_equal(unpack_stream(words, bits, count), codes)
