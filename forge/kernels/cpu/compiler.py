"""numba, told to use the whole width of the processor's vectors.

LLVM prefers vectors of 256 bits on processors that have 512, because the first of them slowed
down when all were used. Kernels are a tenth to a third faster with 512. numba reads these
settings when the first function is decorated, so every kernel module gets numba from here.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import llvmlite.binding as llvm
import numba.np.linalg
from numba import config, njit
from numba._dynfunc import make_function
from numba.core.codegen import CPUCodeLibrary, JITCodeLibrary
from numba.core.cpu import CPUContext

config.CPU_NAME = llvm.get_host_cpu_name()
config.CPU_FEATURES = f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"


def _leave_blas_out() -> None:
    """Import what asks for SciPy only to see if it has a BLAS, which no kernel calls.

    That is a sixth of a second for every process that compiles.
    """

    def refuse() -> None:
        raise ImportError("kernels multiply no matrices")

    linalg: Any = numba.np.linalg
    known = linalg.ensure_blas
    linalg.ensure_blas = refuse
    try:
        importlib.import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = known


_leave_blas_out()

_INNER: Final = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

inlined = njit(**_INNER)
"""Compile a function that kernels call; LLVM inlines it."""

reordered = njit(fastmath={"reassoc", "nsz", "contract"}, **_INNER)
"""As ``inlined``, for sums that the compiler may reorder: in source order none uses vectors.

Products may be added without being rounded: those of float32 are exact in float64 anyway.
"""


@contextmanager
def compiling(entry: str) -> Iterator[None]:
    """Let numba optimize and generate code for one entry point only.

    numba makes machine code of every function before it inlines it into its caller, and
    optimizes it there again: for a kernel of forty small functions that is most of the time. Here
    functions are only translated, and the entry point is optimized with all that it calls. What is
    compiled meanwhile cannot be called from Python.

    Args:
        entry: Name of the entry point, without what qualifies it.
    """

    def optimize(library: CPUCodeLibrary) -> None:
        if library.name.rpartition(".")[2] == entry:
            known[CPUCodeLibrary, "_optimize_final_module"](library)

    def finalize(library: CPUCodeLibrary) -> None:
        library._finalized = True

    def no_pointer(library: CPUCodeLibrary, name: str) -> int:
        library._ensure_finalized()
        return 0

    def executable(context: CPUContext, library: CPUCodeLibrary, fndesc: Any, env: Any) -> Any:
        # numba tells compiled functions apart by this object.
        return make_function(fndesc.lookup_module(), fndesc.qualname, "", 0, env, (library,))

    changed: dict[tuple[type, str], Any] = {
        (CPUCodeLibrary, "_optimize_final_module"): optimize,
        (CPUCodeLibrary, "_finalize_final_module"): finalize,
        (JITCodeLibrary, "get_pointer_to_function"): no_pointer,
        (CPUContext, "get_executable"): executable,
    }
    known = {(owner, name): getattr(owner, name) for owner, name in changed}
    for (owner, name), function in changed.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for (owner, name), function in known.items():
            setattr(owner, name, function)
