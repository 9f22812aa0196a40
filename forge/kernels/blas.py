"""Hold numpy's linear algebra to one thread each.

A merge runs one tensor on each of its threads, so a BLAS that starts more would only get in their
way; and how a BLAS shares a product among threads may change its last digits, which must not depend
on the machine. OpenBLAS, which numpy's wheels carry, is asked through its own functions; another
library is left as the environment sets it (``MKL_NUM_THREADS``, ``VECLIB_MAXIMUM_THREADS``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

_SPELLINGS: Final = (
    "scipy_openblas_{}_num_threads64_",
    "scipy_openblas_{}_num_threads",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let numpy's OpenBLAS use one thread for each caller, and then what it used before."""
    found = [functions for library in _libraries() for functions in _functions(library)]
    before = [get() for get, _ in found]
    for _, put in found:
        put(1)
    try:
        yield
    finally:
        for (_, put), count in zip(found, before, strict=True):
            put(count)


def num_threads() -> tuple[int, ...]:
    """Return the threads that each OpenBLAS of this process uses for one caller."""
    return tuple(get() for library in _libraries() for get, _ in _functions(library))


def _libraries() -> list[ctypes.CDLL]:
    """Return the OpenBLAS libraries that this process has loaded for numpy."""
    folder = Path(np.__file__).resolve().parent.parent
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if "openblas" in line)
    # Other packages bring their own; what they compute is not part of a merge.
    own = [path for path in paths if path.startswith(str(folder)) and "scipy.libs" not in path]
    return [ctypes.CDLL(path) for path in own]


def _functions(library: ctypes.CDLL) -> list[tuple[ctypes._FuncPointer, ctypes._FuncPointer]]:
    for spelling in _SPELLINGS:
        get = getattr(library, spelling.format("get"), None)
        put = getattr(library, spelling.format("set"), None)
        if get is not None and put is not None:
            return [(get, put)]
    return []
