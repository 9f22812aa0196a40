"""What a fine-tune added to a tensor, as a matrix that is read and never stored twice.

    D = W_tuned - W_base        [O, I], float32; float64 where a side is float64

A singular value decomposition needs D only through products. Both tensors are mapped files, so a
product decodes a block of rows of each, subtracts, and multiplies: what is in memory is the block
and the product. A matrix that is small enough is kept once it has been made.

Every product runs over the same blocks in the same order. With one thread of the matrix library,
as the command line sets it, the result is the same bits however many tensors are at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.lora.rows import Floats, Rows, matrix_shape
from forge.checkpoints.source import TensorSource

Singles = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_KEPT_ELEMENTS: Final = 1 << 25
"""Numbers of a matrix that is kept, 128 MB of them; layers of a 7B model are half of it."""


@dataclass(frozen=True, slots=True)
class Side:
    """A tensor of a model.

    Attributes:
        source: The model.
        name: The tensor.
    """

    source: TensorSource
    name: str

    def rows(self) -> Rows:
        """Return its values in blocks of rows."""
        info = self.source.info(self.name)
        return Rows(self.source.read(self.name), info.dtype, info.shape)


class Delta:
    """A tensor's difference. One thread at a time.

    Args:
        tuned: The fine-tune's tensor.
        base: The base's, of the same shape.

    Attributes:
        shape_OI: Rows and columns of the stored tensor; a vector has rows of one number.
    """

    def __init__(self, tuned: Side, base: Side) -> None:
        self._tuned = tuned
        self._base = base
        self._kept: Singles | None = None
        self.shape_OI = matrix_shape(base.source.info(base.name).shape)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Return the number of each block's first row, and its values [R, I]."""
        if self._kept is not None:
            yield 0, self._kept
            return
        pairs = zip(self._tuned.rows().blocks(), self._base.rows().blocks(), strict=True)
        for (begin, tuned_RI), (_, base_RI) in pairs:
            block: Floats = tuned_RI - base_RI
            yield begin, block

    def keep(self) -> bool:
        """Keep the matrix from now on, if it is small enough.

        Returns:
            Whether it is kept.
        """
        if self._kept is None and self.shape_OI[0] * self.shape_OI[1] <= _KEPT_ELEMENTS:
            kept = np.empty(self.shape_OI, np.float32)
            for begin, block in self.blocks():
                kept[begin : begin + len(block)] = block
            self._kept = kept
        return self._kept is not None

    def squares(self) -> float:
        """Return the sum of all squares, summed in float64: the energy."""
        total = 0.0
        for _, block in self.blocks():
            wide = block.astype(np.float64).reshape(-1)
            total += float(np.einsum("x,x->", wide, wide))
        return total

    def times(self, right_IK: Singles) -> Singles:
        """Return D·X.

        Args:
            right_IK: X [I, K].

        Returns:
            The product [O, K].
        """
        product = np.empty((self.shape_OI[0], right_IK.shape[1]), np.float32)
        for begin, block in self.blocks():
            product[begin : begin + len(block)] = block @ right_IK
        return product

    def transposed_times(self, left_OK: Singles) -> Singles:
        """Return Dᵀ·Y.

        Args:
            left_OK: Y [O, K].

        Returns:
            The product [I, K].
        """
        product = np.zeros((self.shape_OI[1], left_OK.shape[1]), np.float32)
        for begin, block in self.blocks():
            product += block.T @ left_OK[begin : begin + len(block)]
        return product

    def gram(self) -> Doubles:
        """Return D·Dᵀ or Dᵀ·D, whichever is smaller, summed in float64."""
        num_rows, num_columns = self.shape_OI
        if num_rows > num_columns:
            gram = np.zeros((num_columns, num_columns))
            for _, block in self.blocks():
                wide = block.astype(np.float64)
                gram += wide.T @ wide
            return gram
        whole = np.concatenate([block for _, block in self.blocks()]).astype(np.float64)
        product: Doubles = whole @ whole.T
        return product
