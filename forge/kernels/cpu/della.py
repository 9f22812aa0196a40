"""The loops of DELLA: rank within a row, drop by rank.

A rank needs no sorted row. Each magnitude is mapped, in their order, to one of a few thousand
buckets; counting them gives the number of elements in lower buckets, and the count that an element
meets in its own gives its place there, because equal magnitudes rank by column:

    rank = elements in its bucket and below - 1 - elements of its bucket to the left

That is exact where a bucket holds one magnitude only. The buckets are steps of the magnitudes'
bits, and differences of bfloat16 numbers end in zeros, so a few in a hundred elements have bits
that their bucket does not tell. They are listed, and the buckets with more than one element that
they lie in are sorted afterwards, a handful of elements each.

Magnitudes of a row spread over few octaves around their mean, but for outliers. So the buckets
cover eight octaves at most, and what lies outside is put into the outermost two, and listed.
Zeros have a bucket of their own.

The counters are striped: bucket ``b`` of ``64·S`` is counter ``64·(b mod S) + ⌊b/S⌋``, so that
their prefix sums are sums of whole vectors. Imported only to compile.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from forge.kernels.cpu.layout import BLOCK, STRIPES
from forge.kernels.cpu.memory import bits_of, inlined, pointer, read_block, shifted, words_of
from forge.kernels.cpu.philox import GROUP, LOWER, UPPER, fill
from forge.kernels.cpu.selection import magnitude_bits

_RANGE = 4294967296.0
_HALF_RANGE = 65536.0
_ONE = np.uint32(1)
_ZERO = np.uint32(0)
_HALF = np.uint32(16)
_MANTISSA = np.uint64(52)
_BIAS = 1022
_SIXTEEN = np.uint32(16)
_SHIFT1, _SHIFT2, _SHIFT3 = np.uint64(16), np.uint64(32), np.uint64(48)
_OCTAVE = 1 << 23
_OCTAVES_BELOW = 5
_OCTAVES_ABOVE = 3
_PLACED = np.uint16(0xFFFF)
_INSERTED = 24
"""Elements up to which a bucket is sorted by insertion."""
_MARK_LANES = 16
_STRIPES = np.uint32(STRIPES)


@intrinsic
def _store_four(typingctx, first, second, third, fourth, target):
    """Store four float32 at an address at once."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.FloatType(), 4)
        four = ir.Constant(vector, ir.Undefined)
        for lane, value in enumerate(args[:4]):
            four = builder.insert_element(four, value, ir.IntType(32)(lane))
        builder.store(four, builder.inttoptr(args[4], vector.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.float32] * 4, types.int64), codegen


@intrinsic
def _append_marked(typingctx, marks, first, target):
    """Store the numbers, from ``first``, of the marks of 32 bits that are not 0; count them.

    Sixteen marks are looked at, and sixteen numbers are stored, of which the first ones count.
    """
    lane, mask = ir.IntType(32), ir.IntType(1)
    vector, masks = ir.VectorType(lane, _MARK_LANES), ir.VectorType(mask, _MARK_LANES)

    def codegen(context, builder, signature, args):
        marked = builder.load(builder.inttoptr(args[0], vector.as_pointer()), align=4)
        is_set = builder.icmp_unsigned("!=", marked, ir.Constant(vector, [0] * _MARK_LANES))
        start = builder.insert_element(
            ir.Constant(vector, ir.Undefined), builder.trunc(args[1], lane), lane(0)
        )
        start = builder.shuffle_vector(start, start, ir.Constant(vector, [0] * _MARK_LANES))
        numbers = builder.add(start, ir.Constant(vector, list(range(_MARK_LANES))))
        compress = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector, masks, vector]),
            f"llvm.experimental.vector.compress.v{_MARK_LANES}i32",
        )
        packed = builder.call(compress, [numbers, is_set, ir.Constant(vector, ir.Undefined)])
        builder.store(packed, builder.inttoptr(args[2], vector.as_pointer()), align=4)
        count = builder.ctpop(builder.bitcast(is_set, ir.IntType(_MARK_LANES)))
        return builder.zext(count, ir.IntType(64))

    return types.int64(types.int64, types.int64, types.int64), codegen


@inlined
def _words(address, start, count):
    """View uint32 numbers from ``start``; a view that begins at 0 needs no signed offsets.

    numba checks a signed sum for wrapping wherever it is an index, and then nothing vectorizes.
    """
    return carray(pointer(address + 4 * start), count, np.uint32)


