"""bitsandbytes' formats against float64 and their own definitions; ``tests/oracle`` runs them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.core.errors import NonFiniteError
from forge.formats import bnb_4bit, bnb_int8
from forge.formats.bnb_state import read_state
from forge.formats.contract import Part
from forge.formats.raw_weight import RawWeight
from tests.factory import from_bytes, to_bytes

QuantType = Literal["nf4", "fp4"]
Arrays = dict[str, npt.NDArray[np.generic]]
NUMPY = {"U8": np.uint8, "F32": np.float32, "I8": np.int8}


class Receiver:
    """Collects what a format emits, and holds it to what the format said it would emit."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        self.arrays: Arrays = {
            part.suffix: np.zeros(part.shape, NUMPY[part.dtype]) for part in parts
        }
        self._filled = dict.fromkeys(self.arrays, 0)

    def emit(self, suffix: str, offset: int, data: npt.NDArray[np.generic]) -> None:
        """Take a piece; pieces of a part come one after another."""
        assert offset == self._filled[suffix]
        assert data.dtype == self.arrays[suffix].dtype
        piece = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        target = self.arrays[suffix].reshape(-1).view(np.uint8)
        target[offset : offset + piece.size] = piece
        self._filled[suffix] += piece.size

    def check_full(self) -> None:
        """Check that every byte was emitted once."""
        assert self._filled == {name: array.nbytes for name, array in self.arrays.items()}


def raw(values: npt.ArrayLike, dtype: str = "F32") -> RawWeight:
    """Return a weight of these values, rounded to a type."""
    array = np.asarray(values, np.float32)
    data = np.frombuffer(to_bytes(array, dtype), np.uint8)
    return RawWeight(data, dtype, (array.shape[0], array.shape[1]))


def nearly(values: npt.ArrayLike, dtype: str) -> npt.NDArray[np.float32]:
    """Return values as they are in a type."""
    array = np.asarray(values, np.float32)
    return from_bytes(to_bytes(array, dtype), dtype, array.shape)


def quantized_4bit(weight: RawWeight, quant_type: QuantType, *, double_quant: bool) -> Arrays:
    """Run the format."""
    mean = bnb_4bit.mean_of_blocks(weight) if double_quant else None
    state = bnb_4bit.quant_state(weight.shape_OI, weight.dtype, quant_type=quant_type, mean=mean)
    receiver = Receiver(
        bnb_4bit.parts(
            weight.shape_OI, quant_type=quant_type, double_quant=double_quant, state=state
        )
    )
    bnb_4bit.quantize(
        weight, receiver.emit, quant_type=quant_type, double_quant=double_quant, state=state
    )
    receiver.check_full()
    return receiver.arrays


def quantized_int8(weight: RawWeight) -> Arrays:
    """Run the format."""
    receiver = Receiver(bnb_int8.parts(weight.shape_OI))
    bnb_int8.quantize(weight, receiver.emit)
    receiver.check_full()
    return receiver.arrays


def codes_of(arrays: Mapping[str, npt.NDArray[Any]], count: int) -> npt.NDArray[np.uint8]:
    """Return the codes of a packed weight, one an element, the high nibble first."""
    packed = arrays["weight"].reshape(-1)
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count].astype(np.uint8)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 63), (3, 43), (8, 64), (5, 333)])
def test_every_code_is_the_nearest(
    quant_type: QuantType, dtype: str, shape: tuple[int, int]
) -> None:
    values = np.random.default_rng(1).standard_normal(shape, np.float32)
    arrays = quantized_4bit(raw(values, dtype), quant_type, double_quant=False)
    flat = nearly(values, dtype).reshape(-1).astype(np.float64)
    table = bnb_4bit.code_values(quant_type).astype(np.float64)
    codes = codes_of(arrays, flat.size)
    for number in range(-(-flat.size // 64)):
        block = flat[64 * number : 64 * number + 64]
        largest = np.abs(block).max()
        assert arrays["weight.absmax"][number] == np.float32(largest)
        distance = np.abs(block[:, None] / largest - table)
        chosen = distance[np.arange(block.size), codes[64 * number : 64 * number + 64]]
        assert (chosen <= distance.min(axis=1) + 1e-6).all()


def numbers(arrays: Mapping[str, npt.NDArray[Any]], quant_type: QuantType) -> npt.NDArray[Any]:
    """Return what a weight's parts stand for, in float32."""
    state = read_state(arrays[f"weight.quant_state.bitsandbytes__{quant_type}"].tobytes())
    return bnb_4bit.dequantize(arrays, replace(state, dtype="F32"), "F32")


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 150), seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e4]), double_quant=st.booleans(),
    quant_type=st.sampled_from(["nf4", "fp4"]),
)  # fmt: skip
def test_what_comes_back_is_within_half_a_gap(
    rows: int, columns: int, seed: int, scale: float, double_quant: bool, quant_type: QuantType
) -> None:
    values = np.random.default_rng(seed).standard_normal((rows, columns), np.float32)
    values = values * np.float32(scale)
    arrays = quantized_4bit(raw(values), quant_type, double_quant=double_quant)
    back = numbers(arrays, quant_type)
    gap = np.diff(np.sort(bnb_4bit.code_values(quant_type))).max()
    flat, count = values.reshape(-1), rows * columns
    blocks = -(-count // 64)
    largest = np.array([np.abs(flat[64 * i : 64 * i + 64]).max() for i in range(blocks)])
    bound = largest * gap / 2
    if double_quant:
        # A magnitude comes back within the 8-bit map's widest gap, 0.015, of the magnitudes.
        bound = bound + 0.016 * np.abs(largest - largest.mean()).max()
    error = np.abs(flat - back.reshape(-1))
    assert (error <= np.repeat(bound, 64)[:count] * 1.001 + 1e-38).all()


def test_codes_come_back_as_themselves() -> None:
    for quant_type in ("nf4", "fp4"):
        table = bnb_4bit.code_values(quant_type)
        values = np.tile(table, (3, 4)) * np.float32(0.75)
        arrays = quantized_4bit(raw(values), quant_type, double_quant=False)
        again = numbers(arrays, quant_type)
        assert np.array_equal(again, values)


def test_blocks_of_zeros_stay_zero_and_a_negative_zero_is_a_zero() -> None:
    values = np.zeros((4, 64), np.float32)
    values[1] = -0.0
    values[2, 5] = 1e-39
    for quant_type, zero in (("nf4", 0x77), ("fp4", 0x00)):
        arrays = quantized_4bit(raw(values), quant_type, double_quant=False)
        assert (arrays["weight"][:64] == zero).all()
        assert arrays["weight.absmax"][0] == arrays["weight.absmax"][1] == 0
        assert not np.signbit(np.asarray(arrays["weight.absmax"], np.float32)).any()
        again = numbers(arrays, quant_type)
        assert not again[[0, 1, 3]].any()
    int8 = quantized_int8(raw(values))
    assert not np.asarray(int8["weight"]).any()
    assert not np.asarray(int8["SCB"]).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 68)])
