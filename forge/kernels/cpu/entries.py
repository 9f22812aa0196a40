"""The C entry points around kernels, compiled by numba; imported only to compile."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from forge.kernels.cpu.compiler import compiling, inlined
from forge.kernels.cpu.layout import BLOCK, UNREACHABLE, Compute
from forge.kernels.cpu.memory import pointer


@dataclass(frozen=True, slots=True)
class Compiled:
    """Machine code of one entry point.

    Attributes:
        symbol: Name of the entry point in the object code.
        code: The relocatable object file.
        keep: What must stay alive while numba's own copy of the code is in use.
    """

    symbol: str
    code: bytes
    keep: object


def compile_entry(function: Callable[..., object], compute: Compute, *, block: bool) -> Compiled:
    """Compile a kernel behind the C signature of ``native.py``.

    Args:
        function: The kernel, over arrays, or a reader or writer of ``memory.py``.
        compute: Type of the work rows.
        block: Whether ``function`` is a reader or writer.
    """
    body = inlined(function)
    real = np.float32 if compute == "float32" else np.float64

    def block_entry(address, start, count, row):
        return body(address, start, count, carray(pointer(row), BLOCK, real))

    def merge_entry(
        inputs,
        num_inputs,
        readers,
        has_base,
        width,
        start,
        count,
        params,
        num_params,
        output,
        writer,
        stats,
        num_stats,
        counts,
        num_counts,
        work,
        num_rows,
    ):
        body(
            carray(pointer(inputs), num_inputs, np.int64),
            carray(pointer(readers), num_inputs, np.int64),
            has_base,
            width,
            start,
            count,
            carray(pointer(params), num_params, np.float64),
            output,
            writer,
            carray(pointer(stats), num_stats, np.float64),
            carray(pointer(counts), num_counts, np.int64),
            carray(pointer(work), (num_rows, BLOCK), real),
        )

    word = types.int64
    if block:
        return _compiled(function, block_entry, types.int64(*[word] * 4))
    return _compiled(function, merge_entry, types.void(*[word] * 17))


def compile_words(function: Callable[..., object], num_words: int) -> Compiled:
    """Compile a kernel whose arguments are all int64.

    Args:
        function: The kernel.
        num_words: How many arguments it takes.
    """
    return _compiled(function, function, types.void(*[types.int64] * num_words))


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep Python from looking for garbage: numba makes none, but objects enough to look often."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _compiled(
    function: Callable[..., object], entry: Callable[..., object], signature: Any
) -> Compiled:
    with _without_collector(), compiling(entry.__name__):
        callback = cfunc(signature, nogil=True, error_model="numpy")(entry)
    library = callback._library
    _refuse_foreign_symbols(function.__qualname__, library)
    code = library.codegen._tm.emit_object(library._final_module)
    # The wrapper carries the C calling convention; native_name is numba's internal function.
    return Compiled(callback._wrapper_name, code, callback)


_LIBC = frozenset({"memcpy", "memmove", "memset", "log", "floor"})


def _refuse_foreign_symbols(name: str, library: object) -> None:
    """Stop when a kernel needs numba's runtime, which later runs do not load.

    Raises:
        RuntimeError: The kernel calls a function that the loader cannot provide.
    """
    declared = {
        function.name
        for function in library._final_module.functions
        if function.is_declaration and not function.name.startswith(("llvm.", "Py"))
    }
    foreign = sorted(declared - _LIBC - set(UNREACHABLE))
    if foreign:
        raise RuntimeError(f"kernel {name} needs {', '.join(foreign)}; write it without")
