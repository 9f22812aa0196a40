"""Elements where they are stored: bfloat16 read and written without a work row in between.

A work row costs a store and a load for each element of each input, more than the arithmetic of
most methods. So where all tensors of a merge are bfloat16, as nearly always, a kernel takes the
mapped files themselves for its rows, ``value_of`` widens in registers, and the result is rounded
there. Other formats, and mixtures of them, are read into work rows by ``read_block``. A loop is
written once for both: ``view_maker`` gives it rows, ``value_of`` their numbers, and
``target_maker`` a row for the results.

Imported only to compile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from forge.kernels.cpu.memory import (
    bits_of,
    double_of,
    inlined,
    pointer,
    read_block,
    shifted,
    wide,
    write_block,
)

_SIXTEEN = np.uint32(16)
_INFINITE = np.uint16(0x7F80)
_SIGN = np.uint64(1 << 63)
_EXPONENT = np.int64(0x7FF << 52)
_LEAST_NORMAL = np.int64((1023 - 126) << 52)
_ALIGNER = np.int64((45 << 52) | (1 << 51))


@intrinsic
def value_of(typingctx, stored):
    """Return a stored number as it is worked with: bfloat16 bits widened, a float as it is."""
    is_bfloat = stored == types.uint16
    real = types.float32 if is_bfloat else stored

    def codegen(context, builder, signature, args):
        if not is_bfloat:
            return args[0]
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(args[0], word), word(16))
        return builder.bitcast(bits, ir.FloatType())

    return real(stored), codegen


@intrinsic
def added(typingctx, total, value):
    """Return a sum whose order the compiler may change, as ``reordered`` allows a whole function.

    For what is shown and not written, beside arithmetic that must stay as it is.
    """

    def codegen(context, builder, signature, args):
        return builder.fadd(args[0], args[1], flags=("reassoc", "nsz"))

    return total(total, total), codegen


@inlined
def rounded(value):
    """Return the bits of a float64 as bfloat16, rounded once, to nearest even.

    Adding a number of 45 octaves above rounds away all bits but eight, or those that a subnormal
    bfloat16 has, exactly as the adder rounds; subtracting it again leaves what float32 holds
    exactly, but for the sign of a zero. An infinity or a NaN remains one.
    """
    exponent = max(np.int64(bits_of(value) & np.uint64(_EXPONENT)), _LEAST_NORMAL)
    aligner = double_of(np.int64(exponent + _ALIGNER))
    short = np.int64(bits_of((value + aligner) - aligner) | (bits_of(value) & _SIGN))
    return shifted(bits_of(np.float32(double_of(short))), _SIXTEEN)


@inlined
def is_not_finite(words):
    """Return 1 when any of some bfloat16 numbers is not finite."""
    top = np.uint16(0)
    for i in range(len(words)):
        top = max(top, np.uint16(words[i] & _INFINITE))
    return np.int64(top == _INFINITE)


def view_maker(*, stored: bool) -> Callable[..., object]:
    """Make what gives a kernel ``size`` elements of input ``m`` as a row.

    Args:
        stored: Whether they are bfloat16 and taken as they are stored, or read into a work row.

    Returns:
        A function of inputs, readers, the input, position, size, work and the work row, that
        returns the row, and 1 when reading it met what is not finite. Nothing is read of what is
        stored; see ``is_not_finite``.
    """
    if not stored:

        @inlined
        def read(inputs, readers, m, position, size, work, row):
            bad = read_block(readers[m], inputs[m], position, size, work, row)
            return work[row][:size], bad

        return read

    @inlined
    def view(inputs, readers, m, position, size, work, row):
        # No prefetching: the loop that follows walks on without a break, and processors see that.
        return carray(pointer(inputs[m] + 2 * position), size, np.uint16), np.int64(0)

    return view


def target_maker(*, stored: bool) -> tuple[Callable[..., object], ...]:
    """Make the functions that take a kernel's results: ``begin``, ``settled`` and ``end``.

    ``begin(output, offset, size, work, row)`` returns a row for what ``settled(value)`` makes of a
    float64, and ``end(writer, output, offset, size, work, row, target)`` rounds what is not rounded
    yet and returns 1 when anything is not finite.
    """
    if not stored:

        @inlined
        def begin(output, offset, size, work, row):
            return wide(work, row)[:size]

        @inlined
        def settled(value):
            return value

        @inlined
        def end(writer, output, offset, size, work, row, target):
            return write_block(writer, output, offset, size, work, row)

        return begin, settled, end

    @inlined
    def begin_stored(output, offset, size, work, row):
        return carray(pointer(output + 2 * offset), size, np.uint16)

    @inlined
    def settled_stored(value):
        return np.uint16(rounded(value))

    @inlined
    def end_stored(writer, output, offset, size, work, row, target):
        return is_not_finite(target)

    return begin_stored, settled_stored, end_stored