@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_what_is_not_finite_is_refused(bad: float, place: tuple[int, int], dtype: str) -> None:
    values = np.ones((3, 69), np.float32)
    values[place] = bad
    weight = raw(values, dtype)
    with pytest.raises(NonFiniteError, match="NaN or an infinity"):
        quantized_4bit(weight, "nf4", double_quant=False)
    with pytest.raises(NonFiniteError, match="NaN or an infinity"):
        bnb_4bit.mean_of_blocks(weight)
    with pytest.raises(NonFiniteError, match="NaN or an infinity"):
        quantized_int8(weight)


def test_int8_refuses_what_float16_cannot_hold() -> None:
    values = np.ones((2, 5), np.float32)
    values[1, 3] = 65504
    assert quantized_int8(raw(values))["SCB"][1] == 65504
    values[1, 3] = 65536
    with pytest.raises(NonFiniteError, match="65504"):
        quantized_int8(raw(values))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5, 333), (700, 900)])
def test_int8_rows_come_back_within_half_a_step(dtype: str, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(2).standard_normal(shape, np.float32)
    arrays = quantized_int8(raw(values, dtype))
    halves = nearly(values, dtype).astype(np.float16).astype(np.float64)
    largest = np.abs(halves).max(axis=1)
    assert np.array_equal(arrays["SCB"], largest.astype(np.float32))
    expected = np.rint(halves / largest[:, None] * 127)
    assert np.abs(np.asarray(arrays["weight"], np.float64) - expected).max() <= 1
    back = bnb_int8.dequantize(arrays, "F32").astype(np.float64)
    assert (np.abs(back - halves) <= largest[:, None] / 127 * 0.501 + 1e-7).all()


def test_the_state_says_what_loaders_ask_for() -> None:
    weight = raw(np.random.default_rng(3).standard_normal((5, 70)), "F16")
    arrays = quantized_4bit(weight, "fp4", double_quant=True)
    state = json.loads(np.asarray(arrays["weight.quant_state.bitsandbytes__fp4"]).tobytes())
    offset = state.pop("nested_offset")
    assert state == {
        "quant_type": "fp4", "blocksize": 64, "dtype": "float16", "shape": [5, 70],
        "nested_blocksize": 256, "nested_dtype": "float32",
    }  # fmt: skip
    assert np.float32(offset) == offset == bnb_4bit.mean_of_blocks(weight)


def test_the_mean_is_a_float64_mean_within_rounding() -> None:
    for shape in ((1, 1), (3, 100), (500, 700)):
        values = np.random.default_rng(4).standard_normal(shape, np.float32)
        flat = np.abs(values.reshape(-1))
        largest = [flat[i : i + 64].max() for i in range(0, flat.size, 64)]
        expected = np.mean(np.array(largest, np.float64))
        assert abs(bnb_4bit.mean_of_blocks(raw(values)) - expected) <= 1e-6 * expected


def test_a_transposed_weight_is_turned_before_it_is_quantized() -> None:
    values = np.random.default_rng(5).standard_normal((70, 5), np.float32)
    for dtype in ("BF16", "F16", "F32"):
        data = np.frombuffer(to_bytes(values, dtype), np.uint8)
        turned = RawWeight.of_file(data, dtype, (70, 5), transposed=True)
        assert turned.shape_OI == (5, 70)
        assert np.array_equal(turned.values(), nearly(values, dtype).T)
        assert np.array_equal(turned.data, raw(values.T, dtype).data)
