"""A merge as a model: its tensors are computed when they are read, and never written.

A read gives exactly the bytes that the stage's own merge would write, rounded to its own type.
As long as somebody holds a tensor, whoever else asks for it gets the same bytes; what a read
computes on its way through further stages is held until it is done, so that no tensor of a stage
is computed twice for one tensor of the result.
"""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError
from forge.kernels.operands import Workspace
from forge.merge.compute import compute, read_companions
from forge.merge.plan import MergePlan
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

Buffer = np.ndarray[Any, np.dtype[np.uint8]]

_thread = threading.local()


@contextmanager
def computed_once() -> Iterator[None]:
    """Hold what stages compute on this thread until the outermost of these blocks ends."""
    if getattr(_thread, "held", None) is not None:
        yield
        return
    _thread.held = []
    try:
        yield
    finally:
        _thread.held = None


class StageSource:
    """The tensors of a stage. Safe to use from many threads.

    Args:
        label: The stage's name.
        recipe: Its recipe.
        plan: What it computes.
        sources: Tensors of its models, embeddings in the order of its vocabulary.
        root: Temporary folder of its small files; it goes when the source is closed.
    """

    def __init__(
        self,
        label: str,
        recipe: MergeRecipe,
        plan: MergePlan,
        sources: Mapping[ModelReference, TensorSource],
        root: Path,
    ) -> None:
        self._label = label
        self._root = root
        self._recipe = recipe
        self._sources = sources
        self._jobs = {job.output: job for job in plan.jobs}
        self._infos = {
            tensor.name: TensorInfo(
                tensor.name, tensor.shape, tensor.dtype, root / "computed", 0, tensor.nbytes
            )
            for tensor in plan.tensors
        }
        self._buffers: weakref.WeakValueDictionary[str, Buffer] = weakref.WeakValueDictionary()
        self._locks = {name: threading.Lock() for name in self._jobs}
        self._is_closed = False
        self.plan = plan

    @property
    def label(self) -> str:
        """The stage's name."""
        return self._label

    def names(self) -> tuple[str, ...]:
        """Return all tensor names, in the order in which the stage would write them."""
        return tuple(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata; it lies in no file, which ``file`` stands for.

        Args:
            name: The tensor.

        Raises:
            CheckpointError: There is no such tensor.
        """
        try:
            return self._infos[name]
        except KeyError:
            raise CheckpointError(f"The stage '{self._label}' has no tensor '{name}'.") from None

    def read(self, name: str) -> memoryview:
        """Compute a tensor, unless somebody holds it.

        Args:
            name: The tensor.

        Returns:
            A read-only view of what the stage would write.

        Raises:
            CheckpointError: There is no such tensor, or the source is closed.
            ForgeError: It cannot be computed.
        """
        info = self.info(name)
        if self._is_closed:
            raise CheckpointError(f"The stage '{self._label}' was read after it was closed.")
        if info.nbytes == 0:
            return memoryview(b"")
        with computed_once():
            buffer = self._computed(info)
            _thread.held.append(buffer)
        return buffer.data

    def prefetch(self, name: str) -> None:
        """Tell the system that what a tensor is made of will be read soon.

        Args:
            name: The tensor.
        """
        self.info(name)
        for item in self._jobs[name].inputs:
            self._sources[item.model].prefetch(item.name)

    def files(self) -> tuple[Path, ...]:
        """Return the weight files of all its models, for hashing."""
        files = (file for source in self._sources.values() for file in source.files())
        return tuple(dict.fromkeys(files))

    def close(self) -> None:
        """Release the files, and remove the small ones; views that are held stay valid."""
        self._is_closed = True
        shutil.rmtree(self._root, ignore_errors=True)
        for source in self._sources.values():
            source.close()

    def _computed(self, info: TensorInfo) -> Buffer:
        with self._locks[info.name]:
            found = self._buffers.get(info.name)
            if found is not None:
                return found
            buffer = self._compute(info)
            buffer.flags.writeable = False
            self._buffers[info.name] = buffer
            return buffer

    def _compute(self, info: TensorInfo) -> Buffer:
        job = self._jobs[info.name]
        sources = [self._sources[item.model] for item in job.inputs]
        views = [source.read(item.name) for source, item in zip(sources, job.inputs, strict=True)]
        dtypes = [
            source.info(item.name).dtype for source, item in zip(sources, job.inputs, strict=True)
        ]
        itemsize = DTYPES[info.dtype].itemsize
        # Typed, so that it is aligned as a file's tensors are.
        buffer = np.empty(info.nbytes // itemsize, np.dtype(f"u{itemsize}")).view(np.uint8)

        def emit(offset: int, data: memoryview) -> None:
            buffer[offset : offset + data.nbytes] = np.frombuffer(data, np.uint8)

        compute(
            job,
            views,
            dtypes,
            emit,
            num_layers=len(self.plan.layers),
            allow_nonfinite=self._recipe.allow_nonfinite,
            workspace=_workspace(),
            companions=read_companions(job, self._sources),
        )
        return buffer


def _workspace() -> Workspace:
    """Return the scratch memory of this thread for stages; it is in use only while none nests."""
    found: Workspace | None = getattr(_thread, "workspace", None)
    if found is None:
        found = _thread.workspace = Workspace()
    return found
