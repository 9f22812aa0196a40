"""Sixteen lanes at a time: the words in which the kernels over packed weights are written.

Loops over packed codes live or die by a handful of instructions, and what a compiler makes of
scalar loops changes with its version. These functions therefore emit vectors of sixteen 32-bit
lanes as LLVM knows them. They run on any CPU: LLVM cuts them into what there is (two halves
with AVX2, four quarters with NEON). Only ``code_values`` asks for the CPU's own instruction,
and only where it has it.

A builder ``b`` is LLVM's; addresses are int64 values in it. Imported only to compile.
"""

from __future__ import annotations

from llvmlite import binding, ir
from numba.core import cgutils

from forge.kernels.cpu.quantized.packed_layout import LANES

BYTE, WORD, ADDRESS, SINGLE = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES = ir.VectorType(BYTE, LANES)
SHORTS = ir.VectorType(ir.IntType(16), LANES)
WORDS = ir.VectorType(WORD, LANES)
HALVES = ir.VectorType(ir.HalfType(), LANES)
SINGLES = ir.VectorType(SINGLE, LANES)


def every_lane(kind, value):
    """Return a constant vector that holds ``value`` in every lane."""
    return ir.Constant(kind, [value] * LANES)


def at(b, address, index, stride):
    """Return ``address + index * stride``, the stride in bytes and known to the compiler."""
    return b.add(address, b.mul(index, ADDRESS(stride)))


def load(b, kind, address, alignment):
    """Return the vector or number at an address that is a multiple of ``alignment``.

    A vector that lies in one cache line is read as fast with a small ``alignment``, which is the
    one to state: a promise that is broken ends the process.
    """
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = alignment
    return value


def store(b, value, address, alignment):
    """Write a vector to an address that is a multiple of ``alignment``."""
    b.store(value, b.inttoptr(address, value.type.as_pointer())).align = alignment


def splat(b, number):
    """Return a vector that holds a float32 in every lane."""
    nothing = ir.Constant(SINGLES, ir.Undefined)
    first = b.insert_element(nothing, number, WORD(0))
    return b.shuffle_vector(first, nothing, every_lane(WORDS, 0))


def multiply_add(b, x, y, z):
    """Return ``x * y + z``, rounded once where the CPU can."""
    return _call(b, "llvm.fmuladd.v16f32", SINGLES, [x, y, z])


def prefetch(b, address):
    """Ask for the cache line at an address; one beyond the mapping does nothing."""
    pointer = b.inttoptr(address, BYTE.as_pointer())
    _call(b, "llvm.prefetch.p0", ir.VoidType(), [pointer, WORD(0), WORD(3), WORD(1)])


def code_values(b, words, number, *, bits, table, portable):
    """Return what code ``number`` of each word stands for: itself, or its place in a table.

    AVX-512 looks sixteen numbers up by the low four bits of sixteen lanes in one instruction,
    which replaces a mask and a conversion. Elsewhere, and with ``portable``, a table costs a
    choice for each of its halves.
    """
    low = b.lshr(words, every_lane(WORDS, bits * number)) if number else words
    if bits == 4 and not portable and binding.get_host_cpu_features().get("avx512f"):
        values = ir.Constant(SINGLES, list(table or map(float, range(16))))
        return _call(b, "llvm.x86.avx512.permvar.sf.512", SINGLES, [values, low])
    if table:
        return _choose(b, low, [every_lane(SINGLES, value) for value in table])
    return b.uitofp(b.and_(low, every_lane(WORDS, (1 << bits) - 1)), SINGLES)


def _choose(b, words, values):
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    bit = b.and_(words, every_lane(WORDS, half))
    is_high = b.icmp_unsigned("!=", bit, every_lane(WORDS, 0))
    return b.select(is_high, _choose(b, words, values[half:]), _choose(b, words, values[:half]))


def to_bf16(b, singles):
    """Round finite float32 to bfloat16, to nearest even, and return the bits."""
    bits = b.bitcast(singles, WORDS)
    odd = b.and_(b.lshr(bits, every_lane(WORDS, 16)), every_lane(WORDS, 1))
    rounded = b.add(b.add(bits, every_lane(WORDS, 0x7FFF)), odd)
    return b.trunc(b.lshr(rounded, every_lane(WORDS, 16)), SHORTS)


def _call(b, name, kind, arguments):
    prototype = ir.FunctionType(kind, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, prototype, name), arguments)
