"""A linear layer's weight as it lies in its file: bytes, an element type and a shape.

Layouts and methods read a weight straight from the mapped file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

KINDS: Final = {"BF16": 0, "F16": 1, "F32": 2}
"""Element types that quantization kernels read, with the number by which kernels know them."""

_NUMPY: Final = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, slots=True)
class RawWeight:
    """A weight in full precision.

    Attributes:
        data: Its bytes, uint8, contiguous, in rows of input features.
        dtype: ``BF16``, ``F16`` or ``F32``.
        shape_OI: Output and input features.
    """

    data: npt.NDArray[np.uint8]
    dtype: str
    shape_OI: tuple[int, int]

    @classmethod
    def of_file(
        cls, data: npt.NDArray[np.uint8], dtype: str, shape: tuple[int, ...], *, transposed: bool
    ) -> RawWeight:
        """Take a weight from a file.

        Args:
            data: Its bytes.
            dtype: Its element type.
            shape: Its two dimensions in the file.
            transposed: Whether the file holds ``[in, out]``; the weight is then copied.
        """
        rows, columns = shape
        if not transposed:
            return cls(data, dtype, (rows, columns))
        turned = np.ascontiguousarray(data.view(_NUMPY[dtype]).reshape(rows, columns).T)
        return cls(turned.reshape(-1).view(np.uint8), dtype, (columns, rows))

    @property
    def kind(self) -> int:
        """The number of the element type in kernels."""
        return KINDS[self.dtype]

    @property
    def num_elements(self) -> int:
        """Number of weights."""
        return self.shape_OI[0] * self.shape_OI[1]

    @property
    def itemsize(self) -> int:
        """Bytes of one weight."""
        return 4 if self.dtype == "F32" else 2

    @property
    def address(self) -> int:
        """Address of the first byte."""
        return int(self.data.__array_interface__["data"][0])

    def values(self) -> npt.NDArray[np.float32]:
        """Return the values, exact, as float32 [O, I]; a copy."""
        if self.dtype == "BF16":
            bits = self.data.view(np.uint16).astype(np.uint32) << np.uint32(16)
            return bits.view(np.float32).reshape(self.shape_OI)
        return self.data.view(_NUMPY[self.dtype]).astype(np.float32).reshape(self.shape_OI)
