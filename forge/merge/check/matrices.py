"""What the methods that work on whole matrices hold in memory, in bytes, for one tensor."""

from __future__ import annotations

import math
from typing import Final

from forge.kernels.operands import CHUNK
from forge.merge.plan import MergeJob

_SPECTRAL: Final = frozenset({"tsv_m", "iso_c", "iso_cts"})
_FACTORS: Final = 6
"""Square matrices beside the Gram matrices while a method decides: vectors, cores, products."""
_RUN: Final = 1024
"""Length of a run along the long side; see ``forge/merge/spectral.py``."""


def working_bytes(job: MergeJob) -> int:
    """Return what one thread holds beside mapped files while it computes a tensor.

    Args:
        job: The tensor.
    """
    if len(job.shape) != 2:
        return 0
    rows, columns = job.shape
    short, long = min(rows, columns), max(rows, columns)
    count = len(job.models)
    if job.method in _SPECTRAL:
        if job.layer is None and job.values.get("outside_layers") == "mean":
            return 0
        pairs = 1 if job.method == "iso_c" else count * (count + 1) // 2 + 2 * count
        blocks = 2 * (count + 1) * min(long, max(_RUN, CHUNK // max(short, 1))) * short
        # A wide result is held whole, because its rows are the columns of what is computed.
        whole = rows * columns if rows < columns else 0
        return 8 * ((pairs + _FACTORS) * short * short + blocks + whole)
    if job.companions and all(item is not None for item in job.companions):
        if job.method == "fisher":
            return 8 * min(CHUNK, rows * columns) * (4 * count + 5)
        side = rows if job.transposed else columns
        return 8 * ((count + 4) * side * side + (count + 5) * math.prod(job.shape))
    return 0
