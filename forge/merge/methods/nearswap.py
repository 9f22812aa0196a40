"""Nearswap: take the other model where it is near the base, and a step of t towards it elsewhere.

    y = base + clamp(t/|δ|, 0, 1)·δ

Reference: alchemonaut, QuartetAnemoi-70B-t0.0001 (model card).
"""

from __future__ import annotations

import math

import numpy as np

from forge.kernels.operands import Operands
from forge.merge.contract import MethodCall, TensorStatistics


def merge(operands: Operands, call: MethodCall) -> TensorStatistics:
    """Merge one tensor; globally ``t``."""
    stats = np.zeros(1)
    counts = np.zeros(4, np.int64)
    run = operands.plan("nearswap.merge", rows=5)
    run.write(params=np.array([call.number("t")]), stats=stats, counts=counts)
    return TensorStatistics(
        bad_inputs=(bool(counts[0]), bool(counts[1])),
        bad_output=bool(counts[2]),
        norms=(math.sqrt(stats[0]),),
        notes={"taken_share": float(counts[3]) / max(operands.numel, 1)},
    )