@inlined
def _halves(address, count):
    return carray(pointer(address), count, np.uint16)


@inlined
def _magnitudes(inputs, readers, start, count, address, work):
    """Write the magnitudes of the task vector of ``count`` elements from ``start``."""
    base = work[0]
    x = work[1]
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        read_block(readers[0], inputs[0], start + offset, size, work, 0)
        read_block(readers[1], inputs[1], start + offset, size, work, 1)
        magnitudes = _words(address, offset, size)
        for i in range(size):
            magnitudes[i] = magnitude_bits(x[i] - base[i])


@inlined
def _bits_needed(value):
    """Return how many bits a number has; the exponent of a float64 tells."""
    return max(np.int64(bits_of(np.float64(value)) >> _MANTISSA) - _BIAS, 0)


@inlined
def _window(magnitudes, width, num_buckets):
    """Return the least and greatest magnitude of the buckets, and the bits that a step drops.

    The octaves are counted from the mean of the bits, which an outlier barely moves.
    """
    greatest = _ZERO
    below = np.uint32(0xFFFFFFFF)
    total = _ZERO
    num_zeros = _ZERO
    for i in range(width):
        magnitude = magnitudes[i]
        greatest = max(greatest, magnitude)
        below = min(below, np.uint32(magnitude - _ONE))  # 0 wraps around and does not count
        total = np.uint32(total + shifted(magnitude, _SIXTEEN))
        num_zeros = np.uint32(num_zeros + np.uint32(magnitude == _ZERO))
    # The divisor is 0 where all are, and then nothing depends on the window.
    mean = (np.int64(total) << 16) // max(width - np.int64(num_zeros), 1)
    first = max(np.int64(below) + 1, mean - _OCTAVES_BELOW * _OCTAVE)
    last = max(min(np.int64(greatest), mean + _OCTAVES_ABOVE * _OCTAVE), first)
    # Buckets for zeros and for the step that aligning begins are left.
    dropped = _bits_needed((last - first) // (num_buckets - 3))
    return np.uint32(first >> dropped << dropped), np.uint32(last), dropped


@inlined
def _assign(magnitudes, width, marks, counters, stripe_bits):
    """Write the counter of each element, and a mark other than 0 where it does not tell all."""
    steps = np.int64(1) << stripe_bits
    first, last, dropped = _window(magnitudes, width, STRIPES * steps)
    low = np.uint32((np.int64(1) << dropped) - 1)
    shift = np.uint32(dropped)
    step_mask = np.uint32(steps - 1)
    step_shift = np.uint32(stripe_bits)
    for i in range(width):
        magnitude = magnitudes[i]
        inside = np.uint32(min(max(magnitude, first), last))
        height = np.uint32(inside - first)
        is_counted = np.uint32(magnitude != _ZERO)
        bucket = np.uint32(shifted(height, shift) + is_counted)
        marks[i] = np.uint32(height & low) | np.uint32(np.uint32(inside ^ magnitude) * is_counted)
        counter = np.uint32(np.uint32(bucket & step_mask) * _STRIPES)
        counters[i] = np.uint16(np.uint32(counter + shifted(bucket, step_shift)))


@inlined
def _count_one(table, counter):
    """Count an element; return how many came before."""
    count = table[np.uint64(counter)]
    table[np.uint64(counter)] = np.uint16(count + np.uint16(1))
    return np.uint64(count)


@inlined
def _count(table, counters, places, width):
    """Count a row, and write the place of each element in its bucket, from the left."""
    # Four places leave in one store: one a cycle is what a core can write.
    packed = carray(pointer(places.ctypes.data), width // 4, np.uint64)
    for four in range(width // 4):
        i = 4 * four
        first = _count_one(table, counters[i])
        second = _count_one(table, counters[i + 1])
        third = _count_one(table, counters[i + 2])
        fourth = _count_one(table, counters[i + 3])
        packed[four] = first | second << _SHIFT1 | third << _SHIFT2 | fourth << _SHIFT3
    for i in range(width // 4 * 4, width):
        places[i] = np.uint16(_count_one(table, counters[i]))


@inlined
def _place_one(table, counters, places, i, order):
    """Return the rank of an element, and note its column there."""
    upto = np.uint32(table[np.uint64(counters[i])])
    rank = np.uint64(np.uint32(upto - np.uint32(places[i])) - _ONE)
    order[rank] = np.uint16(i)
    return rank


@inlined
def _place(table, counters, places, width, chances, result, order):
    """Write p of the rank of each element, and the columns by rank."""
    target = np.int64(result.ctypes.data)
    for i in range(0, width // 4 * 4, 4):
        first = _place_one(table, counters, places, i, order)
        second = _place_one(table, counters, places, i + 1, order)
        third = _place_one(table, counters, places, i + 2, order)
        fourth = _place_one(table, counters, places, i + 3, order)
        _store_four(chances[first], chances[second], chances[third], chances[fourth], target)
        target += 16
    for i in range(width // 4 * 4, width):
        result[i] = chances[_place_one(table, counters, places, i, order)]


def _running_sums(*, writes: bool):
    """Make what adds the rows of a table to ``lanes``, and may replace each by the sum so far.

    In LLVM's own words, because numba keeps the sums in memory, where each waits for the last.
    """
    vector = ir.VectorType(ir.IntType(16), STRIPES)

    @intrinsic
    def add_rows(typingctx, table, num_steps, lanes):
        def codegen(context, builder, signature, args):
            rows = builder.inttoptr(args[0], vector.as_pointer())
            sums = builder.inttoptr(args[2], vector.as_pointer())
            total = cgutils.alloca_once_value(builder, builder.load(sums, align=2))
            with cgutils.for_range(builder, args[1]) as loop:
                row = builder.gep(rows, [loop.index])
                upto = builder.add(builder.load(total), builder.load(row, align=2))
                builder.store(upto, total)
                if writes:
                    builder.store(upto, row, align=2)
            builder.store(builder.load(total), sums, align=2)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), codegen

    return add_rows


_add_rows = _running_sums(writes=False)
_replace_rows = _running_sums(writes=True)


@inlined
def _sum_up(table, lanes, num_steps):
    """Replace counts by how many elements lie in their bucket and below."""
    for lane in range(STRIPES):
        lanes[lane] = np.uint16(0)
    rows = np.int64(table.ctypes.data)
    sums = np.int64(lanes.ctypes.data)
    _add_rows(rows, num_steps, sums)
    total = _ZERO
    for lane in range(STRIPES):
        count = np.uint32(lanes[lane])
        lanes[lane] = np.uint16(total)
        total = np.uint32(total + count)
    _replace_rows(rows, num_steps, sums)


@inlined
def _list_marked(marks, width, target):
    """List the marked elements; return how many there are."""
    source = np.int64(marks.ctypes.data)
    place = np.int64(target.ctypes.data)
    num = np.int64(0)
    whole = width // _MARK_LANES * _MARK_LANES
    for i in range(0, whole, _MARK_LANES):
        num += _append_marked(source + 4 * i, i, place + 4 * num)
    for i in range(whole, width):
        if marks[i] != _ZERO:
            target[num] = np.uint32(i)
            num += 1
    return num


@inlined
def _wide_key(magnitudes, column):
    """Order by magnitude; among equal ones the lowest column comes last."""
    return (np.uint64(magnitudes[column]) << np.uint64(16)) | np.uint64(np.uint16(~column))


@inlined
def _sort(magnitudes, order, count):
    """Sort columns by insertion, or, where they are many, by Shell's sort."""
    gap = 1
    if count > _INSERTED:
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
def _mend(magnitudes, order, table, counters, listed, num_listed, num_steps, chances, result):
    """Put the buckets of the listed elements in order, where they hold more than one."""
    for i in range(num_listed):
        counter = counters[np.uint64(listed[i])]
        if counter == _PLACED:
            continue
        # The bucket below is a row up, or in the last row of the lane before.
        at = np.int64(counter)
        before = at - STRIPES if at >= STRIPES else at - 1 + STRIPES * (num_steps - 1)
        first = np.int64(table[np.uint64(before)])
        count = np.int64(table[np.uint64(at)]) - first
        if count < 2:
            continue
        members = order[first : first + count]
        _sort(magnitudes, members, count)
        for place in range(count):
            column = np.uint64(members[place])
            result[column] = chances[np.uint64(first + place)]
            counters[column] = _PLACED


@inlined
def _rank(magnitudes, width, by_rank, scratch, stripe_bits, result):
    """Write p of the rank of each element of a row."""
    chances = carray(pointer(by_rank), width, np.float32)
    num_steps = np.int64(1) << stripe_bits
    marks = _words(scratch, 0, width)
    listed = _words(scratch, width, width + _MARK_LANES)
    scratch += 4 * (2 * width + _MARK_LANES)
    counters = _halves(scratch, width)
    places = _halves(scratch + 2 * width, width)
    order = _halves(scratch + 4 * width, width)
    table = _halves(scratch + 6 * width, STRIPES * num_steps)
    lanes = _halves(scratch + 6 * width + 2 * STRIPES * num_steps, STRIPES)
    _assign(magnitudes, width, marks, counters, stripe_bits)
    for i in range(STRIPES * num_steps):
        table[i] = np.uint16(0)
    _count(table, counters, places, width)
    _sum_up(table, lanes, num_steps)
    num_listed = _list_marked(marks, width, listed)
    _place(table, counters, places, width, chances, result, order)
    if num_listed > 0:
        _mend(magnitudes, order, table, counters, listed, num_listed, num_steps, chances, result)


@inlined
def _is_decided(chances, halves, size):
    """Tell whether the upper halves alone tell on which side of p every random word lies."""
    whole = chances.dtype.type(_HALF_RANGE)
    undecided = np.int32(0)
    for i in range(size):
        above = chances[i] * whole - chances.dtype.type(halves[i])
        undecided += np.int32((above > 0) & (above < 1))
    return undecided == 0


@inlined
def _drop(chances, halves, size, inverse):
    """Turn the chance p of each element into its factor."""
    zero = chances.dtype.type(0)
    one = chances.dtype.type(1)
    whole = chances.dtype.type(_HALF_RANGE)
    for i in range(size):
        p = chances[i]
        kept = one / p if inverse else one
        chances[i] = kept if chances.dtype.type(halves[i]) < p * whole else zero


@inlined
def _drop_exactly(chances, halves, lower, size, inverse):
    """As ``_drop``, from all 32 bits."""
    zero = chances.dtype.type(0)
    one = chances.dtype.type(1)
    for i in range(size):
        p = chances[i]
        kept = one / p if inverse else one
        word = np.float64(np.uint32(np.uint32(halves[i] << _HALF) | lower[i]))
        chances[i] = kept if word < np.float64(p) * _RANGE else zero


@inlined
def _drop_all(result, start, count, key, stream, inverse, work):
    """Turn the chances of ``count`` elements from ``start`` into factors."""
    words = words_of(work, 2)
    stride = BLOCK - GROUP  # room for a first group that begins before the block
    for offset in range(0, count, stride):
        size = min(stride, count - offset)
        lead = (start + offset) % GROUP
        fill(words, key, stream, start + offset - lead, lead + size, UPPER)
        chances = result[offset : offset + size]
        halves = words[lead : lead + size]
        if _is_decided(chances, halves, size):
            _drop(chances, halves, size, inverse)
        else:
            rest = words_of(work, 1)
            fill(rest, key, stream, start + offset - lead, lead + size, LOWER)
            _drop_exactly(chances, halves, rest[lead : lead + size], size, inverse)


def factors(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Write one factor for each element: 0 when it is dropped, else 1/p or 1.

    inputs: the base and one model, of rows of ``width`` elements, at most 65535. params: 1 to
    divide by p. counts: address of the factors (float32[count]) · of p of every rank
    (float32[width]) · of scratch (see ``sparsify``) · binary logarithm of the steps of a stripe ·
    key · stream · rows that are worked on together. ``start`` is the position of the first row in
    the tensor, and cuts fall between rows. float32 only.
    """
    num_rows = count // width
    result = carray(pointer(counts[0]), count, np.float32)
    for first in range(0, num_rows, counts[6]):
        rows = min(counts[6], num_rows - first)
        at = first * width
        _magnitudes(inputs, readers, start + at, rows * width, counts[2], work)
        scratch = counts[2] + 4 * counts[6] * width
        for row in range(rows):
            magnitudes = _words(counts[2], row * width, width)
            chances = result[at + row * width : at + (row + 1) * width]
            _rank(magnitudes, width, counts[1], scratch, counts[3], chances)
        size = rows * width
        part = result[at : at + size]
        _drop_all(part, start + at, size, counts[4], counts[5], params[0] != 0.0, work)


def drop(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Turn p of every element into its factor: 0 when it is dropped, else 1/p or 1.

    params: 1 to divide by p. counts: address of the elements (work type) · key · stream.
    """
    result = carray(pointer(counts[0]), count, work.dtype)
    _drop_all(result, start, count, counts[1], counts[2], params[0] != 0.0, work)
