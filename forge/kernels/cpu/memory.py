"""Read and write tensor elements in blocks: any float format in memory, float32 or float64 in work.

Every merge kernel follows one pattern: it walks a tensor in blocks of ``BLOCK`` elements,
``read_block`` widens a block of each input into a row of a small work array that stays in the
first-level caches, plain loops do the arithmetic there, and ``write_block`` rounds the result
once, to nearest even, into the output format. So main memory is read once and written once,
and results cannot depend on how a tensor is cut.

The readers and writers are compiled apart, one for each format, and called through their
addresses once a block. A method's loop is therefore compiled once for all formats, which keeps
the first run short, and the call costs nothing beside 1,024 elements of work.

Addresses are integers; the caller has checked that ``start + count`` elements lie behind them.
This module needs numba and is imported only to compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from forge.kernels.cpu.compiler import inlined
from forge.kernels.cpu.layout import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable


_SIXTEEN = np.uint32(16)
_LOW16 = np.uint32(0xFFFF)
_HALFWAY = np.uint32(0x8000)


@intrinsic
def pointer(typingctx, address):
    """Turn an int64 into a ``void*``."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def single_of(typingctx, bits):
    """Reinterpret 32 bits as float32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), codegen


@intrinsic
def double_of(typingctx, bits):
    """Reinterpret 64 bits as float64."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.int64), codegen


@intrinsic
def bits_of(typingctx, value):
    """Reinterpret a float32 or float64 as an unsigned integer of its width."""
    unsigned = types.uint32 if value == types.float32 else types.uint64

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(unsigned))

    return unsigned(value), codegen


@intrinsic
def shifted(typingctx, value, amount):
    """Shift 32 bits right. numba's own shift widens to 64, which takes twice the vectors."""

    def codegen(context, builder, signature, args):
        return builder.lshr(args[0], args[1])

    return types.uint32(types.uint32, types.uint32), codegen


@intrinsic
def is_double(typingctx, value):
    """Tell float64 from float32 at compile time, so that the other branch vanishes."""
    answer = value == types.float64

    def codegen(context, builder, signature, args):
        return context.get_constant(types.boolean, answer)

    return types.boolean(value), codegen


@intrinsic
def _call(typingctx, function, address, start, count, row):
    """Call a compiled reader or writer through its address."""

    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        prototype = ir.FunctionType(word, [word] * 4).as_pointer()
        target = builder.inttoptr(args[0], prototype)
        return builder.call(target, list(args[1:]))

    return types.int64(*[types.int64] * 5), codegen


