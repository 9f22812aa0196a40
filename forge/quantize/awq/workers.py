"""Threads whose number does not show in any result.

torch splits one product over its threads, and how it is split shows in the last bits. Here each
piece of work has a size that does not depend on the machine, runs on one thread of torch, and
sums are made in the order of the pieces.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

import torch

_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1
_LARGE_BYTES: Final = 1 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """A pool of threads that run torch on one thread each.

    Args:
        threads: How many; 0 for as many as the process may run on.
    """

    def __init__(self, threads: int) -> None:
        self.num_threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(
            self.num_threads, "forge-awq", initializer=torch.set_num_threads, initargs=(1,)
        )

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield results in the order of the items, a few of which are worked on at a time.

        Args:
            function: What to do.
            items: On what.

        Yields:
            What the function returned.
        """
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(self._pool.submit(function, item))
                if len(pending) > self.num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def give_freed_tensors_back() -> None:
    """Let glibc return every freed tensor of a megabyte or more to the system at once.

    It learns by itself to keep what is freed and allocated again, up to 32 MB apiece in each
    thread's arena: nearly half of what AWQ would need. Other C libraries do not know the call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Run torch on one thread in the calling thread and in those that start meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
