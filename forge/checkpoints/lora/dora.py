"""DoRA: a LoRA that changes directions, and a trained magnitude for each output.

    V  = W + s·B·A
    W' = m · V / ‖V‖      m [O], the norm over the inputs of each output

The norm is that of the merged matrix, so it is computed here and not stored. Where outputs are
rows, one pass does both. Where they are columns (an embedding [V, D], whose outputs are its D
columns, or a layer stored [I, O]), a first pass sums the squares of all rows.

Reference: Liu et al. 2024, DoRA, arXiv:2402.09353, eq. 5; PEFT 0.21, ``DoraLinearVariant``,
``DoraEmbeddingVariant``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forge.checkpoints.floats import decode
from forge.checkpoints.lora.factors import Doubles, Factors, Product
from forge.checkpoints.lora.rows import Floats, Rows, Step
from forge.checkpoints.source import SafetensorsSource


@dataclass(frozen=True, slots=True)
class Dora:
    """A plain LoRA, and the magnitudes of the result.

    Attributes:
        factors: The LoRA.
        magnitude: Name of m in the adapter.
    """

    factors: Factors
    magnitude: str

    @property
    def names(self) -> tuple[str, ...]:
        """The adapter's tensors that this reads."""
        return (*self.factors.names, self.magnitude)

    def begin(self, original: Rows, adapter: SafetensorsSource) -> Step:
        """Return the step that moves each output to its new direction and magnitude.

        Args:
            original: The tensor before any step.
            adapter: Holds the factors and the magnitudes.
        """
        product = self.factors.product(adapter)
        stored = decode(adapter.read(self.magnitude), adapter.info(self.magnitude).dtype)
        magnitude_O = stored.astype(np.float64)
        if self.factors.transposed:
            with np.errstate(divide="ignore", invalid="ignore"):
                factor_C = magnitude_O / np.sqrt(_column_squares(original, product))

            def scale_columns(block_RC: Floats, begin: int) -> Floats:
                return _narrowed(_total(block_RC, begin, product) * factor_C, block_RC)

            return scale_columns

        def scale_rows(block_RC: Floats, begin: int) -> Floats:
            total_RC = _total(block_RC, begin, product)
            norm_R = np.sqrt(np.einsum("rc,rc->r", total_RC, total_RC))
            with np.errstate(divide="ignore", invalid="ignore"):
                factor_R = magnitude_O[begin : begin + len(block_RC)] / norm_R
                return _narrowed(total_RC * factor_R[:, None], block_RC)

        return scale_rows


def _total(block_RC: Floats, begin: int, product: Product) -> Doubles:
    return block_RC + product.rows(begin, len(block_RC))


def _column_squares(original: Rows, product: Product) -> Doubles:
    squares_C = np.zeros(original.num_columns)
    for begin, block_RC in original.blocks():
        total_RC = _total(block_RC, begin, product)
        squares_C += np.einsum("rc,rc->c", total_RC, total_RC)
    return squares_C


def _narrowed(values_RC: Doubles, like_RC: Floats) -> Floats:
    # A value beyond float32's range becomes an infinity, which the merge reports.
    with np.errstate(over="ignore"):
        return values_RC if like_RC.dtype == np.float64 else values_RC.astype(np.float32)
