"""Vectors with Python's operators, for loops that are written in LLVM's words.

Most of the time that numba takes goes into types and into lines of Python, and LLVM finds no
vectors in loops that pack, list or count. A loop made here costs neither: its body is Python that
runs once, while a kernel is compiled, and emits an operation for each operator.

    @emitted
    def double(emitter, count, address):
        with emitter.steps(count, 16) as (i,):
            (emitter.load(address + (i << 2), I32, 16) << 1).store(address + (i << 2))

Whole numbers are unsigned in comparisons, minima and right shifts. Imported only to compile.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

I16, I32, I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()


class Lanes:
    """A vector, or a single number, that is computed where the builder stands.

    The other operand of an operator may be a plain Python number or a single number, which then
    stand in every lane.
    """

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder = builder
        self.value = value

    @property
    def _type(self) -> Any:
        return self.value.type

    @property
    def _is_real(self) -> bool:
        return getattr(self._type, "element", self._type) in (F32, F64)

    def _other(self, other: Lanes | float) -> Any:
        if not isinstance(other, Lanes):
            if isinstance(self._type, ir.VectorType):
                return ir.Constant(self._type, [other] * self._type.count)
            return ir.Constant(self._type, other)
        if isinstance(self._type, ir.VectorType) and not isinstance(other._type, ir.VectorType):
            return other.splat(self._type.count).value
        return other.value

    def _made(self, value: Any) -> Lanes:
        return Lanes(self.builder, value)

    def _call(self, name: str, result: Any, *arguments: Any) -> Lanes:
        """Call one of LLVM's own functions."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self._made(self.builder.call(_declared(self.builder, name, kind), arguments))

    def __add__(self, other: Lanes | float) -> Lanes:
        add = self.builder.fadd if self._is_real else self.builder.add
        return self._made(add(self.value, self._other(other)))

    def __sub__(self, other: Lanes | float) -> Lanes:
        sub = self.builder.fsub if self._is_real else self.builder.sub
        return self._made(sub(self.value, self._other(other)))

    def __mul__(self, other: Lanes | float) -> Lanes:
        mul = self.builder.fmul if self._is_real else self.builder.mul
        return self._made(mul(self.value, self._other(other)))

    def __truediv__(self, other: Lanes | float) -> Lanes:
        return self._made(self.builder.fdiv(self.value, self._other(other)))

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._made(self.builder.and_(self.value, self._other(other)))

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._made(self.builder.or_(self.value, self._other(other)))

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self._made(self.builder.xor(self.value, self._other(other)))

    def __lshift__(self, other: Lanes | int) -> Lanes:
        return self._made(self.builder.shl(self.value, self._other(other)))

    def __rshift__(self, other: Lanes | int) -> Lanes:
        return self._made(self.builder.lshr(self.value, self._other(other)))

    def __lt__(self, other: Lanes | int) -> Lanes:
        return self._made(self.builder.icmp_unsigned("<", self.value, self._other(other)))

    def equals(self, other: Lanes | int) -> Lanes:
        """Compare for equality."""
        return self._made(self.builder.icmp_unsigned("==", self.value, self._other(other)))

    def differs(self, other: Lanes | int) -> Lanes:
        """Compare for inequality."""
        return self._made(self.builder.icmp_unsigned("!=", self.value, self._other(other)))

    def least(self, other: Lanes | int) -> Lanes:
        """Return the lesser of both."""
        return (self < other).choose(self, self._made(self._other(other)))

    def greatest(self, other: Lanes | int) -> Lanes:
        """Return the greater of both."""
        return (self < other).choose(self._made(self._other(other)), self)

    def choose(self, yes: Lanes, no: Lanes | float) -> Lanes:
        """Take ``yes`` where this comparison holds, else ``no``."""
        return self._made(self.builder.select(self.value, yes.value, yes._other(no)))

    def splat(self, count: int) -> Lanes:
        """Put a single number into every lane of a vector."""
        vector = ir.VectorType(self._type, count)
        first = self.builder.insert_element(ir.Constant(vector, ir.Undefined), self.value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, count), [0] * count)
        return self._made(self.builder.shuffle_vector(first, first, zeros))

    def to(self, element: Any) -> Lanes:
        """Convert every lane; whole numbers get zeros above, real ones are cut to signed ones."""
        target = element
        if isinstance(self._type, ir.VectorType):
            target = ir.VectorType(element, self._type.count)
        known = getattr(self._type, "element", self._type)
        if known == element:
            return self
        convert = self.builder.trunc
        if self._is_real and element in (F32, F64):
            convert = self.builder.fptrunc if element == F32 else self.builder.fpext
        elif self._is_real:
            convert = self.builder.fptosi
        elif element in (F32, F64):
            convert = self.builder.uitofp
        elif known.width < element.width:
            convert = self.builder.zext
        return self._made(convert(self.value, target))

    def bits_as(self, kind: Any) -> Lanes:
        """Reinterpret the bits."""
        return self._made(self.builder.bitcast(self.value, kind))

    def joined(self, other: Lanes) -> Lanes:
        """Return all lanes, and then those of ``other``."""
        order = list(range(2 * self._type.count))
        chosen = ir.Constant(ir.VectorType(I32, len(order)), order)
        return self._made(self.builder.shuffle_vector(self.value, other.value, chosen))

    def alternate(self, other: Lanes) -> Lanes:
        """Return the lower half of every lane, followed by that of the same lane of ``other``."""
        count = self._type.count
        halves = ir.VectorType(ir.IntType(self._type.element.width // 2), 2 * count)
        order = [place for lane in range(0, 2 * count, 2) for place in (lane, 2 * count + lane)]
        left, right = (self.builder.bitcast(value, halves) for value in (self.value, other.value))
        chosen = ir.Constant(ir.VectorType(I32, 2 * count), order)
        return self._made(self.builder.shuffle_vector(left, right, chosen))

    def moved(self, distance: int) -> Lanes:
        """Move every lane up, and zeros into the first ones."""
        count = self._type.count
        zeros = ir.Constant(self._type, [0] * count)
        order = [count + i - distance if i >= distance else 0 for i in range(count)]
        chosen = ir.Constant(ir.VectorType(I32, count), order)
        return self._made(self.builder.shuffle_vector(zeros, self.value, chosen))

    def store(self, address: Lanes) -> None:
        """Write to an address, which need not be aligned."""
        element = getattr(self._type, "element", self._type)
        pointer = self.builder.inttoptr(address.value, self._type.as_pointer())
        self.builder.store(self.value, pointer, align=element_size(element))

    def reduce(self, name: str) -> Lanes:
        """Reduce all lanes to one number: ``add``, ``or``, ``umax`` or ``umin``."""
        element = self._type.element
        kind = f"v{self._type.count}i{element.width}"
        return self._call(f"llvm.vector.reduce.{name}.{kind}", element, self.value)

    def compress(self, chosen: Lanes) -> Lanes:
        """Move the chosen lanes to the front; the others are undefined."""
        rest = ir.Constant(self._type, ir.Undefined)
        name = f"llvm.experimental.vector.compress.v{self._type.count}i{self._type.element.width}"
        return self._call(name, self._type, self.value, chosen.value, rest)

    def count(self) -> Lanes:
        """Count the lanes where this comparison holds."""
        mask = ir.IntType(self._type.count)
        counted = self.builder.ctpop(self.builder.bitcast(self.value, mask))
        return self._made(self.builder.zext(counted, I64))


def _declared(builder: ir.IRBuilder, name: str, kind: ir.FunctionType) -> Any:
    known = builder.module.globals.get(name)
    return ir.Function(builder.module, kind, name) if known is None else known


def element_size(element: Any) -> int:
    """Return the bytes of one lane."""
    if element in (F32, F64):
        return 4 if element == F32 else 8
    size: int = element.width // 8
    return size


class Emitter:
    """Makes what a loop begins with: numbers, loads, loops and variables."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def number(self, value: float, element: Any = I64) -> Lanes:
        """Return a constant number."""
        return Lanes(self.builder, ir.Constant(element, value))

    def vector(self, values: list[int], element: Any) -> Lanes:
        """Return a constant vector."""
        return Lanes(self.builder, ir.Constant(ir.VectorType(element, len(values)), values))

    def load(self, address: Lanes, element: Any, count: int = 1) -> Lanes:
        """Read a vector, or a single number, from an address that need not be aligned."""
        kind = element if count == 1 else ir.VectorType(element, count)
        pointer = self.builder.inttoptr(address.value, kind.as_pointer())
        return Lanes(self.builder, self.builder.load(pointer, align=element_size(element)))

    def packed(self, numbers: list[Lanes]) -> Lanes:
        """Put single numbers into the lanes of a vector."""
        vector = ir.Constant(ir.VectorType(numbers[0].value.type, len(numbers)), ir.Undefined)
        for lane, number in enumerate(numbers):
            vector = self.builder.insert_element(vector, number.value, I32(lane))
        return Lanes(self.builder, vector)

    def call(self, function: Lanes, *words: Lanes) -> None:
        """Call through an address what takes and returns int64."""
        kind = ir.FunctionType(I64, [I64] * len(words))
        target = self.builder.inttoptr(function.value, kind.as_pointer())
        self.builder.call(target, [word.value for word in words])

    def prefetch(self, address: Lanes) -> None:
        """Ask for the cache line at an address; one beyond the mapping does nothing."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = _declared(self.builder, "llvm.prefetch.p0", kind)
        pointer = self.builder.inttoptr(address.value, byte)
        self.builder.call(function, [pointer, I32(0), I32(3), I32(1)])

    @contextmanager
    def steps(self, stop: Lanes, step: int, *variables: Lanes) -> Iterator[tuple[Any, ...]]:
        """Repeat for every ``step``-th number below ``stop``, a multiple of ``step``.

        Yields the number, and the variables: lists of one value, which the loop may replace.
        """
        builder = self.builder
        before = builder.block
        body = builder.append_basic_block("steps")
        after = builder.append_basic_block("after")
        builder.cbranch(builder.icmp_unsigned("!=", stop.value, ir.Constant(I64, 0)), body, after)
        builder.position_at_end(body)
        phis = [builder.phi(I64), *[builder.phi(variable.value.type) for variable in variables]]
        starts = [ir.Constant(I64, 0), *[variable.value for variable in variables]]
        held = [[Lanes(builder, phi)] for phi in phis[1:]]
        index = Lanes(builder, phis[0])
        yield (index, *held)
        following = (index + step).value
        ends = [following, *[variable[0].value for variable in held]]
        last = builder.block
        builder.cbranch(builder.icmp_unsigned("!=", following, stop.value), body, after)
        for phi, begin, end in zip(phis, starts, ends, strict=True):
            phi.add_incoming(begin, before)
            phi.add_incoming(end, last)
        builder.position_at_end(after)
        for variable, begin, end in zip(held, starts[1:], ends[1:], strict=True):
            result = builder.phi(begin.type)
            result.add_incoming(begin, before)
            result.add_incoming(end, last)
            variable[0] = Lanes(builder, result)


def emitted(emit: Callable[..., Lanes | None], *, reals: int = 0) -> Any:
    """Turn a function that emits a loop into one that kernels call.

    Args:
        emit: Gets an ``Emitter`` and the arguments: int64, then, at the end, float64. It returns a
            number of int64, or ``None`` for 0.
        reals: How many of the arguments are float64.
    """
    typing, *arguments = inspect.signature(emit).parameters.values()
    words = len(arguments) - reals
    signature = types.int64(*[types.int64] * words, *[types.float64] * reals)

    def codegen(context: Any, builder: Any, _: Any, values: Any) -> Any:
        found = emit(Emitter(builder), *[Lanes(builder, value) for value in values])
        return ir.Constant(I64, 0) if found is None else found.value

    def typed(*_: Any) -> Any:
        return signature, codegen

    # numba binds calls by the names of the parameters.
    typed.__signature__ = inspect.Signature([typing, *arguments])  # type: ignore[attr-defined]
    typed.__name__ = emit.__name__
    return intrinsic(typed)
