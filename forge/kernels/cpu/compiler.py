"""numba, told to use the whole width of the processor's vectors.

LLVM prefers vectors of 256 bits on processors that have 512, because the first of them slowed
down when all were used. Kernels are a tenth to a third faster with 512. numba reads these
settings when the first function is decorated, so every kernel module gets numba from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

import llvmlite.binding as llvm
from numba import config, njit
from numba.core.codegen import CPUCodeLibrary

config.CPU_NAME = llvm.get_host_cpu_name()
config.CPU_FEATURES = f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"

_INNER: Final = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

inlined = njit(**_INNER)
"""Compile a function that kernels call; LLVM inlines it."""

reordered = njit(fastmath={"reassoc", "nsz"}, **_INNER)
"""As ``inlined``, for sums that the compiler may reorder: in source order none uses vectors."""


@contextmanager
def optimizing_only(names: Collection[str]) -> Iterator[None]:
    """Optimize no function but those of these names, and what they call within them.

    numba optimizes and vectorizes every function before it is inlined into its caller, and there
    again: for a kernel of twenty small functions that is a third of the compilation.

    Args:
        names: Names of the entry points, without what qualifies them.
    """
    optimize = CPUCodeLibrary._optimize_final_module

    def optimize_entries(library: CPUCodeLibrary) -> None:
        if library.name.rpartition(".")[2] in names:
            optimize(library)

    CPUCodeLibrary._optimize_final_module = optimize_entries
    try:
        yield
    finally:
        CPUCodeLibrary._optimize_final_module = optimize
