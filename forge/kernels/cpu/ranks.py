"""Ranks of the magnitudes of a row, by counting: what DELLA drops by.

A rank needs no sorted row. Each magnitude is mapped, in their order, to one of a few thousand
buckets; counting them gives the number of elements in lower buckets, and the count that an element
meets in its own gives its place there, because equal magnitudes rank by column:

    rank = elements in its bucket and below - 1 - elements of its bucket to the left

That is exact where a bucket holds one magnitude only. The buckets are steps of the magnitudes'
bits, and differences of 16-bit numbers end in zeros. Their steps have two buckets each: one for
the magnitude that the step begins with, which most elements have, and one for those between this
and the next. Only the second one can hold different magnitudes, and hardly ever holds two elements
where a step is fine enough. Buckets that may, and hold more than one, get a flag: the highest bit
of their counter, so that each of their ranks carries it. Those elements are found by it, and ranked
among each other afterwards, a handful in a row.

Magnitudes of a row spread over few octaves around their mean, but for outliers. So the buckets
cover eight octaves at most, and what lies outside is put into the outermost two. Zeros have a
bucket of their own.

The counters are striped: bucket ``b`` of ``64·S`` is counter ``64·(b mod S) + ⌊b/S⌋``, so that
their prefix sums are sums of whole vectors, and the second bucket of a step has an odd row. Rows
are padded with zeros to whole vectors; those rank below all others, and counting begins so far
below 0. Imported only to compile.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray

from forge.kernels.cpu.lanes import F32, I16, I32, I64, Emitter, Lanes, element_size, emitted
from forge.kernels.cpu.layout import PADDING, STRIPES
from forge.kernels.cpu.memory import bits_of, inlined, pointer

_MANTISSA = np.uint64(52)
_BIAS = 1022
_OCTAVE = 1 << 23
_OCTAVES_BELOW = 5
_OCTAVES_ABOVE = 3
_PLACED = np.uint16(0xFFFF)
_FLAG = 1 << 15
_COMPARED = 16
"""Elements up to which those of a bucket are compared with all others; more are sorted."""
_LANES = 16
_UNROLLED = 4
_SINGLES = ir.VectorType(F32, _LANES)
_WORDS = ir.VectorType(I32, _LANES)


@inlined
def words_at(address, count):
    return carray(pointer(address), count, np.uint32)


@inlined
def shorts_at(address, count):
    return carray(pointer(address), count, np.uint16)


def _surveyor(element: Any) -> Any:
    """Make what surveys the difference of two rows, of bfloat16 or float32 numbers."""
    size = element_size(element)

    def read(emitter: Emitter, address: Lanes) -> Lanes:
        here = emitter.load(address, element, _LANES)
        return here if element == F32 else (here.to(I32) << 16).bits_as(_SINGLES)

    def survey(
        emitter: Emitter, count: Lanes, whole: Lanes, base: Lanes, model: Lanes, base_end: Lanes,
        model_end: Lanes, target: Lanes, found: Lanes,
    ) -> None:  # fmt: skip
        """Write the magnitudes, and into ``found`` what ``_window`` asks for.

        That is the greatest, the least but 0, less 1, the sum of the upper halves, and how many
        are 0. From element ``whole`` on, the rows are read from their ``end``.
        """
        none = emitter.number(0, I32).splat(_LANES)
        start = (none, none - 1, none, none)
        with emitter.steps(count, PADDING, *start) as (i, greatest, below, total, zeros):
            addresses = []
            for row, end in ((base, base_end), (model, model_end)):
                if element == I16:
                    # What the next row will read is loaded while this one is ranked.
                    emitter.prefetch(row + (i + count) * size)
                addresses.append((i < whole).choose(row + i * size, end))
            for part in range(0, PADDING, _LANES):
                base_here, model_here = (read(emitter, at + size * part) for at in addresses)
                here = (model_here - base_here).bits_as(_WORDS) & 0x7FFFFFFF
                here.store(target + (i << 2) + 4 * part)
                greatest[0] = greatest[0].greatest(here)
                below[0] = below[0].least(here - 1)  # 0 wraps around and does not count
                total[0] += here >> 16
                zeros[0] += here.equals(0).to(I32)
        names = ("umax", "umin", "add", "add")
        kinds = zip((greatest, below, total, zeros), names, strict=True)
        for place, (lanes, name) in enumerate(kinds):
            lanes[0].reduce(name).to(I64).store(found + 8 * place)

    return emitted(survey)


survey_shorts = _surveyor(I16)
survey_singles = _surveyor(F32)


@emitted
def _assign(
    emitter: Emitter, count: Lanes, magnitudes: Lanes, first: Lanes, last: Lanes, dropped: Lanes,
    pairs: Lanes, stripe_bits: Lanes, counters: Lanes,
) -> None:  # fmt: skip
    """Write the counter of each element.

    pairs: 1 when a step has two buckets, else 0.
    """
    one = emitter.number(1, I32)
    first, last, dropped, pairs, stripe_bits = (
        x.to(I32) for x in (first, last, dropped, pairs, stripe_bits)
    )
    # What lies below the window ends a step of its own, so that zeros have the first bucket.
    before = first.greatest(1) - 1
    origin = first - ((emitter.number(2, I32) - pairs) << dropped)
    low, steps = (one << dropped) - 1, (one << stripe_bits) - 1
    before, last, origin, low, dropped = (
        x.splat(_LANES) for x in (before, last, origin, low, dropped)
    )
    pairs, steps, stripe_bits = (x.to(I16).splat(PADDING) for x in (pairs, steps, stripe_bits))
    with emitter.steps(count, PADDING) as (i,):
        parts = []
        for part in range(0, PADDING, _LANES):
            here = emitter.load(magnitudes + (i << 2) + 4 * part, I32, _LANES)
            inside = here.greatest(before).least(last)
            height = inside - origin
            is_counted = here.differs(0)
            told = (height & low) | (inside ^ here)
            step = is_counted.choose(height >> dropped, 0)
            parts.append((step, is_counted & told.differs(0)))
        step, is_between = (left.joined(right) for left, right in zip(*parts, strict=True))
        bucket = (step.to(I16) << pairs) + is_between.choose(pairs, 0)
        counter = ((bucket & steps) * STRIPES) + (bucket >> stripe_bits)
        counter.store(counters + (i << 1))


def _counter_at(emitter: Emitter, table: Lanes, counters: Lanes) -> Lanes:
    return table + (emitter.load(counters, I16).to(I64) << 1)


@emitted
def _count(emitter: Emitter, count: Lanes, table: Lanes, counters: Lanes, places: Lanes) -> None:
    """Count a row, and write how many of its bucket lie to the left of each element."""
    with emitter.steps(count, _UNROLLED) as (i,):
        before = []
        for place in range(_UNROLLED):
            at = _counter_at(emitter, table, counters + (i << 1) + 2 * place)
            before.append(emitter.load(at, I16))
            (before[-1] + 1).store(at)
        emitter.packed(before).store(places + (i << 1))


@emitted
def _place(
    emitter: Emitter, count: Lanes, table: Lanes, counters: Lanes, places: Lanes, ranks: Lanes
) -> None:
    """Write the rank of each element."""
    with emitter.steps(count, _UNROLLED) as (i,):
        upto = [
            emitter.load(_counter_at(emitter, table, counters + (i << 1) + 2 * place), I16)
            for place in range(_UNROLLED)
        ]
        before = emitter.load(places + (i << 1), I16, _UNROLLED)
        (emitter.packed(upto) - before - 1).store(ranks + (i << 1))


@emitted
def _sum_up(
    emitter: Emitter, num_steps: Lanes, table: Lanes, start: Lanes, even: Lanes, odd: Lanes
) -> None:
    """Replace counts by how many elements lie in their bucket and below, and ``start``.

    Counts above 1 get the flag ``even`` or ``odd``, by their row.
    """
    none = emitter.number(0, I16).splat(STRIPES)
    flags = [flag.to(I16).splat(STRIPES) for flag in (even, odd)]
    with emitter.steps(num_steps, 1, none) as (step, sums):
        sums[0] += emitter.load(table + (step << 7), I16, STRIPES)
    upto = total = sums[0]
    for distance in (1, 2, 4, 8, 16, 32):
        upto += upto.moved(distance)
    with emitter.steps(num_steps, 2, upto - total + start.to(I16)) as (step, running):
        for parity, flag in enumerate(flags):
            at = table + (step << 7) + 128 * parity
            here = emitter.load(at, I16, STRIPES)
            running[0] += here
            (running[0] | (here < 2).choose(none, flag)).store(at)


@emitted
def _list_set(emitter: Emitter, count: Lanes, source: Lanes, bits: Lanes, target: Lanes) -> Lanes:
    """List the places of the numbers that have all ``bits``; return how many there are.

    ``PADDING`` numbers are written at the end of the list, of which the first ones count.
    """
    bits = bits.to(I16).splat(PADDING)
    places = emitter.vector(list(range(PADDING)), I16)
    with emitter.steps(count, PADDING, emitter.number(0), places) as (i, found, numbers):
        is_set = (emitter.load(source + (i << 1), I16, PADDING) & bits).equals(bits)
        numbers[0].compress(is_set).store(target + (found[0] << 1))
        found[0] += is_set.count()
        numbers[0] += PADDING
    return found[0]


@emitted
def _clear(emitter: Emitter, count: Lanes, target: Lanes) -> None:
    """Write zeros over so many bytes, a multiple of 64."""
    none = emitter.number(0, I16).splat(STRIPES)
    with emitter.steps(count, 2 * STRIPES) as (i,):
        none.store(target + i)


@emitted
def _invert(emitter: Emitter, count: Lanes, columns: Lanes, ranks: Lanes, order: Lanes) -> None:
    """Take the flag from the ranks of the listed columns, and write the columns by rank."""
    with emitter.steps(count, 1) as (i,):
        column = emitter.load(columns + (i << 1), I16)
        at = ranks + (column.to(I64) << 1)
        rank = emitter.load(at, I16) & (_FLAG - 1)
        rank.store(at)
        column.store(order + (rank.to(I64) << 1))


@emitted
def _invert_all(emitter: Emitter, count: Lanes, ranks: Lanes, order: Lanes) -> None:
    """Write all columns by rank."""
    with emitter.steps(count, 1) as (column,):
        rank = emitter.load(ranks + (column << 1), I16)
        column.to(I16).store(order + (rank.to(I64) << 1))


@inlined
def _bits_needed(value):
    """Return how many bits a number has; the exponent of a float64 tells."""
    return np.int64(bits_of(np.float64(value)) >> _MANTISSA) - _BIAS if value else 0


@inlined
def _window(found, num_counted, num_buckets):
    """Return the least and greatest magnitude of the buckets, and the bits that a step drops.

    The octaves are counted from the mean of the bits, which an outlier barely moves.
    """
    # The divisor is 0 where all are, and then nothing depends on the window.
    mean = (found[2] << 16) // (num_counted if num_counted else 1)
    first = mean - _OCTAVES_BELOW * _OCTAVE
    last = mean + _OCTAVES_ABOVE * _OCTAVE
    first = first if first > found[1] else found[1] + 1
    last = last if last < found[0] else found[0]
    last = last if last > first else first
    # Buckets for zeros and for the step that aligning begins are left.
    dropped = _bits_needed((last - first) // (num_buckets - 3))
    return first >> dropped << dropped, last, dropped


@inlined
def _wide_key(magnitudes, column):
    """Order by magnitude; among equal ones the lowest column comes last."""
    return (np.uint64(magnitudes[column]) << np.uint64(16)) | np.uint64(np.uint16(~column))


@inlined
def _sort(magnitudes, order, count):
    """Sort columns by Shell's sort."""
    gap = 1
    while gap < count // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, count):
            column = order[i]
            key = _wide_key(magnitudes, column)
            place = i
            while place >= gap and _wide_key(magnitudes, order[place - gap]) > key:
                order[place] = order[place - gap]
                place -= gap
            order[place] = column
        gap //= 3


