"""The loops of Arcee Fusion: importance by KL divergence, a threshold by quartiles.

Importance is |δ|·KL(row), the divergence of softmax(model) from softmax(base) along the last
axis. Small divergences cancel, so they are summed in float64 with an exponential that uses
vector lanes. Imported only to compile.
"""

from __future__ import annotations

import math

import numpy as np

from forge.kernels.cpu.compiler import reordered
from forge.kernels.cpu.layout import BLOCK
from forge.kernels.cpu.memory import double_of, inlined, read_block, wide, write_block
from forge.kernels.cpu.selection import count_targets

_LOG2E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01
_LN2_LOW = 1.90821492927058770002e-10


@inlined
def _exp(x):
    """Return e**x for -700 < x < 700 to 1e-15: halving of the argument by ln 2, Taylor series."""
    whole = math.floor(x * _LOG2E + 0.5)
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    series = 1.0 / 6227020800.0
    series = series * r + 1.0 / 479001600.0
    series = series * r + 1.0 / 39916800.0
    series = series * r + 1.0 / 3628800.0
    series = series * r + 1.0 / 362880.0
    series = series * r + 1.0 / 40320.0
    series = series * r + 1.0 / 5040.0
    series = series * r + 1.0 / 720.0
    series = series * r + 1.0 / 120.0
    series = series * r + 1.0 / 24.0
    series = series * r + 1.0 / 6.0
    series = series * r + 0.5
    series = series * r + 1.0
    series = series * r + 1.0
    return series * double_of((np.int64(whole) + np.int64(1023)) << np.int64(52))


@reordered
def _exp_sum(x, y, size, greatest):
    """Return Σ e^(x - greatest) and Σ e^(x - greatest)·(x - y); arguments are floored at -690."""
    mass = 0.0
    gap = 0.0
    for i in range(size):
        term = _exp(max(np.float64(x[i]) - greatest, -690.0))
        mass += term
        gap += term * (np.float64(x[i]) - np.float64(y[i]))
    return mass, gap


def divergence(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Put KL(softmax(model row) ‖ softmax(base row)) into stats[row]. Cuts fall between rows.

    counts: not finite in base and model.
    """
    for row in range(start // width, (start + count) // width):
        top_base = -np.inf
        top_other = -np.inf
        for column in range(0, width, BLOCK):
            size = min(BLOCK, width - column)
            position = row * width + column
            counts[0] |= read_block(readers[0], inputs[0], position, size, work, 0)
            counts[1] |= read_block(readers[1], inputs[1], position, size, work, 1)
            base = work[0]
            other = work[1]
            for i in range(size):
                top_base = max(top_base, np.float64(base[i]))
                top_other = max(top_other, np.float64(other[i]))
        mass_base = 0.0
        mass_other = 0.0
        gap = 0.0
        for column in range(0, width, BLOCK):
            size = min(BLOCK, width - column)
            position = row * width + column
            if width > BLOCK:
                read_block(readers[0], inputs[0], position, size, work, 0)
                read_block(readers[1], inputs[1], position, size, work, 1)
            mass, _ = _exp_sum(work[0], work[1], size, top_base)
            mass_base += mass
            mass, part = _exp_sum(work[1], work[0], size, top_other)
            mass_other += mass
            gap += part
        # ln p - ln q = (x - ln Zx) - (y - ln Zy), averaged over p.
        log_ratio = (top_base + math.log(mass_base)) - (top_other + math.log(mass_other))
        stats[row] = max(gap / mass_other + log_ratio, 0.0)


@inlined
def _importance(inputs, readers, width, position, size, params, work):
    """Put |δ|·KL(row) into row 2 and leave base and model in rows 0 and 1."""
    read_block(readers[0], inputs[0], position, size, work, 0)
    read_block(readers[1], inputs[1], position, size, work, 1)
    base = work[0]
    other = work[1]
    importance = work[2]
    real = importance.dtype.type
    done = 0
    while done < size:
        row = (position + done) // width
        stop = min(size, (row + 1) * width - position)
        kl = real(params[row])
        for i in range(done, stop):
            importance[i] = abs(other[i] - base[i]) * kl
        done = stop
    return importance


def digits(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Count one digit of the importances; params: KL of each row, counts: the digit layout."""
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        importance = _importance(inputs, readers, width, start + offset, size, params, work)
        count_targets(importance, size, 0, counts)


def merge(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write the model where importance ≥ threshold, else the base.

    params: KL of each row, then the threshold. stats: Σδ². counts: whether the result is not
    finite; elements taken.
    """
    real = work.dtype.type
    threshold = real(params[len(params) - 1])
    result = wide(work, 3)
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        position = start + offset
        importance = _importance(inputs, readers, width, position, size, params, work)
        base = work[0]
        other = work[1]
        taken = np.int32(0)
        energy = 0.0
        for i in range(size):
            take = importance[i] >= threshold
            taken += np.int32(take)
            delta = np.float64(other[i]) - np.float64(base[i])
            energy += delta * delta
            result[i] = np.float64(other[i]) if take else np.float64(base[i])
        stats[0] += energy
        counts[1] += taken
        counts[0] |= write_block(writer, output, offset, size, work, 3)
