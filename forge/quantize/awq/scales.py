"""Search the scale of a group of linears that read one input.

With x̄ the mean magnitude of an input feature over all tokens, and w̄ the mean over rows of a
weight's magnitude relative to its group's largest, candidates are

    s = x̄^r / (w̄^(1-r) + 1e-4)   or, without duo scaling,   s = x̄^r,   r = 0, 1/20, ..., 19/20

divided by √(max s · min s), and no scale at all. The best one has the least squared error of
the linears' outputs, summed over tokens, when each weight is scaled, rounded and scaled back.
With "no scale at all" among them, no group can come out worse than round-to-nearest.

Differs from AutoAWQ: that candidate; features that no token uses keep their scale and do not
take part in the normalisation; the loss is that of the linears themselves, from statistics,
where AutoAWQ runs the attention or the MLP again for every candidate (``module_search``).

Legend: O output features, I input features, C candidates.

Reference: Lin et al., arXiv 2306.00978, section 3.2; AutoAWQ 0.2.9, ``_compute_best_scale``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from forge.formats.contract import Scheme
from forge.quantize.awq.rounding_loops import scaled_errors
from forge.quantize.awq.statistics import InputStatistics
from forge.quantize.awq.workers import Workers

NUM_RATIOS: Final = 20
TILE_ELEMENTS: Final = 1 << 18
"""Weights that a thread works on at once: with what comes of them, they fit into its cache."""


@dataclass(frozen=True, slots=True)
class ScaleChoice:
    """A group's scale.

    Attributes:
        scale_I: float32, positive.
        ratio: r, or ``None`` for no scale.
        loss: Its squared error of the outputs.
        identity_loss: That of no scale, which is round-to-nearest.
    """

    scale_I: torch.Tensor
    ratio: float | None
    loss: float
    identity_loss: float


def row_tiles(num_rows: int, width: int) -> list[slice]:
    """Cut a weight into tiles of whole rows; the cut depends on its shape alone.

    Args:
        num_rows: Rows of the weight.
        width: Columns.
    """
    size = max(16, TILE_ELEMENTS // width)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def candidate_scales(
    magnitudes_I: torch.Tensor,
    weights: Sequence[torch.Tensor],
    *,
    group_size: int,
    duo_scaling: bool,
    workers: Workers,
) -> list[torch.Tensor]:
    """Return the candidates for r = 0, 1/20, ..., 19/20.

    Args:
        magnitudes_I: Mean magnitudes of the input features.
        weights: float32 [O, I] each.
        group_size: Features of a group.
        duo_scaling: Whether weights count beside activations.
        workers: Threads.

    Returns:
        float32 [I], positive and finite, for each ratio.
    """
    alive_I = magnitudes_I > 0
    mean_I = _relative_magnitudes(weights, group_size, workers) if duo_scaling else None
    scales = []
    for step in range(NUM_RATIOS):
        ratio = step / NUM_RATIOS
        scale_I = magnitudes_I.float() ** ratio
        if mean_I is not None:
            scale_I = scale_I / (mean_I ** (1 - ratio) + 1e-4)
        scale_I = scale_I.clamp(min=1e-4)
        if alive_I.any():
            scale_I = scale_I / torch.sqrt(scale_I[alive_I].max() * scale_I[alive_I].min())
        usable_I = alive_I & torch.isfinite(scale_I) & (scale_I > 0)
        scales.append(torch.where(usable_I, scale_I, torch.ones(())).contiguous())
    return scales


def search_scale(
    weights: Sequence[torch.Tensor],
    inputs: Sequence[InputStatistics | None],
    *,
    scheme: Scheme,
    duo_scaling: bool,
    exact: bool,
    workers: Workers,
) -> ScaleChoice:
    """Find the best scale of a group of linears.

    Args:
        weights: float32 [O, I] each, contiguous.
        inputs: What each of them reads; ``None`` for one that no token reached.
        scheme: Bits and groups.
        duo_scaling: Whether weights count beside activations.
        exact: Whether to judge by exact second moments instead of the sketch.
        workers: Threads.

    Returns:
        The choice.
    """
    identity_I = torch.ones(weights[0].shape[1])
    candidates = [
        *candidate_scales(
            mean_magnitudes(inputs), weights,
            group_size=scheme.group_size, duo_scaling=duo_scaling, workers=workers,
        ),
        identity_I,
    ]  # fmt: skip

    def losses(piece: tuple[int, slice]) -> npt.NDArray[np.float64]:
        number, rows = piece
        statistics = inputs[number]
        if statistics is None:
            return np.zeros(len(candidates))
        tile_RI = weights[number][rows]
        return np.array(
            [
                statistics.errors_of(scaled_errors(tile_RI, scale_I, scheme), exact=exact)
                for scale_I in candidates
            ]
        )

    pieces = [
        (number, rows) for number, weight in enumerate(weights) for rows in row_tiles(*weight.shape)
    ]
    total_C = np.zeros(len(candidates))
    for part_C in workers.map(losses, pieces):
        total_C += part_C
    return choose(candidates, total_C)


def choose(candidates: Sequence[torch.Tensor], losses_C: npt.NDArray[np.float64]) -> ScaleChoice:
    """Take the candidate of least loss; the last one is no scale, and wins ties and NaN.

    Args:
        candidates: float32 [I] each.
        losses_C: Their losses.

    Returns:
        The choice.
    """
    identity = len(candidates) - 1
    finite_C = np.where(np.isfinite(losses_C), losses_C, np.inf)
    best = int(np.argmin(finite_C))
    if finite_C[best] >= finite_C[identity]:
        best = identity
    ratio = None if best == identity else best / NUM_RATIOS
    return ScaleChoice(candidates[best], ratio, float(losses_C[best]), float(losses_C[identity]))


def mean_magnitudes(inputs: Sequence[InputStatistics | None]) -> torch.Tensor:
    """Return the mean magnitude of each input feature over all tokens that the linears read.

    Args:
        inputs: What each linear reads; several may read the same.

    Returns:
        float64 [I].
    """
    different = {id(each): each for each in inputs if each is not None}.values()
    total = torch.stack([each.magnitudes_I for each in different]).sum(0)
    return total / sum(each.num_tokens for each in different)


def _relative_magnitudes(
    weights: Sequence[torch.Tensor], group_size: int, workers: Workers
) -> torch.Tensor:
    def of_tile(tile_RI: torch.Tensor) -> torch.Tensor:
        groups_RGg = tile_RI.abs().view(tile_RI.shape[0], -1, group_size)
        largest_RG1 = groups_RGg.amax(dim=2, keepdim=True) + 1e-6
        return (groups_RGg / largest_RG1).view_as(tile_RI).sum(0, dtype=torch.float64)

    tiles = (weight[rows] for weight in weights for rows in row_tiles(*weight.shape))
    total_I = torch.zeros(weights[0].shape[1], dtype=torch.float64)
    for part_I in workers.map(of_tile, tiles):
        total_I += part_I
    return (total_I / sum(weight.shape[0] for weight in weights)).float()
