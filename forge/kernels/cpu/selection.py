"""Exact top-k by magnitude without a sort.

The bit pattern of a non-negative float, read as an integer, orders like the float. So the k-th
largest magnitude is found digit by digit: a histogram over the highest 16 bits names the bin
that holds it, a second one over the next 16 bits within that bin, and so on (two passes for
float32, four for float64). Ties are settled by position: among equal magnitudes the lowest
index wins, so that exactly k are kept, always the same ones.

A *bound* (bits, quota) describes the first k elements in the order "greater magnitude first,
then lower index": inside are the elements whose bits exceed ``bits``, and the first ``quota`` of
those whose bits equal them. A kernel meets the elements of a tensor in order, so it need only
count the equal ones that it has passed.

Imported only to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray

from forge.kernels.cpu.compiler import inlined
from forge.kernels.cpu.elements import value_of, view_maker
from forge.kernels.cpu.lanes import F32, F64, I16, I32, I64, Emitter, Lanes, element_size, emitted
from forge.kernels.cpu.layout import BLOCK, DIGIT_BINS, PLACE_STEPS, WINDOW_WORDS
from forge.kernels.cpu.memory import bits_of, is_double, pointer, read_block

_MOST32 = np.int64(0x7FFFFFFE)
_SIGN32 = np.uint32(0x7FFFFFFF)
_SIGN64 = np.uint64(0x7FFFFFFFFFFFFFFF)


@inlined
def magnitude_bits(value):
    """Return the bits of |value|: int32 for float32, int64 for float64."""
    if is_double(value):
        return np.int64(bits_of(value) & _SIGN64)
    return np.int32(bits_of(value) & _SIGN32)


@inlined
def count_digit(x, size, shift, digit_bits, prefix, histogram):
    """Count one digit of the magnitudes that begin with ``prefix``.

    Args:
        x: Values.
        size: Elements that count.
        shift: Bits below the digit.
        digit_bits: Width of the digit, at most 16.
        prefix: Bits above the digit, or -1 to count all (the first digit).
        histogram: int64[DIGIT_BINS], added to.
    """
    # Unsigned indices: numba checks signed ones for wrapping, at five times the cost.
    mask = np.uint64((1 << digit_bits) - 1)
    below = np.uint64(shift)
    if prefix < 0:
        for i in range(size):
            histogram[(np.uint64(magnitude_bits(x[i])) >> below) & mask] += 1
    else:
        first = prefix << (shift + digit_bits)
        last = first + (np.int64(1) << (shift + digit_bits))
        # Unsigned, one comparison tells both borders.
        span = np.uint64(last - first)
        for i in range(size):
            above = np.uint64(magnitude_bits(x[i])) - np.uint64(first)
            if above < span:
                histogram[(above >> below) & mask] += 1


@inlined
def count_equal(x, size, bits):
    """Return how many elements have exactly these magnitude bits."""
    found = np.int32(0)
    for i in range(size):
        found += np.int32(np.int64(magnitude_bits(x[i])) == bits)
    return np.int64(found)


@inlined
def _border(zero, bits):
    """Return the bits of a bound in the type of ``magnitude_bits``, which vector lanes compare."""
    if is_double(zero):
        return np.int64(bits)
    return np.int32(min(bits, _MOST32))


@inlined
def keep_inside(x, size, bits, quota, seen):
    """Zero what lies outside a bound.

    Args:
        x: The next elements of the tensor.
        size: How many.
        bits: The bound's magnitude.
        quota: How many elements of that magnitude are inside.
        seen: How many of them came before ``x``.

    Returns:
        How many there are up to the end of ``x``, and how many numbers other than 0 are inside.
    """
    zero = x.dtype.type(0)
    kept = np.int32(0)
    equal = np.int32(0)
    border = _border(zero, bits)
    # While all ties of a block are inside, or none is, one comparison decides.
    decided = seen >= quota or seen + size <= quota
    if not decided:
        ties = count_equal(x, size, bits)
        decided = seen + ties <= quota
    if decided:
        least = _border(zero, bits if seen < quota else bits + 1)
        for i in range(size):
            here = magnitude_bits(x[i])
            inside = here >= least
            equal += np.int32(here == border)
            kept += np.int32(inside & (here != 0))
            x[i] = x[i] if inside else zero
        return seen + np.int64(equal), kept
    left = quota - seen
    for i in range(size):
        here = np.int64(magnitude_bits(x[i]))
        inside = here > bits
        if here == bits:
            inside = left > 0
            left -= 1
            equal += np.int32(1)
        if not inside:
            x[i] = zero
        kept += np.int32(x[i] != zero)
    return seen + np.int64(equal), kept


@inlined
def drop_inside(x, size, bits, quota, seen):
    """Zero what lies inside a bound; return how many elements equal it up to the end of ``x``.

    The arguments are those of ``keep_inside``.
    """
    zero = x.dtype.type(0)
    equal = count_equal(x, size, bits)
    if seen + equal <= quota or seen >= quota:
        least = bits if seen + equal <= quota else bits + 1
        for i in range(size):
            x[i] = zero if np.int64(magnitude_bits(x[i])) >= least else x[i]
    else:
        left = quota - seen
        for i in range(size):
            here = np.int64(magnitude_bits(x[i]))
            inside = here > bits
            if here == bits:
                inside = left > 0
                left -= 1
            if inside:
                x[i] = zero
    return seen + equal


@inlined
def count_targets(x, size, source, counts):
    """Count one digit for every target whose values are those of ``source``; see ``layout.py``."""
    num_targets = (len(counts) - 2) // (2 + DIGIT_BINS)
    for target in range(num_targets):
        if counts[2 + num_targets + target] == source:
            first = 2 + 2 * num_targets + DIGIT_BINS * target
            count_digit(
                x,
                size,
                counts[0],
                counts[1],
                counts[2 + target],
                counts[first : first + DIGIT_BINS],
            )


def task_vector_digits(
    inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
):
    """Count one digit of the magnitudes of all task vectors.

    inputs: the base and the models. counts: the digit layout of ``layout.py``.
    """
    for offset in range(0, count, BLOCK):
        size = min(BLOCK, count - offset)
        read_block(readers[0], inputs[0], start + offset, size, work, 0)
        base = work[0]
        x = work[1]
        for m in range(len(inputs) - 1):
            read_block(readers[1 + m], inputs[1 + m], start + offset, size, work, 1)
            for i in range(size):
                x[i] -= base[i]
            count_targets(x, size, m, counts)


def _catcher(source: str, real: Any) -> Any:
    """Make what gathers the magnitudes of a row that lie in a window.

    Args:
        source: ``stored`` or ``rows`` for those of the difference of two rows of these kinds, or
            ``magnitudes`` for a row of magnitudes.
        real: Type of the work rows.
    """
    word, lanes = (I64, 8) if real == F64 else (I32, 16)
    size = element_size(real)
    width = 2 if source == "stored" else size

    def number(emitter: Emitter, address: Lanes) -> Lanes:
        if source != "stored":
            return emitter.load(address, real, lanes)
        bits = emitter.load(address, I16, lanes).to(word) << 16
        return bits.bits_as(ir.VectorType(real, lanes))

    def catch(
        emitter: Emitter, count: Lanes, x: Lanes, base: Lanes, least: Lanes, span: Lanes,
        target: Lanes,
    ) -> Lanes:  # fmt: skip
        """Write what lies ``span`` or less above ``least``; count it, and 2**32 for what is above.

        count: a multiple of 64 bytes of the work rows. So much is written beyond what is caught.
        """
        low, height, top = (
            value.to(word).splat(lanes) for value in (least, span + 1, least + span)
        )
        none = emitter.number(0)
        with emitter.steps(count, lanes, none, none) as (i, found, above):
            if source == "magnitudes":
                here = emitter.load(x + i * width, word, lanes)
            else:
                delta = number(emitter, x + i * width) - number(emitter, base + i * width)
                here = delta.bits_as(ir.VectorType(word, lanes)) & ((1 << (8 * size - 1)) - 1)
            inside = (here - low) < height
            # Not the instruction that stores what it packs: it takes a hundred cycles on Zen 4.
            here.compress(inside).store(target + found[0] * size)
            found[0] += inside.count()
            above[0] += (top < here).count()
        return found[0] | (above[0] << 32)

    return emitted(catch)


_catch_singles = _catcher("magnitudes", F32)
_catch_doubles = _catcher("magnitudes", F64)
_COUNT = np.int64(0xFFFFFFFF)


def _window_kernel(*, stored: bool) -> Callable[..., object]:
    view = view_maker(stored=stored)
    catch_of_singles = _catcher("stored" if stored else "rows", F32)
    catch_of_doubles = _catcher("rows", F64)

    @inlined
    def catch(x, base, size, work, least, span, target):
        """Gather the magnitudes of a block that lie in a window, its borders included."""
        row = x.ctypes.data
        origin = base.ctypes.data
        step = 64 // work.itemsize
        whole = size // step * step
        if is_double(work.dtype.type(0)):
            caught = catch_of_doubles(whole, row, origin, least, span, target)
        else:
            caught = catch_of_singles(whole, row, origin, least, span, target)
        found = caught & _COUNT
        above = caught >> 32
        for i in range(whole, size):
            value = abs(value_of(x[i]) - value_of(base[i]))
            here = np.int64(magnitude_bits(value))
            if here > least + span:
                above += 1
            elif here >= least:
                last = carray(pointer(target + found * work.itemsize), 1, work.dtype)
                last[0] = value
                found += 1
        return found, above

    @inlined
    def gather(x, base, size, work, counts, at):
        """Count a block by one window, and append what lies strictly inside to its array."""
        caught = carray(pointer(work[2].ctypes.data), 2 * BLOCK, work.dtype)
        zero = work.dtype.type(0)
        least = np.int64(_border(zero, counts[at + 1]))
        greatest = np.int64(_border(zero, counts[at + 2]))
        span = greatest - least
        target = np.int64(caught.ctypes.data)
        found, above = catch(x, base, size, work, least, span, target)
        counts[at + 5] += above
        if found == 0:
            return
        on_top = np.int32(0)
        on_bottom = np.int32(0)
        for i in range(found):
            here = np.int64(magnitude_bits(caught[i]))
            on_top = np.int32(on_top + np.int32(here == greatest))
            on_bottom = np.int32(on_bottom + np.int32(here == least))
        counts[at + 6] += np.int64(on_top)
        counts[at + 8] += np.int64(on_bottom)
        inside = found - np.int64(on_top) - np.int64(on_bottom)
        known = counts[at + 7]
        if (span < 2) | (inside == 0):
            return
        counts[at + 7] += inside
        if counts[at + 7] > counts[at + 4]:
            return
        step = 64 // work.itemsize
        for i in range(found, found + step):
            caught[i] = zero  # below or on the border
        whole = (found + step - 1) // step * step
        place = counts[at + 3] + known * work.itemsize
        if is_double(zero):
            _catch_doubles(whole, target, target, least + 1, span - 2, place)
        else:
            _catch_singles(whole, target, target, least + 1, span - 2, place)

    def window(
        inputs, readers, has_base, width, start, count, params, output, writer, stats, counts, work
    ):
        for offset in range(0, count, BLOCK):
            size = min(BLOCK, count - offset)
            place = start + offset
            base, _ = view(inputs, readers, 0, place, size, work, 0)
            for m in range(1, len(inputs)):
                x, _ = view(inputs, readers, m, place, size, work, 1)
                for at in range(0, len(counts), WINDOW_WORDS):
                    if counts[at] + 1 == m:
                        gather(x, base, size, work, counts, at)

    return window


def _around_place(dtype: Any) -> Callable[..., object]:
    def around_place(address, num_numbers, least, greatest, place, enough, scratch, result):
        """Find between which bits lies what stands at ``place``, from 0, when they are sorted.

        At ``address`` are ``num_numbers`` of ``dtype``, all from ``least`` to ``greatest``.
        ``scratch`` is the address of int32[4 · (PLACE_STEPS + 1)], and ``result`` that of four
        int64: the least and the greatest bits, how many numbers are less, and how many lie
        between. These are at most ``enough``, or else equal.
        """
        numbers = carray(pointer(address), num_numbers, dtype)
        table = carray(pointer(scratch), 4 * (PLACE_STEPS + 1), np.int32)
        found = carray(pointer(result), 4, np.int64)
        below = np.int64(0)
        here = np.int64(num_numbers)
        while (least < greatest) & (here > enough):
            span = greatest - least
            shift = np.int64(0)
            while span >> shift >= PLACE_STEPS:
                shift += 1
            beyond = np.uint64((span >> shift) + 1)
            row = np.int64(beyond) + 1
            for i in range(4 * row):
                table[i] = np.int32(0)
            # Four tables in turn, because equal numbers are many, and each would wait for the
            # last.
            for i in range(num_numbers):
                step = min(np.uint64(np.int64(numbers[i]) - least) >> np.uint64(shift), beyond)
                table[np.uint64(np.int64(i & 3) * row) + step] += np.int32(1)
            step = np.int64(0)
            while True:
                here = np.int64(0)
                for i in range(4):
                    here += np.int64(table[i * row + step])
                if (here > place) | (step + 2 == row):
                    break
                place -= here
                below += here
                step += 1
            least += step << shift
            greatest = least + (np.int64(1) << shift) - 1
        found[0] = least
        found[1] = greatest
        found[2] = below
        found[3] = here

    return around_place


def __getattr__(name: str) -> Callable[..., object]:
    """Make a kernel from its name.

    ``task_vector_window_<stored or rows>`` counts all task vectors by windows of magnitudes, and
    gathers what is inside them. inputs: the base and the models. counts: the window layout of
    ``layout.py``. ``around_place_<int32 or int64>`` is no merge kernel; it takes words.
    """
    if name in ("around_place_int32", "around_place_int64"):
        return _around_place(np.dtype(name.rpartition("_")[2]))
    words = name.rpartition("_")
    if words[0] == "task_vector_window":
        return _window_kernel(stored=words[2] == "stored")
    raise AttributeError(name)