@inlined
def _bounds(table, counter, num_steps, mask):
    """Return how many elements lie below a bucket, and how many up to its end."""
    # The bucket below is a row up, or in the last row of the lane before.
    at = np.int64(counter)
    before = at - STRIPES if at >= STRIPES else at - 1 + STRIPES * (num_steps - 1)
    return np.int64(table[np.uint64(before)] & mask), np.int64(table[np.uint64(at)] & mask)


@inlined
def _mend(magnitudes, order, table, counters, listed, num_listed, num_steps, ranks, mask):
    """Rank the listed elements within their buckets.

    Counting the lesser ones takes no branch that a processor could mistake, unlike sorting.
    """
    for i in range(num_listed):
        column = np.uint64(listed[i])
        counter = counters[column]
        # Zeros rank right: equal ones do, and nothing lies below their bucket.
        if counter == _PLACED or counter == 0:
            continue
        first, stop = _bounds(table, counter, num_steps, mask)
        if stop - first > _COMPARED:
            members = order[first:stop]
            _sort(magnitudes, members, stop - first)
            for place in range(first, stop):
                column = np.uint64(order[place])
                ranks[column] = np.uint16(place)
                counters[column] = _PLACED
            continue
        key = _wide_key(magnitudes, column)
        rank = first
        for place in range(first, stop):
            rank += np.int64(_wide_key(magnitudes, order[place]) < key)
        ranks[column] = np.uint16(rank)


