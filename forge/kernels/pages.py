"""Map pages in one go.

A page of a mapped file that is touched for the first time costs a fault, and the system maps no
more than sixteen around it. Asking for a whole range costs a quarter of the time, measured on
files in the page cache: a tenth of a second of each 500 MB.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_POPULATE_READ: Final = 22
"""MADV_POPULATE_READ of Linux 5.14; older systems answer EINVAL, and pages fault as ever."""

_MOST_BYTES: Final = 256 << 20
"""What is longer is left to the faults: nobody could interrupt the wait for storage."""


@cache
def _madvise() -> Any:
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


def populate(data: npt.NDArray[np.uint8]) -> None:
    """Map the pages of what will be read soon; the interpreter lock is released.

    Failing does no harm, because pages that are not mapped yet fault when they are touched.

    Args:
        data: A view of mapped bytes.
    """
    if 0 < data.nbytes <= _MOST_BYTES:
        address = int(data.__array_interface__["data"][0])
        start = address - address % mmap.PAGESIZE
        _madvise()(start, address + data.nbytes - start, _POPULATE_READ)