@intrinsic
def _prefetch(typingctx, address):
    """Ask for the cache line at an address; an address beyond the mapping does nothing."""

    def codegen(context, builder, signature, args):
        byte, word = ir.IntType(8), ir.IntType(32)
        prototype = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), word, word, word])
        function = cgutils.get_or_insert_function(builder.module, prototype, "llvm.prefetch.p0")
        pointer = builder.inttoptr(args[0], byte.as_pointer())
        builder.call(function, [pointer, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@inlined
def prefetch_block(address, num_bytes):
    """Load what the next block will read while this one is computed.

    A block is a burst of a few kilobytes from each input, too short for the hardware to see
    ahead across inputs and pages.
    """
    for line in range(0, num_bytes, 64):
        _prefetch(address + line)


@inlined
def wide(work, row):
    """Return work rows ``row`` and ``row + 1`` as one row of float64, for sums."""
    return carray(pointer(work.ctypes.data + row * BLOCK * work.itemsize), BLOCK, np.float64)


@inlined
def words_of(work, row):
    """Return work row ``row`` as ``BLOCK`` numbers of 32 bits."""
    return carray(pointer(work.ctypes.data + row * BLOCK * work.itemsize), BLOCK, np.uint32)


@inlined
def read_block(reader, address, start, count, work, row):
    """Widen elements from ``start`` into ``work[row]``; return 1 when any is not finite."""
    target = work.ctypes.data + np.int64(row) * BLOCK * work.itemsize
    return _call(reader, address, start, count, target)


@inlined
def write_block(writer, address, start, count, work, row):
    """Round the ``wide`` row into elements from ``start``; return 1 when any is not finite."""
    target = work.ctypes.data + np.int64(row) * BLOCK * work.itemsize
    return _call(writer, address, start, count, target)


@inlined
def _single_of_half(half):
    magnitude = half & np.uint32(0x7FFF)
    # 2**112 moves the exponent bias from 15 to 127 and normalises subnormals, exactly.
    widened = bits_of(single_of(magnitude << np.uint32(13)) * np.float32(2.0**112))
    if magnitude >= np.uint32(0x7C00):
        widened |= np.uint32(0x7F800000)
    return single_of(widened | ((half & np.uint32(0x8000)) << np.uint32(16)))


@inlined
def _half_of_single(bits):
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    # 0xC8000FFF = ((15 - 127) << 23) + 0xFFF: rebias, and round half to even with `odd`.
    normal = (magnitude + np.uint32(0xC8000FFF) + odd) >> np.uint32(13)
    # Adding 0.5 aligns a subnormal half with the low mantissa bits, and the adder rounds it.
    subnormal = bits_of(single_of(magnitude) + np.float32(0.5)) - np.uint32(0x3F000000)
    is_nan = magnitude > np.uint32(0x7F800000)
    special = np.uint32(0x7E00) if is_nan else np.uint32(0x7C00)
    half = subnormal if magnitude < np.uint32(0x38800000) else normal
    half = special if magnitude >= np.uint32(0x47800000) else half
    return np.uint16(half | sign)


@inlined
def _odd_bits(value):
    """Bits of ``value`` as float32, rounded to odd, so that a second rounding is exact."""
    if not is_double(value):
        return bits_of(np.float32(value))
    near = np.float32(value)
    back = np.float64(near)
    bits = bits_of(near)
    # Overflow to infinity steps back to the greatest float32, which rounds up again below.
    bits = np.uint32(bits - np.uint32(abs(back) > abs(value)))
    return np.uint32(bits | np.uint32(back != value))


def read_bf16(address, start, count, x):
    """Widen bfloat16."""
    prefetch_block(address + 2 * (start + count), 2 * count)
    words = carray(pointer(address + 2 * start), count, np.uint16)
    top = np.uint32(0)
    for i in range(count):
        word = np.uint32(words[i])
        x[i] = single_of(np.uint32(word << np.uint32(16)))
        top = max(top, np.uint32(word & np.uint32(0x7F80)))
    return np.int64(top == np.uint32(0x7F80))


def read_f16(address, start, count, x):
    """Widen float16, subnormals included."""
    prefetch_block(address + 2 * (start + count), 2 * count)
    words = carray(pointer(address + 2 * start), count, np.uint16)
    top = np.uint32(0)
    for i in range(count):
        word = np.uint32(words[i])
        x[i] = _single_of_half(word)
        top = max(top, np.uint32(word & np.uint32(0x7C00)))
    return np.int64(top == np.uint32(0x7C00))


def read_f32(address, start, count, x):
    """Copy or widen float32."""
    prefetch_block(address + 4 * (start + count), 4 * count)
    singles = carray(pointer(address + 4 * start), count, np.float32)
    top = np.uint32(0)
    for i in range(count):
        single = singles[i]
        x[i] = single
        top = max(top, np.uint32(bits_of(single) & np.uint32(0x7F800000)))
    return np.int64(top == np.uint32(0x7F800000))


def read_f64(address, start, count, x):
    """Copy float64."""
    prefetch_block(address + 8 * (start + count), 8 * count)
    doubles = carray(pointer(address + 8 * start), count, np.float64)
    top = np.uint32(0)
    for i in range(count):
        x[i] = doubles[i]
        top |= np.uint32(not np.isfinite(doubles[i]))
    return np.int64(top)


def write_bf16(address, start, count, x):
    """Round to bfloat16, to nearest even; a NaN stays a NaN."""
    words = carray(pointer(address + 2 * start), count, np.uint16)
    greatest = np.uint32(0)
    doubtful = np.uint32(0)
    for i in range(count):
        # Rounding twice goes wrong only where the first result lies half-way for the second one,
        # and is not exact: once in 65,536 elements.
        near = np.float32(x[i])
        bits = bits_of(near)
        doubtful |= np.uint32(np.uint32(bits & _LOW16) == _HALFWAY) & np.uint32(near != x[i])
        odd = shifted(bits, _SIXTEEN) & np.uint32(1)
        word = shifted(np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + odd), _SIXTEEN)
        greatest = max(greatest, np.uint32(word & np.uint32(0x7F80)))
        words[i] = np.uint16(word)
    if (greatest < np.uint32(0x7F80)) & (doubtful == np.uint32(0)):
        return np.int64(0)
    # Something is infinite, a NaN, too great, or doubtful: go slowly.
    top = np.uint32(0)
    for i in range(count):
        bits = _odd_bits(x[i])
        rounded_up = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        word = ((bits | np.uint32(0x400000)) if is_nan else rounded_up) >> np.uint32(16)
        words[i] = np.uint16(word)
        top = max(top, np.uint32(word & np.uint32(0x7F80)))
    return np.int64(top == np.uint32(0x7F80))


def write_f16(address, start, count, x):
    """Round to float16, to nearest even; what exceeds 65504 becomes infinite and is counted."""
    words = carray(pointer(address + 2 * start), count, np.uint16)
    top = np.uint32(0)
    for i in range(count):
        half = _half_of_single(_odd_bits(x[i]))
        words[i] = half
        top = max(top, np.uint32(half & np.uint32(0x7C00)))
    return np.int64(top == np.uint32(0x7C00))


def write_f32(address, start, count, x):
    """Copy or round to float32."""
    singles = carray(pointer(address + 4 * start), count, np.float32)
    top = np.uint32(0)
    for i in range(count):
        single = np.float32(x[i])
        singles[i] = single
        top = max(top, np.uint32(bits_of(single) & np.uint32(0x7F800000)))
    return np.int64(top == np.uint32(0x7F800000))


def write_f64(address, start, count, x):
    """Copy float64."""
    doubles = carray(pointer(address + 8 * start), count, np.float64)
    top = np.uint32(0)
    for i in range(count):
        doubles[i] = x[i]
        top |= np.uint32(not np.isfinite(x[i]))
    return np.int64(top)


READERS: dict[str, Callable[..., object]] = {
    "BF16": read_bf16,
    "F16": read_f16,
    "F32": read_f32,
    "F64": read_f64,
}
WRITERS: dict[str, Callable[..., object]] = {
    "BF16": write_bf16,
    "F16": write_f16,
    "F32": write_f32,
    "F64": write_f64,
}
