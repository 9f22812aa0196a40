"""Order statistics of magnitudes, found by histograms: the driver of ``cpu/selection.py``.

A *bound* describes the first k elements of a tensor in the order "greater magnitude first, then
lower index". It costs two passes over the input for float32 and four for float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from forge.kernels.cpu.layout import DIGIT_BINS, DIGIT_BITS, Compute
from forge.kernels.operands import Float64s, Int64s, Operands

_MAGNITUDE_BITS: Final[dict[Compute, int]] = {"float32": 31, "float64": 63}


@dataclass(frozen=True, slots=True)
class Bound:
    """The border of the first k elements.

    Attributes:
        bits: Elements whose magnitude bits exceed these are inside.
        quota: Of the elements whose bits equal them, the first so many are inside.
    """

    bits: int
    quota: int


ALL: Final = Bound(0, 1 << 62)
"""The bound that every element is inside."""

NOTHING: Final = Bound((1 << 63) - 2, 0)
"""The bound that no element is inside."""


@dataclass(frozen=True, slots=True)
class Target:
    """An order statistic: the element of ``rank`` (1 is the greatest) among a model's values."""

    model: int
    rank: int


@dataclass(frozen=True, slots=True)
class Statistic:
    """What a digit search found.

    Attributes:
        bits: Magnitude bits of the element of that rank.
        ordinal: Its place among the elements with the same bits, from 1.
    """

    bits: int
    ordinal: int


_SMALL: Final = 1 << 14
"""Elements up to which sorting is quicker than counting into histograms."""

DigitPass = Callable[[Int64s, Float64s], None]


def order_statistics(
    targets: Sequence[Target], *, compute: Compute, digit_pass: DigitPass
) -> list[Statistic]:
    """Find the magnitudes of given ranks.

    Args:
        targets: What to find; ranks count from 1 and do not exceed the number of elements.
        compute: Type of the values.
        digit_pass: Runs a digit kernel over the whole tensor with the given ``counts`` and
            ``stats``.

    Returns:
        One statistic for each target.
    """
    num = len(targets)
    remaining = [target.rank for target in targets]
    prefixes = [-1] * num
    below = _MAGNITUDE_BITS[compute]
    while below:
        digit_bits = min(DIGIT_BITS, below)
        below -= digit_bits
        counts = np.zeros(2 + num * (2 + DIGIT_BINS), np.int64)
        counts[0] = below
        counts[1] = digit_bits
        counts[2 : 2 + num] = prefixes
        counts[2 + num : 2 + 2 * num] = [target.model for target in targets]
        digit_pass(counts, np.zeros(1, np.float64))
        histograms = counts[2 + 2 * num :].reshape(num, DIGIT_BINS)
        for target in range(num):
            from_top = np.cumsum(histograms[target, ::-1])
            place = int(np.searchsorted(from_top, remaining[target]))
            digit = DIGIT_BINS - 1 - place
            remaining[target] -= int(from_top[place]) - int(histograms[target, digit])
            prefixes[target] = (max(prefixes[target], 0) << digit_bits) | digit
    return [Statistic(*row) for row in zip(prefixes, remaining, strict=True)]


def task_vector_bounds(operands: Operands, targets: Sequence[Target]) -> list[Bound]:
    """Bound the ``rank`` greatest elements of task vectors.

    Args:
        operands: The base and the models.
        targets: Ranks between 0 (nothing is inside) and the number of elements (all is).

    Returns:
        One bound for each target.
    """
    numel = operands.numel
    bounds: dict[Target, Bound] = {}
    for target in targets:
        if target.rank <= 0:
            bounds[target] = NOTHING
        elif target.rank >= numel:
            bounds[target] = ALL
    search = list(dict.fromkeys(target for target in targets if target not in bounds))
    if search and numel <= _SMALL:
        for target in search:
            bounds[target] = _partition(operands, target)
    elif search:
        digits = operands.plan("selection.task_vector_digits", rows=2)
        statistics = order_statistics(
            search,
            compute=operands.compute,
            digit_pass=lambda counts, stats: digits.reduce(counts=counts, stats=stats),
        )
        for target, statistic in zip(search, statistics, strict=True):
            bounds[target] = Bound(statistic.bits, statistic.ordinal)
    return [bounds[target] for target in targets]


def _partition(operands: Operands, target: Target) -> Bound:
    """Bound the greatest elements of a tensor that is smaller than the histograms."""
    delta = operands.values(1 + target.model) - operands.values(0)
    bits = np.abs(delta).view(np.uint32 if delta.dtype == np.float32 else np.uint64)
    place = bits.size - target.rank
    at_border = int(np.partition(bits, place)[place])
    return Bound(at_border, target.rank - int(np.count_nonzero(bits > at_border)))
