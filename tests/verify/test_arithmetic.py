"""The streamed comparison against whole-array float64 arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.verify import arithmetic
from forge.verify.arithmetic import Sums, compare_floats, count_equal
from tests.factory import from_bytes, to_bytes

DTYPES = ("BF16", "F16", "F32", "F64")


def view(data: bytes) -> memoryview:
    return memoryview(data)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(
        st.tuples(st.floats(-100, 100, width=16), st.floats(-100, 100, width=16)), max_size=40
    ),
    dtype_a=st.sampled_from(DTYPES),
    dtype_b=st.sampled_from(DTYPES),
    piece=st.integers(1, 50),
)
def test_equals_the_whole_arrays(
    values: list[tuple[float, float]], dtype_a: str, dtype_b: str, piece: int
) -> None:
    data_a = to_bytes([a for a, _ in values], dtype_a)
    data_b = to_bytes([b for _, b in values], dtype_b)
    before, arithmetic._PIECE = arithmetic._PIECE, piece  # type: ignore[misc]
    try:
        sums = compare_floats(view(data_a), dtype_a, view(data_b), dtype_b)
    finally:
        arithmetic._PIECE = before  # type: ignore[misc]
    a = from_bytes(data_a, dtype_a, (len(values),)).astype(np.float64)
    b = from_bytes(data_b, dtype_b, (len(values),)).astype(np.float64)
    assert sums.num_elements == len(values)
    assert sums.num_equal == int((a == b).sum())
    assert sums.max_abs == (np.abs(a - b).max() if len(values) else 0.0)
    assert sums.norm_a == pytest.approx(np.linalg.norm(a), rel=1e-12)
    assert sums.norm_b == pytest.approx(np.linalg.norm(b), rel=1e-12)
    assert sums.norm_difference == pytest.approx(np.linalg.norm(a - b), rel=1e-12)
    assert sums.inner == pytest.approx(float((a * b).sum()), rel=1e-9, abs=1e-9)


def test_figures_of_two_known_vectors() -> None:
    a, b = to_bytes([3.0, 0.0, 4.0], "F32"), to_bytes([0.0, 0.0, 4.0], "BF16")
    sums = compare_floats(view(a), "F32", view(b), "BF16")
    assert (sums.norm_a, sums.norm_b, sums.norm_difference) == (5.0, 4.0, 3.0)
    assert sums.relative == pytest.approx(0.6)
    assert sums.cosine == pytest.approx(16 / 20)
    assert sums.max_abs == 3.0
    assert sums.equal_share == pytest.approx(2 / 3)


def test_no_number_is_made_up_for_zero_or_nonfinite_tensors() -> None:
    zero = to_bytes([0.0, 0.0], "F32")
    sums = compare_floats(view(zero), "F32", view(to_bytes([1.0, 0.0], "F32")), "F32")
    assert (sums.relative, sums.cosine) == (None, None)
    bad = to_bytes([math.nan, math.inf, 1.0], "F32")
    sums = compare_floats(view(bad), "F32", view(to_bytes([0.0, 0.0, 1.0], "F32")), "F32")
    assert (sums.num_nonfinite_a, sums.num_nonfinite_b, sums.num_equal) == (2, 0, 1)
    record = sums.as_json()
    assert record["norm_a"] is record["norm_difference"] is record["max_abs"] is None
    assert record["norm_b"] == 1.0


def test_the_same_nonfinite_bytes_are_equal() -> None:
    bad = to_bytes([math.nan, math.inf, 1.0], "F32")
    sums = compare_floats(view(bad), "F32", view(bytes(bad)), "F32")
    assert (sums.num_equal, sums.num_nonfinite_a, sums.max_abs) == (3, 2, 0.0)
    assert sums.norm_difference == 0.0


def test_a_nan_wins_whatever_the_order_of_pieces() -> None:
    one, nan = Sums(max_abs=1.0), Sums(max_abs=math.nan)
    assert math.isnan((one + nan).max_abs)
    assert math.isnan((nan + one).max_abs)


def test_huge_and_tiny_values_neither_overflow_nor_vanish() -> None:
    for scale in (1e30, 1e-30):
        data = to_bytes([3 * scale, 4 * scale], "F32")
        sums = compare_floats(view(data), "F32", view(to_bytes([0.0, 0.0], "F32")), "F32")
        assert sums.norm_a == pytest.approx(5 * scale, rel=1e-6)


def test_types_without_arithmetic_are_counted() -> None:
    a, b = np.array([1, 2, 3, 4], np.int64), np.array([1, 2, 0, 4], np.int64)
    assert count_equal(view(a.tobytes()), view(b.tobytes()), "I64") == 3
    assert count_equal(view(b""), view(b""), "U8") == 0
