"""The threads of a merge: each takes a job, reads, computes, hashes and writes one output tensor.

Kernels and system calls release the interpreter lock, so threads are enough. A tensor that would
keep one thread busy while the others are done goes first, the rest follows in file order, so that
storage is read forwards.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import numpy as np

from forge.checkpoints.hashing import FileRecord, new_checksum, record_file
from forge.checkpoints.progress import Progress
from forge.checkpoints.sink import TensorSink
from forge.checkpoints.source import SafetensorsSource, TensorSource
from forge.core.dtypes import DTYPES
from forge.core.errors import IncompatibleError, NonFiniteError
from forge.kernels import blas
from forge.kernels.operands import CHUNK, Operands, Workspace
from forge.kernels.pages import populate
from forge.merge.contract import MethodCall, TensorStatistics
from forge.merge.plan import CARRIED, IDENTICAL, MergeJob, MergePlan
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference
from forge.recipes.settings import layer_position

log = logging.getLogger(__name__)
UNLIKE: Final = "num_unlike"
"""Of a tensor that is carried over, in how many other models it is not the same."""


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
        limit = remaining / (4 * num_threads)
        # Largest first among those that could leave other threads idle at the end.
        large = sorted(
            (job for job in open_jobs if sizes[job.output] > limit),
            key=lambda job: -sizes[job.output],
        )
        small = [job for job in open_jobs if sizes[job.output] <= limit]
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="forge-merge")
        try:
            with blas.one_thread():
                _drain(pool, self._run_job, [*large, *small], num_threads)
        finally:
            # Reached by Ctrl-C too: workers stop at their next piece, and only then may
            # the sink be closed.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def input_records(self, num_threads: int) -> dict[Path, FileRecord]:
        """Return the records of all input files, reading only what no job has read."""
        with ThreadPoolExecutor(num_threads, thread_name_prefix="forge-hash") as pool:
            records = pool.map(
                lambda item: record_file(item[0], known=item[1]), self._read.items()
            )
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
            f"Warning: {len(unlike):,} tensors that were carried over from {donor}, such as "
            f"'{unlike[0]}', have other values in another model. Those values are lost; if the "
            "other model's are wanted, name it as the base, or first where there is none.",
        )

    def _run_job(self, job: MergeJob) -> None:
        if self._stop.is_set():
            raise _StoppedError
        digest = new_checksum()
        inputs = [
            _Input(self._sources[item.model], item.name, itemsize=DTYPES[job.dtype].itemsize)
            for item in job.inputs
        ]

        def emit(offset: int, data: memoryview) -> None:
            if self._stop.is_set():
                raise _StoppedError
            for item in inputs:
                item.hash(offset, data.nbytes)
            digest.update(data)
            self._sink.write(job.output, offset, data)
            self._progress.advance(data.nbytes)

        views = [item.view for item in inputs]
        if job.method == IDENTICAL:
            statistics = self._copy(job, views, emit)
        elif job.method == CARRIED:
            statistics = self._carry(views, emit)
        else:
            statistics = self._merge(job, views, emit)
        record = {"method": job.method, **statistics.as_json()}
        self._sink.finish(job.output, digest=digest.hexdigest(), statistics=record)
        for item in inputs:
            if item.is_whole:
                self._read[item.info.file][item.info.name] = item.digest.hexdigest()

    def _merge(self, job: MergeJob, views: Sequence[memoryview], emit: Any) -> TensorStatistics:
        workspace = getattr(self._local, "workspace", None)
        if workspace is None:
            workspace = self._local.workspace = Workspace()
        operands = Operands(
            inputs=tuple(views),
            dtypes=tuple(self._sources[item.model].info(item.name).dtype for item in job.inputs),
            has_base=job.has_base,
            shape=job.shape,
            out_dtype=job.dtype,
            emit=emit,
            workspace=workspace,
        )
        call = MethodCall(
            job.values,
            job.models,
            job.streams,
            None if job.layer is None else layer_position(job.layer, len(self._plan.layers)),
        )
        try:
            statistics: TensorStatistics = _method(job.method).merge(operands, call)
        except IncompatibleError as error:
            raise IncompatibleError(f"'{job.output}': {error}") from error
        if not self._recipe.allow_nonfinite:
            _refuse_nonfinite(job, statistics)
        return statistics

    @staticmethod
    def _copy(job: MergeJob, views: Sequence[memoryview], emit: Any) -> TensorStatistics:
        for item, view in zip(job.inputs, views, strict=True):
            if view != views[0]:
                raise IncompatibleError(
                    f"'{item.name}' holds whole numbers that differ between '{item.model}' and "
                    f"'{job.inputs[0].model}', and whole numbers cannot be merged."
                )
        return Workers._carry(views, emit)

    @staticmethod
    def _carry(views: Sequence[memoryview], emit: Any) -> TensorStatistics:
        """Copy the first tensor, and count the others that differ from it."""
        num_unlike = sum(view != views[0] for view in views[1:])
        for offset in range(0, views[0].nbytes, CHUNK):
            emit(offset, views[0][offset : offset + CHUNK])
        notes = {UNLIKE: float(num_unlike)} if num_unlike else {}
        return TensorStatistics((False,) * len(views), bad_output=False, notes=notes)


class _Input:
    """A tensor that a job reads, hashed piece by piece while the piece is in the cache."""

    def __init__(self, source: TensorSource, name: str, *, itemsize: int) -> None:
        self.info = source.info(name)
        self.view = source.read(name)
        self.digest = new_checksum()
        self._out_itemsize = itemsize
        self._itemsize = DTYPES[self.info.dtype].itemsize
        self._hashed = 0
        # What a LoRA or a new vocabulary computes is not what its file holds.
        self._is_stored = isinstance(source, SafetensorsSource)
        if self.view.nbytes:
            populate(np.frombuffer(self.view, np.uint8))

    @property
    def is_whole(self) -> bool:
        """Whether the digest is that of the whole tensor as it is stored."""
        return self._is_stored and self._hashed == self.view.nbytes

    def hash(self, offset: int, num_bytes: int) -> None:
        """Hash the elements from which a piece of the output has just been computed."""
        begin = offset // self._out_itemsize * self._itemsize
        end = begin + num_bytes // self._out_itemsize * self._itemsize
        if self._is_stored and begin == self._hashed and end <= self.view.nbytes:
            self.digest.update(self.view[begin:end])
            self._hashed = end


def _drain(pool: ThreadPoolExecutor, task: Any, jobs: Sequence[MergeJob], width: int) -> None:
    """Keep a few jobs in flight; raise the first error at once."""
    queue = iter(jobs)
    flying: set[Future[None]] = set()
    while True:
        while len(flying) < 4 * width:
            job = next(queue, None)
            if job is None:
                break
            flying.add(pool.submit(task, job))
        if not flying:
            return
        finished, flying = wait(flying, return_when=FIRST_COMPLETED)
        for future in finished:
            future.result()


def _refuse_nonfinite(job: MergeJob, statistics: TensorStatistics) -> None:
    for item, is_bad in zip(job.inputs, statistics.bad_inputs, strict=True):
        if is_bad:
            raise NonFiniteError(
                f"'{item.name}' of '{item.model}' holds a NaN or an infinity. Repair or replace "
                "that checkpoint; 'allow_nonfinite: true' merges it nevertheless."
            )
    if statistics.bad_output:
        raise NonFiniteError(
            f"The merged '{job.output}' holds a NaN or an infinity in {job.dtype}, though its "
            "inputs are finite: the result overflows. Write bfloat16 or float32 ('out_dtype'), or "
            "lower the weights."
        )


def _method(name: str) -> Any:
    return importlib.import_module(f"forge.merge.methods.{name}")
