"""What a linear layer read during calibration, reduced to what the search needs.

For inputs X [N, I] and an error E [O, I] of a weight, the error of the outputs is

    ||X Eᵀ||² = trace(E G Eᵀ)  with  G = XᵀX,

so tokens are never kept. A sketch stands for G at a fraction of the price: each token is added,
with a random sign, to one of R rows of S, and E[SᵀS] = G whatever the tokens are (a count sketch).
A group's own block of G is exact, and enough to judge what happens inside the group.

Legend: N tokens, I input features, R rows of the sketch, G groups, g features of a group.

Reference: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from forge.quantize.awq.settings import SKETCH_ROWS


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which statistics to keep.

    Attributes:
        group_size: Features of a group.
        full: Whether the second moments of all pairs of features are needed.
    """

    group_size: int
    full: bool


@dataclass(slots=True)
class InputStatistics:
    """Sums over the tokens that a linear layer read.

    Attributes:
        num_tokens: N.
        magnitudes_I: float64, sums of magnitudes.
        sketch_RI: float32, signed sums of tokens.
        grams_Ggg: float32, second moments within each group.
        gram_II: float32, second moments of all pairs, or ``None``.
    """

    num_tokens: int
    magnitudes_I: torch.Tensor
    sketch_RI: torch.Tensor
    grams_Ggg: torch.Tensor
    gram_II: torch.Tensor | None

    def add(self, other: InputStatistics) -> None:
        """Add the sums over other tokens."""
        self.num_tokens += other.num_tokens
        self.magnitudes_I += other.magnitudes_I
        self.sketch_RI += other.sketch_RI
        self.grams_Ggg += other.grams_Ggg
        if self.gram_II is not None and other.gram_II is not None:
            self.gram_II += other.gram_II

    def divide(self, scale_I: torch.Tensor) -> None:
        """Make them those of inputs that were divided by a scale."""
        size = self.grams_Ggg.shape[-1]
        inverse_I = 1.0 / scale_I
        inverse_Gg = inverse_I.view(-1, size)
        self.magnitudes_I *= inverse_I
        self.sketch_RI *= inverse_I
        self.grams_Ggg *= inverse_Gg[:, :, None] * inverse_Gg[:, None, :]
        if self.gram_II is not None:
            self.gram_II *= inverse_I[:, None]
            self.gram_II *= inverse_I

    def errors_of(self, error_OI: torch.Tensor, *, exact: bool) -> float:
        """Return the squared error of a linear layer's outputs, summed over tokens.

        Args:
            error_OI: float32, error of the weight.
            exact: Whether to use ``gram_II`` instead of the sketch.
        """
        if exact:
            assert self.gram_II is not None
            return _dot(error_OI @ self.gram_II, error_OI)
        product_OR = error_OI @ self.sketch_RI.T
        return _dot(product_OR, product_OR)


def measure(
    inputs_NI: torch.Tensor, tokens_N: torch.Tensor, signs: torch.Tensor, wanted: Wanted
) -> InputStatistics:
    """Reduce inputs to statistics.

    Args:
        inputs_NI: float32.
        tokens_N: int64, numbers of the tokens in the calibration set.
        signs: float32, +1 or -1 for every token of the calibration set.
        wanted: Which statistics to keep.

    Returns:
        The sums over these tokens.
    """
    num_tokens, width = inputs_NI.shape
    sketch_RI = torch.zeros(SKETCH_ROWS, width)
    sketch_RI.index_add_(0, tokens_N % SKETCH_ROWS, inputs_NI * signs[tokens_N, None])
    groups_GNg = inputs_NI.view(num_tokens, -1, wanted.group_size).transpose(0, 1)
    return InputStatistics(
        num_tokens,
        inputs_NI.abs().sum(0, dtype=torch.float64),
        sketch_RI,
        torch.bmm(groups_GNg.transpose(1, 2), groups_GNg),
        inputs_NI.T @ inputs_NI if wanted.full else None,
    )


def signs_of(num_tokens: int, seed: int) -> torch.Tensor:
    """Draw the sketch's signs.

    Args:
        num_tokens: Tokens of the calibration set.
        seed: Seed of the draw.

    Returns:
        float32, +1 or -1 for every token.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    bits = generator.integers(0, 2, num_tokens, dtype=np.int8)
    return torch.from_numpy((2 * bits - 1).astype(np.float32))


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    # Row by row in float32, over rows in float64: a sum of a million terms keeps its digits.
    return float(torch.linalg.vecdot(left, right).sum(dtype=torch.float64))
