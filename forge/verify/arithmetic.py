"""Compare two tensors number by number, in pieces that stay in the cache.

Values are widened to float64 (bfloat16 by a shift of its bits), so differences, sums of
squares and inner products are exact to far more digits than anybody prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.floats import decode
from forge.core.dtypes import DTYPES

_PIECE: Final = 1 << 16
"""Elements: two operands and their difference in float64 take 1.5 MiB."""
_WORDS: Final = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True)
class Sums:
    """What adds up over the pieces of tensors, and over tensors.

    Attributes:
        num_elements: Elements compared.
        num_equal: Those of equal value.
        num_nonfinite_a: NaN and infinities in the first tensor.
        num_nonfinite_b: Those in the second one.
        squares_a: Sum of the first tensor's squares.
        squares_b: Sum of the second one's.
        squares_difference: Sum of the squared differences.
        inner: Inner product of the two.
        max_abs: Largest absolute difference.
    """

    num_elements: int = 0
    num_equal: int = 0
    num_nonfinite_a: int = 0
    num_nonfinite_b: int = 0
    squares_a: float = 0.0
    squares_b: float = 0.0
    squares_difference: float = 0.0
    inner: float = 0.0
    max_abs: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.num_elements + other.num_elements,
            self.num_equal + other.num_equal,
            self.num_nonfinite_a + other.num_nonfinite_a,
            self.num_nonfinite_b + other.num_nonfinite_b,
            self.squares_a + other.squares_a,
            self.squares_b + other.squares_b,
            self.squares_difference + other.squares_difference,
            self.inner + other.inner,
            # A NaN must win, and max() keeps its first argument when the other is one.
            float(np.maximum(self.max_abs, other.max_abs)),
        )

    @property
    def norm_a(self) -> float | None:
        """Euclidean norm of the first tensor; ``None`` when it is not finite."""
        return _root(self.squares_a)

    @property
    def norm_b(self) -> float | None:
        """Euclidean norm of the second tensor; ``None`` when it is not finite."""
        return _root(self.squares_b)

    @property
    def norm_difference(self) -> float | None:
        """Euclidean norm of the difference; ``None`` when it is not finite."""
        return _root(self.squares_difference)

    @property
    def relative(self) -> float | None:
        """Norm of the difference relative to the first tensor's; ``None`` without a norm."""
        norm, difference = self.norm_a, self.norm_difference
        return None if not norm or difference is None else difference / norm

    @property
    def cosine(self) -> float | None:
        """Cosine between the two; ``None`` when one is zero or not finite."""
        a, b = self.norm_a, self.norm_b
        if not a or not b or not math.isfinite(self.inner):
            return None
        return max(-1.0, min(1.0, self.inner / a / b))

    @property
    def equal_share(self) -> float:
        """Share of elements of equal value; 1 for empty tensors."""
        return self.num_equal / self.num_elements if self.num_elements else 1.0

    def as_json(self) -> dict[str, object]:
        """Return the figures as plain JSON values; ``None`` where there is no finite number."""
        return {
            "num_elements": self.num_elements,
            "equal_share": self.equal_share,
            "norm_a": self.norm_a,
            "norm_b": self.norm_b,
            "norm_difference": self.norm_difference,
            "relative": self.relative,
            "cosine": self.cosine,
            "max_abs": self.max_abs if math.isfinite(self.max_abs) else None,
            "num_nonfinite_a": self.num_nonfinite_a,
            "num_nonfinite_b": self.num_nonfinite_b,
        }


def compare_floats(a: memoryview, dtype_a: str, b: memoryview, dtype_b: str) -> Sums:
    """Compare two tensors of floats of the same number of elements.

    Args:
        a: Bytes of the first tensor.
        dtype_a: Its type: ``BF16``, ``F16``, ``F32`` or ``F64``.
        b: Bytes of the second tensor.
        dtype_b: Its type.

    Returns:
        The sums. Elements are equal when their values are: 0 equals -0, and no NaN equals
        anything, unless the two tensors have the same bytes there.
    """
    size_a, size_b = DTYPES[dtype_a].itemsize, DTYPES[dtype_b].itemsize
    total = Sums()
    for start in range(0, len(a) // size_a, _PIECE):
        part_a = a[start * size_a : (start + _PIECE) * size_a]
        part_b = b[start * size_b : (start + _PIECE) * size_b]
        if dtype_a == dtype_b and np.array_equal(_words(part_a, size_a), _words(part_b, size_b)):
            total += _same(decode(part_a, dtype_a).astype(np.float64))
        else:
            total += _different(
                decode(part_a, dtype_a).astype(np.float64),
                decode(part_b, dtype_b).astype(np.float64),
            )
    return total


def count_equal(a: memoryview, b: memoryview, dtype: str) -> int:
    """Count the elements whose bytes are equal, for types without arithmetic.

    Args:
        a: Bytes of the first tensor.
        b: Bytes of the second one, as many.
        dtype: Their common type.

    Returns:
        The number of equal elements.
    """
    size = DTYPES[dtype].itemsize
    step = _PIECE * size
    return sum(
        int(np.count_nonzero(_words(a[i : i + step], size) == _words(b[i : i + step], size)))
        for i in range(0, len(a), step)
    )


def _words(data: memoryview, size: int) -> npt.NDArray[np.unsignedinteger]:
    return np.frombuffer(data, _WORDS[size])


def _same(values: npt.NDArray[np.float64]) -> Sums:
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    with np.errstate(invalid="ignore", over="ignore"):
        squares = _inner(values, values)
    # inf - inf is no number, so the difference of equal infinities is not computed: it is 0.
    return Sums(values.size, values.size, bad, bad, squares, squares, 0.0, squares, 0.0)


def _different(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Sums:
    with np.errstate(invalid="ignore", over="ignore"):
        delta = a - b
        return Sums(
            a.size,
            int(np.count_nonzero(a == b)),
            a.size - int(np.count_nonzero(np.isfinite(a))),
            b.size - int(np.count_nonzero(np.isfinite(b))),
            _inner(a, a),
            _inner(b, b),
            _inner(delta, delta),
            _inner(a, b),
            float(np.abs(delta, out=delta).max(initial=0.0)),
        )


def _inner(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    # Not np.dot: BLAS would start threads of its own, and its sum would depend on their number.
    return float(np.einsum("i,i->", a, b))


def _root(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) else None
