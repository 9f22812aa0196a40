"""A tensor as rows of numbers, a few at a time, so that no whole copy of it is ever widened.

Everything that an adapter does to a tensor is a step on a block of its rows. A tensor of more than
two axes has the rows of all its matrices, one after the other; a vector has rows of one number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.floats import decode, encode
from forge.core.dtypes import DTYPES

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Step = Callable[[Floats, int], Floats]
"""Given the values of a block [R, C] and the number of its first row, returns the new ones."""

BLOCK_ELEMENTS: Final = 1 << 18
"""Numbers in a block: with its few temporaries it stays in the processor's cache."""


class Rows:
    """The values of a stored tensor.

    Args:
        data: Its bytes.
        dtype: ``BF16``, ``F16``, ``F32`` or ``F64``.
        shape: Its shape.
    """

    def __init__(self, data: memoryview, dtype: str, shape: tuple[int, ...]) -> None:
        self._data = data
        self._dtype = dtype
        self.num_rows, self.num_columns = matrix_shape(shape)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Return the number of each block's first row, and its values [R, C].

        float64 for ``F64``, float32 otherwise; both exact, and not to be written to.
        """
        row_bytes = self.num_columns * DTYPES[self._dtype].itemsize
        step = max(1, BLOCK_ELEMENTS // max(1, self.num_columns))
        for begin in range(0, self.num_rows, step):
            part = self._data[begin * row_bytes : min(begin + step, self.num_rows) * row_bytes]
            yield begin, decode(part, self._dtype).reshape(-1, self.num_columns)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many rows a tensor has, and how long they are.

    Args:
        shape: Its shape.
    """
    if len(shape) < 2:
        return math.prod(shape), 1
    return math.prod(shape[:-1]), shape[-1]


def compute(original: Rows, steps: list[Step], dtype: str) -> memoryview:
    """Return the bytes of a tensor after some steps.

    Args:
        original: What the first step gets.
        steps: What to do, in order; each keeps the shape.
        dtype: Type of the result.

    Returns:
        Its bytes, each value rounded once, to nearest, ties to even.
    """
    storage = encode(np.zeros(1, np.float32), dtype).dtype
    result = np.empty((original.num_rows, original.num_columns), storage)
    for begin, block in original.blocks():
        values = block
        for step in steps:
            values = step(values, begin)
        result[begin : begin + len(block)] = encode(values, dtype)
    return result.reshape(-1).view(np.uint8).data.toreadonly()
