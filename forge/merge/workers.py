"""The threads of a merge: each takes a job, reads, computes, hashes and writes one output tensor.

Kernels and system calls release the interpreter lock, so threads are enough. A tensor that would
keep one thread busy while the others are done goes first, the rest follows in file order, so that
storage is read forwards.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final

from forge.checkpoints.hashing import FileRecord, new_checksum, record_file
from forge.checkpoints.progress import Progress
from forge.checkpoints.sink import TensorSink
from forge.checkpoints.source import SafetensorsSource, TensorSource
from forge.core.dtypes import DTYPES
from forge.kernels import blas
from forge.kernels.operands import CHUNK, Workspace
from forge.merge.compute import UNLIKE, compute, read_companions
from forge.merge.plan import CARRIED, MergeJob, MergePlan
from forge.merge.stage_source import computed_once
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

log = logging.getLogger(__name__)

_PARTS: Final = 32
"""A tensor that is more than this part of a thread's work could leave others idle at the end."""


class _StoppedError(Exception):
    """Another job failed, or the user interrupted."""


class Workers:
    """The workers of one merge."""

    def __init__(
        self,
        plan: MergePlan,
        recipe: MergeRecipe,
        sources: Mapping[ModelReference, TensorSource],
        sink: TensorSink,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._recipe = recipe
        self._sources = sources
        self._sink = sink
        self._progress = progress
        self._stop = threading.Event()
        self._local = threading.local()
        self._read: dict[Path, dict[str, str]] = {
            file: {} for source in sources.values() for file in source.files()
        }

    def run(self, num_threads: int) -> None:
        """Run all jobs that are not done yet."""
        sizes = {tensor.name: tensor.nbytes for tensor in self._plan.tensors}
        open_jobs = [job for job in self._plan.jobs if job.output not in self._sink.done]
        total = sum(sizes.values())
        remaining = sum(sizes[job.output] for job in open_jobs)
        self._progress.stage("merging")
        self._progress.start(total, total - remaining)
        limit = remaining / (_PARTS * num_threads)
        # Largest first among those that could leave other threads idle at the end.
        large = sorted(
            (job for job in open_jobs if sizes[job.output] > limit),
            key=lambda job: -sizes[job.output],
        )
        small = [job for job in open_jobs if sizes[job.output] <= limit]
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="forge-merge")
        try:
            with blas.one_thread():
                jobs = deque([*large, *small])
                running = [pool.submit(self._work_through, jobs) for _ in range(num_threads)]
                wait(running, return_when=FIRST_EXCEPTION)
                for worker in running:
                    if worker.done():
                        worker.result()
        finally:
            # Reached by Ctrl-C too: workers stop at their next piece, and only then may
            # the sink be closed.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def input_records(self, num_threads: int) -> dict[Path, FileRecord]:
        """Return the records of all input files, reading only what no job has read."""
        with ThreadPoolExecutor(num_threads, thread_name_prefix="forge-hash") as pool:
            records = pool.map(lambda item: record_file(item[0], known=item[1]), self._read.items())
            return dict(zip(self._read, records, strict=True))

    def unlike_notices(self) -> tuple[str, ...]:
        """Return a warning when another model has other values in what was carried over."""
        unlike = [
            job.output
            for job in self._plan.jobs
            if job.method == CARRIED and UNLIKE in self._sink.done[job.output].statistics
        ]
        if not unlike:
            return ()
        donor = self._plan.donor
        return (
            f"{len(unlike):,} tensors that were carried over from {donor}, such as "
            f"'{unlike[0]}', have other values in another model. Those values are lost; if the "
            "other model's are wanted, name it as the base, or first where there is none.",
        )

    def _work_through(self, jobs: deque[MergeJob]) -> None:
        """Take jobs until none is left.

        A main thread that handed out each job would want the interpreter's lock all the time.
        """
        while True:
            try:
                job = jobs.popleft()
            except IndexError:
                return
            self._run_job(job)

    def _run_job(self, job: MergeJob) -> None:
        if self._stop.is_set():
            raise _StoppedError
        digest = new_checksum()
        itemsize = DTYPES[job.dtype].itemsize
        with computed_once():
            inputs = [_Input(self._sources[item.model], item.name) for item in job.inputs]

        def hash_up_to(count: int) -> None:
            for item in inputs:
                item.hash(count)

        def emit(offset: int, data: memoryview) -> None:
            if self._stop.is_set():
                raise _StoppedError
            digest.update(data)
            self._sink.write(job.output, offset, data)
            self._progress.advance(data.nbytes)
            # The next piece will be as long.
            hash_up_to((offset + 2 * data.nbytes) // itemsize)

        hash_up_to(CHUNK)
        views = [item.view for item in inputs]
        workspace = getattr(self._local, "workspace", None)
        if workspace is None:
            workspace = self._local.workspace = Workspace()
        statistics = compute(
            job,
            views,
            [item.info.dtype for item in inputs],
            emit,
            num_layers=len(self._plan.layers),
            allow_nonfinite=self._recipe.allow_nonfinite,
            workspace=workspace,
            companions=read_companions(job, self._sources),
        )
        record = {"method": job.method, **statistics.as_json()}
        self._sink.finish(job.output, digest=digest.hexdigest(), statistics=record)
        hash_up_to(math.prod(job.shape))
        for item in inputs:
            if item.is_whole:
                self._read[item.info.file][item.info.name] = item.digest.hexdigest()


class _Input:
    """A tensor that a job reads, hashed piece by piece just before the piece is computed with.

    Hashing reads a piece into the cache in the order in which memory is quickest; kernels, which
    read several tensors in turns and start anew at each page, take a tenth longer to do that.
    """

    def __init__(self, source: TensorSource, name: str) -> None:
        self.info = source.info(name)
        self.view = source.read(name)
        self.digest = new_checksum()
        self._itemsize = DTYPES[self.info.dtype].itemsize
        self._hashed = 0
        # What a LoRA or a new vocabulary computes is not what its file holds.
        self._is_stored = isinstance(source, SafetensorsSource)

    @property
    def is_whole(self) -> bool:
        """Whether the digest is that of the whole tensor as it is stored."""
        return self._is_stored and self._hashed == self.view.nbytes

    def hash(self, count: int) -> None:
        """Hash what has not been hashed yet of the first elements; of fewer, all of them."""
        end = min(count * self._itemsize, self.view.nbytes)
        if self._is_stored and end > self._hashed:
            self.digest.update(self.view[self._hashed : end])
            self._hashed = end