@inlined
def rank(magnitudes, width, padded, found, scratch, pairs, stripe_bits, ranks):
    """Write the rank of each element of a row."""
    num_steps = np.int64(1) << stripe_bits
    num_padded = padded - width
    listed_at = scratch
    counters_at = listed_at + 2 * (padded + PADDING)
    order_at = counters_at + 2 * padded
    table_at = order_at + 2 * padded
    table = shorts_at(table_at, STRIPES * num_steps)
    _clear(2 * STRIPES * num_steps, table_at)
    first, last, dropped = _window(found, padded - found[3], STRIPES * num_steps >> pairs)
    _assign(padded, magnitudes, first, last, dropped, pairs, stripe_bits, counters_at)
    _count(padded, table_at, counters_at, ranks)
    # In rows so wide that ranks need the highest bit there are no flags.
    flag = _FLAG if width < _FLAG else 0
    mask = np.uint16(~flag)
    _sum_up(num_steps, table_at, -num_padded, 0 if pairs else flag, flag)
    table[0] &= mask
    _place(padded, table_at, counters_at, ranks, ranks)
    if flag:
        # The padding ranks below 0, so it carries the flag, and comes last.
        num_listed = _list_set(padded, ranks, flag, listed_at) - num_padded
        _invert(num_listed, listed_at, ranks, order_at)
    else:
        num_listed = _list_set(padded, counters_at, STRIPES if pairs else 0, listed_at)
        num_listed -= 0 if pairs else num_padded
        _invert_all(width, ranks, order_at)
    _mend(
        words_at(magnitudes, padded), shorts_at(order_at, padded), table,
        shorts_at(counters_at, padded), shorts_at(listed_at, padded), num_listed, num_steps,
        shorts_at(ranks, padded), mask,
    )  # fmt: skip
