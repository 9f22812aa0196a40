"""Run a kernel on several cores at once, from Python, within microseconds.

A token needs a hundred products of a quarter of a millisecond, so handing work to a pool of
Python threads would cost more than it saves. torch brings a pool of its own, OpenMP's, whose
threads are awake while a model runs. A kernel is called there through the one function that
every program compiled for OpenMP calls; torch's own loops and ours then never compete for cores.
Where torch was built without that library (macOS, Windows), a pool of Python threads does it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from forge.kernels.cpu import native


def run(kernel: str, arguments: Any, num_threads: int) -> None:
    """Call a kernel once on each of several threads, which share out the work themselves.

    Args:
        kernel: A word kernel with one argument, the address of its arguments.
        arguments: A ctypes array of int64; kept alive until the kernel is done.
        num_threads: How many threads.
    """
    address = ctypes.addressof(arguments)
    if num_threads == 1:
        native.word_kernel(kernel, 1)(address)
        return
    fork = _openmp()
    if fork is not None:
        fork(native.address(kernel, 1), address, num_threads, 0)
        return
    call = native.word_kernel(kernel, 1)
    waiting = [_pool().submit(call, address) for _ in range(num_threads - 1)]
    call(address)
    for each in waiting:
        each.result()


@cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """Return OpenMP's entry point in the library that torch has loaded, if there is one."""
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, TypeError, OSError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    call: Callable[[int, int, int, int], None] = function
    return call


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="forge-runtime")
