"""What adapters do with vectors and rows: IA³, trained biases of factors, trained tokens.

    IA³            W' = l ∘ W     l [O, 1] scales outputs (and the bias), [1, I] inputs
    bias of B      b' = b + s·c
    token rows     W'[t] = the trained row, for each trained token t

Reference: Liu et al. 2022, (IA)³, arXiv:2205.05638; PEFT 0.21, ``peft.tuners.ia3.layer``,
``peft.tuners.trainable_tokens.layer``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forge.checkpoints.floats import decode
from forge.checkpoints.lora.rows import Floats, Rows, Step
from forge.checkpoints.source import SafetensorsSource


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """IA³ on a weight or a bias.

    Attributes:
        vector: Name of l in the adapter.
        by_rows: Whether it has a number for each row of the stored tensor, else for each column.
    """

    vector: str
    by_rows: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The adapter's tensors that this reads."""
        return (self.vector,)

    def begin(self, original: Rows, adapter: SafetensorsSource) -> Step:
        """Return the step that scales.

        Args:
            original: The tensor before any step.
            adapter: Holds the vector.
        """
        vector = decode(adapter.read(self.vector), adapter.info(self.vector).dtype)

        def step(block_RC: Floats, begin: int) -> Floats:
            factor = vector[begin : begin + len(block_RC), None] if self.by_rows else vector
            scaled: Floats = block_RC * factor.astype(block_RC.dtype)
            return scaled

        return step


@dataclass(frozen=True, slots=True)
class AddedBias:
    """The bias of a LoRA's second factor, on a layer's bias.

    Attributes:
        bias: Name of c in the adapter.
        scale: s of the formula.
    """

    bias: str
    scale: float

    @property
    def names(self) -> tuple[str, ...]:
        """The adapter's tensors that this reads."""
        return (self.bias,)

    def begin(self, original: Rows, adapter: SafetensorsSource) -> Step:
        """Return the step that adds the scaled bias.

        Args:
            original: The tensor before any step.
            adapter: Holds the bias.
        """
        stored = decode(adapter.read(self.bias), adapter.info(self.bias).dtype)
        added_R = stored.astype(np.float64) * self.scale

        def step(block_RC: Floats, begin: int) -> Floats:
            part_R1 = added_R[begin : begin + len(block_RC), None]
            total: Floats = block_RC + part_R1.astype(block_RC.dtype)
            return total

        return step


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of an embedding that were trained alone.

    Attributes:
        rows: Name of the rows in the adapter.
        tokens: Which they are, in their order; each once.
    """

    rows: str
    tokens: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The adapter's tensors that this reads."""
        return (self.rows,)

    def begin(self, original: Rows, adapter: SafetensorsSource) -> Step:
        """Return the step that puts the rows in.

        Args:
            original: The tensor before any step.
            adapter: Holds the rows.
        """
        info = adapter.info(self.rows)
        trained_TC = decode(adapter.read(self.rows), info.dtype).reshape(info.shape)
        tokens_T = np.array(self.tokens)

        def step(block_RC: Floats, begin: int) -> Floats:
            inside_T = (tokens_T >= begin) & (tokens_T < begin + len(block_RC))
            if not inside_T.any():
                return block_RC
            replaced = block_RC.copy()
            replaced[tokens_T[inside_T] - begin] = trained_TC[inside_T]
            return replaced

        return step
