"""Run jobs on threads; numpy's loops and the system calls release the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait


class _StoppedError(Exception):
    """Another job failed, or the user interrupted."""


def run_all(jobs: Iterable[Callable[[], None]], *, num_threads: int) -> None:
    """Run jobs; the first error, or Ctrl-C, ends the others before their next job.

    Args:
        jobs: What to do; the first are begun first.
        num_threads: How many at once.

    Raises:
        Exception: What the first job that failed raised, once no job runs any more.
    """
    stop = threading.Event()

    def run(job: Callable[[], None]) -> None:
        if stop.is_set():
            raise _StoppedError
        job()

    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="forge-extract")
    try:
        flying: set[Future[None]] = {pool.submit(run, job) for job in jobs}
        while flying:
            finished, flying = wait(flying, return_when=FIRST_COMPLETED)
            for future in finished:
                error = future.exception()
                if error is not None and not isinstance(error, _StoppedError):
                    raise error
    finally:
        # Reached by Ctrl-C too; only when no job runs may a sink be closed.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
