"""Choose the codes of a linear whose scale is folded: cut its groups, round, and measure.

Rounding a group whose largest weight is an outlier wastes steps on the space before it. So for
each row and group the largest magnitude is cut to 1, 0.95, ..., 0.55 of itself, and the cut is
kept whose error d = round(cut(w)) - w gives the least dᵀGd, with G the second moments of the
group's inputs over all calibration tokens. Queries and keys are never cut: a softmax follows.

Error feedback (GPTQ) goes on from there with the same scales and zero points: columns are
rounded in order, and each one's error is made up for by those that follow, as far as the inputs
are correlated.

Legend: O output features, R rows of a tile, I input features, G groups, g features of a group,
K cuts.

Reference: AutoAWQ 0.2.9, ``_compute_best_clip``; Frantar et al., arXiv 2210.17323 (GPTQ).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from forge.core.errors import NonFiniteError
from forge.formats.contract import QuantizedWeight, Scheme
from forge.quantize.awq.rounding_loops import Rounded, feed_back, round_into, shrunk_errors
from forge.quantize.awq.scales import row_tiles
from forge.quantize.awq.statistics import InputStatistics
from forge.quantize.awq.workers import Workers

_CUTS: Final = tuple(1 - step / 20 for step in range(10))
_DAMPING: Final = 0.01
"""Share of the mean second moment that is added to each, so that the inverse exists."""


def quantize_linear(
    module: str,
    weight_OI: torch.Tensor,
    inputs: InputStatistics | None,
    *,
    scheme: Scheme,
    cut: bool,
    error_feedback: bool,
    workers: Workers,
) -> tuple[QuantizedWeight, dict[str, object]]:
    """Quantize a linear whose scale is folded.

    Args:
        module: Its name, for messages.
        weight_OI: float32, contiguous.
        inputs: What it reads, after the fold; ``None`` when no token reached it, and it is then
            rounded to nearest.
        scheme: Bits and groups.
        cut: Whether its groups may be cut.
        error_feedback: Whether later columns make up for the errors of earlier ones.
        workers: Threads.

    Returns:
        Codes, and what was measured: ``error``, the relative error of the outputs, and
        ``cut_groups``, the share of groups that were cut.

    Raises:
        NonFiniteError: A scale is beyond float16.
    """
    num_out, width = weight_OI.shape
    rounded = Rounded.empty(num_out, width, scheme.group_size)
    factor_II = None
    if inputs is not None and error_feedback:
        assert inputs.gram_II is not None
        factor_II = feedback_factor(inputs.gram_II)

    def work(rows: slice) -> tuple[int, float, float]:
        tile_RI = weight_OI[rows]
        target = rounded.rows(rows)
        factors_RG = torch.ones(tile_RI.shape[0], width // scheme.group_size)
        if inputs is not None and cut:
            factors_RG = _best_cuts(tile_RI, inputs.grams_Ggg, scheme)
        round_into(tile_RI, factors_RG, scheme, target)
        if factor_II is not None:
            feed_back(tile_RI, factor_II, scheme, target)
        num_cut = int((factors_RG < 1).sum())
        if inputs is None:
            return num_cut, 0.0, 0.0
        return (
            num_cut,
            inputs.errors_of(target.errors_RI, exact=False),
            inputs.errors_of(tile_RI, exact=False),
        )

    num_cut, error, total = 0, 0.0, 0.0
    for part in workers.map(work, row_tiles(num_out, width)):
        num_cut, error, total = num_cut + part[0], error + part[1], total + part[2]
    if not torch.isfinite(rounded.scales_RG).all():
        raise NonFiniteError(
            f"'{module}' has a weight that is NaN, infinite, or so large that its group's scale "
            "is beyond float16. Check the checkpoint."
        )
    measured: dict[str, object] = {"cut_groups": num_cut / rounded.scales_RG.numel()}
    if inputs is not None:
        measured["error"] = float(np.sqrt(error / total)) if total > 0 else 0.0
    return (
        QuantizedWeight(
            rounded.codes_RI.numpy(), rounded.scales_RG.numpy(), rounded.zeros_RG.numpy(), scheme
        ),
        measured,
    )


def feedback_factor(gram_II: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse second moments, rows over their diagonal.

    Args:
        gram_II: float32, second moments of the inputs.

    Returns:
        float32 [I, I].

    Raises:
        NonFiniteError: The moments are so degenerate that damping does not help.
    """
    moments_II = gram_II.double()
    diagonal_I = moments_II.diagonal()
    mean = float(diagonal_I.mean())
    diagonal_I += _DAMPING * (mean if mean > 0 else 1.0)
    lower_II, failed = torch.linalg.cholesky_ex(moments_II)
    if int(failed):
        raise NonFiniteError(
            "The calibration inputs of a linear are too degenerate for error feedback. Use more "
            "or more varied calibration text, or switch 'error_feedback' off."
        )
    inverse_II = torch.cholesky_inverse(lower_II)
    upper_II = torch.linalg.cholesky(inverse_II, upper=True)
    ratio_II: torch.Tensor = upper_II / upper_II.diagonal()[:, None]
    return ratio_II.float().contiguous()


def _best_cuts(tile_RI: torch.Tensor, grams_Ggg: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the best cut of each row and group, float32 [R, G]."""
    cuts_K = torch.tensor(_CUTS)
    best: list[torch.Tensor] = []
    step = max(1, tile_RI.shape[0] // 8)
    # Ten errors a weight: a slice of the tile keeps them in the cache.
    for start in range(0, tile_RI.shape[0], step):
        rows_rI = tile_RI[start : start + step]
        errors_GKRg = shrunk_errors(rows_rI, cuts_K, scheme)
        num_groups, num_cuts, num_rows, size = errors_GKRg.shape
        flat_GXg = errors_GKRg.view(num_groups, -1, size)
        losses_GX: torch.Tensor = torch.linalg.vecdot(torch.bmm(flat_GXg, grams_Ggg), flat_GXg)
        choice_GR = losses_GX.view(num_groups, num_cuts, num_rows).argmin(dim=1)
        best.append(cuts_K[choice_GR].T)
    cuts_RG: torch.Tensor = torch.cat(best).contiguous()
    return cuts_RG
