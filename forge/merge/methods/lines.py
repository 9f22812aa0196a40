"""LiNeS: task arithmetic whose strength grows linearly with the depth of the layer.

    y = base + (α + β (l-1)/(L-1)) Σ w·δ        in layer l of L
    y = base + α Σ w·δ                          in embeddings, last norm and head

α is 1/Σ w (1 where the weights cancel) and β is 1 - α unless given: the first layer then gets the
mean of the task vectors, the last one their sum. A result of one layer counts as the last.

LiNeS goes with every method that has a `lambda`, because that is what it scales:
`lambda: [α, α + β]` is a ramp over the layers that holds its first value outside them, and `lines`
is `task_arithmetic` with it.

Reference: Wang et al. 2025, LiNeS, arXiv 2410.17146.
Differs: for several models the paper sets α = |Σ δ| / (N |merged δ|), with L1 norms over whole
models; for task arithmetic with equal weights that is 1/Σ w, which is taken for any weights here,
so that no pass over the models precedes the merge. The paper chooses β on validation data; 1 - α is
its rule for a single model.
"""

from __future__ import annotations

import math
from dataclasses import replace

from forge.kernels.operands import Operands
from forge.merge import consensus
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; per model ``weight``, globally ``alpha`` and ``beta``."""
    total = math.fsum(call.of_models("weight"))
    mean = 1.0 / total if total != 0 else 1.0
    alpha = float(call.values.get("alpha", mean))
    beta = float(call.values.get("beta", 1.0 - alpha))
    factor = alpha + beta * (call.depth or 0.0)
    scaled = replace(call, values={"lambda": factor, "normalize": False})
    dense = [consensus.Sparsity()] * operands.num_models
    statistics = consensus.merge_task_vectors(operands, scaled, dense, elect=False)
    return replace(statistics, notes={"factor": factor})
