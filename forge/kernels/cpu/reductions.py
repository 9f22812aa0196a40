"""Sums over a block.

The compiler may reorder these sums, because a sum in source order cannot use vector lanes.
``dot`` and ``absolute_sum`` add in float64, so that the order changes the result by 1e-16 of
its size, which no rounding to an output format shows. ``quick_dot`` adds one block in float32:
enough for diagnostics, twice as fast, and never used for what is written.

Imported only to compile.
"""

from __future__ import annotations

import numpy as np

from forge.kernels.cpu.compiler import reordered


@reordered
def dot(x, y, size):
    """Return Σ x·y over ``size`` elements, added in float64."""
    total = 0.0
    for i in range(size):
        total += np.float64(x[i]) * np.float64(y[i])
    return total


@reordered
def quick_dot(x, y, size):
    """Return Σ x·y over ``size`` elements, added in the type of the rows."""
    total = x.dtype.type(0)
    for i in range(size):
        total += x[i] * y[i]
    return np.float64(total)


@reordered
def absolute_sum(x, size):
    """Return Σ |x| over ``size`` elements, added in float64."""
    total = 0.0
    for i in range(size):
        total += np.float64(abs(x[i]))
    return total
