"""Order statistics of magnitudes, found in a window or by histograms; see ``cpu/selection.py``.

A *bound* describes the first k elements of a tensor in the order "greater magnitude first, then
lower index". A sample tells between which magnitudes its border lies, and one pass over the input
finds it there. Where the sample misleads, histograms find it in two passes for float32 and four
for float64. Tensors too small for a sample go to the histograms at once, or are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from forge.kernels.cpu import native
from forge.kernels.cpu.layout import (
    DIGIT_BINS,
    DIGIT_BITS,
    PLACE_STEPS,
    WINDOW_SPILL,
    WINDOW_WORDS,
    Compute,
)
from forge.kernels.operands import Float64s, Int64s, Operands, address_of

if TYPE_CHECKING:
    import numpy.typing as npt

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

_SAMPLE_STRIDE: Final = 4096
_SAMPLE_RUN: Final = 32
_MOST_SAMPLED: Final = 1 << 20
"""A sample grows no further: of the embedding of a model of 70B it would take 200 MB."""
_CAPACITY: Final = 11.3
"""Elements inside a window are at most this, times all, by the root of the sample; 4.5 are
expected."""

_ENOUGH_BITS: Final = 8
"""A 256th of a sample may lie between a border of its window and where that should be."""

_LEAST_SAMPLED: Final = 1 << 17
"""Elements from which a sample is large enough to be worth its pass."""

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
        search = []
    elif search and numel >= _LEAST_SAMPLED:
        found = _search_windows(operands, search)
        bounds.update(found)
        search = [target for target in search if target not in found]
    if search:
        digits = operands.plan("selection.task_vector_digits", rows=2)
        statistics = order_statistics(
            search,
            compute=operands.compute,
            digit_pass=lambda counts, stats: digits.reduce(counts=counts, stats=stats),
        )
        for target, statistic in zip(search, statistics, strict=True):
            bounds[target] = Bound(statistic.bits, statistic.ordinal)
    return [bounds[target] for target in targets]


def _search_windows(operands: Operands, targets: Sequence[Target]) -> dict[Target, Bound]:
    """Bound task vectors in one pass, where a sample tells well enough where to look.

    A sample of every 128th run of neighbours, or of fewer, gives for each target a window of
    magnitudes that holds the border, 4.5 standard deviations to either side. One pass counts what
    lies above the window and gathers what lies inside, a few in a hundred elements; the border is
    exact.
    """
    samples = _sample(operands, {target.model for target in targets})
    num_sampled = min(map(len, samples.values()))
    capacity = int(_CAPACITY * operands.numel / math.sqrt(num_sampled))
    bits = np.dtype(np.int32 if operands.compute == "float32" else np.int64)
    # The kernel writes whole vectors, one beyond what it counts at most.
    num_bytes = (capacity + WINDOW_SPILL) * bits.itemsize
    arrays = [
        operands.workspace.bytes(f"window {number}", num_bytes).view(bits)
        for number in range(len(targets))
    ]
    counts = np.zeros((len(targets), WINDOW_WORDS), np.int64)
    for row, target, array in zip(counts, targets, arrays, strict=True):
        share = target.rank / operands.numel
        least, greatest = _window(samples[target.model], share, operands.compute)
        row[:5] = target.model, least, greatest, address_of(array), capacity
    kernel = f"selection.task_vector_window_{'stored' if operands.are_stored else 'rows'}"
    window_pass = operands.plan(kernel, rows=4)
    window_pass.reduce(counts=counts.reshape(-1))
    found = {}
    for words, target, array in zip(counts.tolist(), targets, arrays, strict=True):
        _, least, greatest, _, _, above, on_top, inside, on_bottom = words
        left = target.rank - above
        if 0 < left <= on_top:
            found[target] = Bound(greatest, left)
        elif on_top < left <= on_top + inside <= on_top + capacity:
            place = inside - (left - on_top)
            border, _, below, equal = _around_place(array[:inside], place, least + 1, greatest - 1)
            found[target] = Bound(border, below + equal - place)
        elif on_top + inside < left <= on_top + inside + on_bottom:
            found[target] = Bound(least, left - on_top - inside)
    return found


def _sample(operands: Operands, models: Iterable[int]) -> dict[int, npt.NDArray[Any]]:
    """Return magnitude bits of some elements of task vectors."""
    stride = max(_SAMPLE_STRIDE, operands.numel * _SAMPLE_RUN // _MOST_SAMPLED)
    base = operands.sample(0, stride, _SAMPLE_RUN)
    bits = np.int32 if operands.compute == "float32" else np.int64
    samples = {}
    for m in models:
        delta = operands.sample(1 + m, stride, _SAMPLE_RUN) - base
        samples[m] = np.abs(delta, out=delta).view(bits)
    return samples


def _window(sample: npt.NDArray[Any], share: float, compute: Compute) -> tuple[int, int]:
    """Return the least and the greatest bits between which the border of a share must lie."""
    size = len(sample)
    margin = 4.5 * math.sqrt(size * share * (1 - share)) + 2
    first, last = int(share * size - margin), math.ceil(share * size + margin)
    bounds = int(sample.min()), int(sample.max())
    enough = size >> _ENOUGH_BITS
    # One less than all ones: the greatest magnitude there is, and it can still be compared.
    least, greatest = 0, (1 << _MAGNITUDE_BITS[compute]) - 2
    if first >= 0:
        top = _around_place(sample, size - 1 - first, *bounds, enough=enough)[1]
        greatest = min(greatest, top)
    if last < size:
        least = _around_place(sample, size - 1 - last, *bounds, enough=enough)[0]
    return least, greatest


def _around_place(
    bits: npt.NDArray[Any], place: int, least: int, greatest: int, *, enough: int = 0
) -> tuple[int, int, int, int]:
    """Find between which bits lies what stands at a place, from 0, when they are sorted.

    numpy's own selection takes several times as long on Zen 4.

    Args:
        bits: Magnitude bits.
        place: Which of them is meant.
        least: Nothing is less.
        greatest: Nothing is more.
        enough: How many others may lie there.

    Returns:
        The least and the greatest bits, how many numbers are less, and how many lie between.
    """
    table = np.empty(4 * (PLACE_STEPS + 1), np.int32)
    found = np.empty(4, np.int64)
    native.word_kernel(f"selection.around_place_{bits.dtype.name}", 8)(
        address_of(bits), bits.size, least, greatest, place, enough,
        address_of(table), address_of(found),
    )  # fmt: skip
    low, high, below, between = found.tolist()
    return low, high, below, between


def _partition(operands: Operands, target: Target) -> Bound:
    """Bound the greatest elements of a tensor that is smaller than the histograms."""
    delta = operands.values(1 + target.model) - operands.values(0)
    bits = np.abs(delta).view(np.uint32 if delta.dtype == np.float32 else np.uint64)
    place = bits.size - target.rank
    at_border = int(np.partition(bits, place)[place])
    return Bound(at_border, target.rank - int(np.count_nonzero(bits > at_border)))
