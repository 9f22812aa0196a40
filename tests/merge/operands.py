"""Build operands for method tests, and read results back as float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forge.kernels.operands import Operands

Array = NDArray[np.float64]

STORAGE = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}


def round_to(values: Array, dtype: str) -> Array:
    """Round float64 values once, to nearest even, to a format; return them as float64."""
    return decode(encode(values, dtype), dtype)


def encode(values: Array, dtype: str) -> NDArray[np.generic]:
    """Round float64 values once, to nearest even, into storage."""
    if dtype != "BF16":
        return values.astype(STORAGE[dtype])
    # Independent of forge: count in units of the last of 8 significant bits, with rint.
    _, exponent = np.frexp(values)
    unit = np.ldexp(1.0, np.maximum(exponent, -125) - 8)
    rounded = np.rint(values / unit) * unit
    return (rounded.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def decode(stored: NDArray[np.generic], dtype: str) -> Array:
    """Widen storage to float64."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


class Result:
    """Operands over arrays, and the output that a method wrote through them."""

    def __init__(
        self,
        arrays: Sequence[Array],
        *,
        has_base: bool,
        dtype: str = "BF16",
        out_dtype: str | None = None,
    ) -> None:
        self.shape = arrays[0].shape
        self.out_dtype = out_dtype or dtype
        itemsize = np.dtype(STORAGE[self.out_dtype]).itemsize
        self._bytes = np.zeros(arrays[0].size * itemsize, np.uint8)
        self._written = np.zeros(len(self._bytes), np.int64)
        self.operands = Operands(
            inputs=tuple(encode(array.reshape(-1), dtype) for array in arrays),
            dtypes=(dtype,) * len(arrays),
            has_base=has_base,
            shape=self.shape,
            out_dtype=self.out_dtype,
            emit=self._emit,
        )

    def _emit(self, offset: int, data: memoryview) -> None:
        self._bytes[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
        self._written[offset : offset + len(data)] += 1

    def stored(self) -> NDArray[np.generic]:
        """Return the output as stored; every byte must have been written exactly once."""
        assert (self._written == 1).all()
        return self._bytes.view(STORAGE[self.out_dtype]).reshape(self.shape)

    def values(self) -> Array:
        """Return the output as float64."""
        return decode(self.stored(), self.out_dtype)


def steps_apart(actual: NDArray[np.uint16], expected: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return how many representable bfloat16 values lie between two arrays, element by element."""

    def ordered(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
        wide = bits.astype(np.int64)
        return np.where(wide & 0x8000, -(wide & 0x7FFF), wide)

    return np.abs(ordered(actual) - ordered(expected))
