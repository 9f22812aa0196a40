"""Reinforced agent merging: keep what one model changed, average what several changed.

An element of a task vector is active when |δ| > epsilon. Where one model is active its δ is
added (times its factor), where several are the mean of their δ is, elsewhere the base stays.

Reference: Reinforced Agent Merging, arXiv 2601.13572.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.operands import Operands
from forge.merge.contract import TensorStatistics

OVERLAP = "ram.overlap"
MERGE = "ram.merge"


def overlap(operands: Operands, epsilon: float) -> tuple[list[int], list[int]]:
    """Count the elements that only this model changed, and those that others changed too."""
    num_inputs = len(operands.inputs)
    counts = np.zeros(num_inputs + 2 * operands.num_models, np.int64)
    run = operands.plan(OVERLAP, rows=3 + num_inputs)
    run.reduce(params=np.array([epsilon]), counts=counts)
    pairs = counts[num_inputs:].tolist()
    return pairs[::2], pairs[1::2]


def merge(operands: Operands, epsilon: float, factors: list[float]) -> TensorStatistics:
    """Write the merged tensor; ``factors`` scale the unique parts of each model."""
    num_inputs = len(operands.inputs)
    stats = np.zeros(operands.num_models)
    counts = np.zeros(num_inputs + 1, np.int64)
    run = operands.plan(MERGE, rows=3 + num_inputs)
    run.write(params=np.array([epsilon, *factors]), stats=stats, counts=counts)
    return TensorStatistics(
        bad_inputs=tuple(bool(flag) for flag in counts[:num_inputs]),
        bad_output=bool(counts[num_inputs]),
        norms=tuple(float(norm) for norm in np.sqrt(stats)),
    )
