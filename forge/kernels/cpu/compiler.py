"""numba, told to use the whole width of the processor's vectors.

LLVM prefers vectors of 256 bits on processors that have 512, because the first of them slowed
down when all were used. Kernels are a tenth to a third faster with 512. numba reads these
settings when the first function is decorated, so every kernel module gets numba from here.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from numba import config, njit

config.CPU_NAME = llvm.get_host_cpu_name()
config.CPU_FEATURES = f"{llvm.get_host_cpu_features().flatten()},-prefer-256-bit"

inlined = njit(nogil=True, error_model="numpy")
"""Compile a function that kernels call; LLVM inlines it."""

reordered = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
"""As ``inlined``, for sums that the compiler may reorder: in source order none uses vectors."""
