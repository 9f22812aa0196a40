"""Order statistics of magnitudes, found by histograms: the driver of ``cpu/selection.py``.

A *bound* (bits, index) describes the first k elements of a tensor in the order "greater
magnitude first, then lower index". It costs two passes over the input for float32, plus one
that stops early when several elements share the magnitude at the border.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from forge.kernels.cpu.layout import DIGIT_BINS, DIGIT_BITS
from forge.kernels.cpu.native import Compute
from forge.kernels.operands import Float64s, Int64s, Operands

_MAGNITUDE_BITS: Final[dict[Compute, int]] = {"float32": 31, "float64": 63}

_EVERYTHING: Final = 0
_BEYOND_EVERY_INDEX: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Bound:
    """The border of the first k elements: inside are bits above, and equal bits below ``index``."""

    bits: int
    index: int


ALL: Final = Bound(_EVERYTHING, _BEYOND_EVERY_INDEX)
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
        equals: Number of elements with the same bits.
    """

    bits: int
    ordinal: int
    equals: int


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
    equals = [0] * num
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
            equals[target] = int(histograms[target, digit])
            remaining[target] -= int(from_top[place]) - equals[target]
            prefixes[target] = (max(prefixes[target], 0) << digit_bits) | digit
    return [Statistic(*row) for row in zip(prefixes, remaining, equals, strict=True)]


def settle_tie(statistic: Statistic, *, equal_pass: Callable[[Int64s], None], numel: int) -> Bound:
    """Turn a statistic into the bound of exactly the first ``rank`` elements.

    Args:
        statistic: What ``order_statistics`` found.
        equal_pass: Runs an ``equal`` kernel over the whole tensor with the given ``counts``.
        numel: Number of elements.
    """
    if statistic.ordinal == statistic.equals:
        return Bound(statistic.bits, numel)
    counts = np.array([statistic.bits, statistic.ordinal, -1], np.int64)
    equal_pass(counts)
    return Bound(statistic.bits, int(counts[2]) + 1)


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
    if search:
        digits = operands.plan("selection.task_vector_digits", rows=2)
        statistics = order_statistics(
            search,
            compute=operands.compute,
            digit_pass=lambda counts, stats: digits.reduce(counts=counts, stats=stats),
        )
        for target, statistic in zip(search, statistics, strict=True):
            pair = operands.select([0, 1 + target.model], has_base=True)
            equal = pair.plan("selection.task_vector_equal", rows=2)
            bounds[target] = settle_tie(
                statistic,
                equal_pass=lambda counts, equal=equal: equal.reduce(counts=counts),  # type: ignore[misc]
                numel=numel,
            )
    return [bounds[target] for target in targets]
