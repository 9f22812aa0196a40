"""Read a model's embeddings in the order of another vocabulary.

The rearranged tensor is written, once, to a file that has no name any more, and is read from
there: it takes disk and page cache, but no memory of the process, and it goes when the last
reader does. It is written by ordinary writes, so that a full disk is an error and no crash.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.floats import decode, encode
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import DTYPES
from forge.core.errors import IncompatibleError, OutputError
from forge.merge.heads import is_head_weight
from forge.merge.vocabulary.types import RowMap, RowOrigin, VocabularyPlan
from forge.recipes.reference import ModelReference

if TYPE_CHECKING:
    import numpy.typing as npt

_CHUNK_BYTES: Final = 4 << 20

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True, eq=False)
class _Lender:
    """The rows of another model's embedding, as bytes."""

    table: Bytes
    dtype: str

    def row(self, number: int) -> Bytes:
        """Return the bytes of one row."""
        found: Bytes = self.table[number]
        return found


class RemappedSource:
    """A model whose embeddings and head are in the order of the output's vocabulary.

    Args:
        own: The model's tensors.
        architecture: The model's family.
        row_map: Its own row for each output row.
        plan: The vocabulary.
        others: Tensors and families of all models, for rows that this one lacks.
        folder: Where the rearranged tensors are written, in files without a name.
        is_tied: Whether its embedding is its head, which can then be read under the head's name.
    """

    def __init__(
        self,
        own: TensorSource,
        architecture: Architecture,
        *,
        row_map: RowMap,
        plan: VocabularyPlan,
        others: Mapping[ModelReference, tuple[TensorSource, Architecture]],
        folder: Path,
        is_tied: bool = False,
    ) -> None:
        self._own = own
        self._row_map = row_map
        self._plan = plan
        self._others = others
        self._folder = folder
        self._remapped = frozenset(
            name for name in own.names() if architecture.vocabulary_axis(name) == 0
        )
        self._heads = frozenset(architecture.heads)
        embedding = next((name for name in architecture.embeddings if name in own.names()), None)
        self._stand_ins = {
            head: embedding
            for head in architecture.heads
            if is_tied and embedding is not None and is_head_weight(head, architecture)
        }
        self._views: dict[str, memoryview] = {}
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._own.label

    def scratch_bytes(self, names: Collection[str]) -> int:
        """Return the bytes of files that hold what is rearranged.

        Args:
            names: The tensors that will be read. Of a tied model these can be its embedding and,
                in another file, the same rows in the place of a head.
        """
        return sum(
            self.info(name).nbytes
            for name in sorted({*self._remapped, *self._stand_ins})
            if name in names
        )

    def names(self) -> tuple[str, ...]:
        """Return all tensor names, in file order."""
        return self._own.names()

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata.

        Args:
            name: The tensor.

        Returns:
            Its new shape and size. A rearranged tensor lies in a file without a name, which
            ``file`` stands for.

        Raises:
            CheckpointError: There is no such tensor.
        """
        tensor = self._own.info(self._stand_ins.get(name, name))
        if name not in self._remapped and name not in self._stand_ins:
            return tensor
        row_bytes = _row_bytes(tensor)
        shape = (self._plan.num_rows, *tensor.shape[1:])
        # It lies in no file of the model, so no reader may take an offset into one from here.
        return replace(
            tensor,
            name=name,
            shape=shape,
            file=self._folder / "rearranged",
            offset=0,
            nbytes=self._plan.num_rows * row_bytes,
        )

    def read(self, name: str) -> memoryview:
        """Return a tensor's bytes; those of an embedding are put in order on the first call.

        Args:
            name: The tensor.

        Returns:
            A read-only view.

        Raises:
            CheckpointError: There is no such tensor, or it cannot be read.
            IncompatibleError: Another model has no such embedding to take rows from.
            OutputError: The folder is full or cannot be written.
        """
        if name not in self._remapped and name not in self._stand_ins:
            return self._own.read(name)
        with self._lock:
            if name not in self._views:
                self._views[name] = self._arrange(name)
            return self._views[name]

    def prefetch(self, name: str) -> None:
        """Tell the system that a tensor will be read soon.

        Args:
            name: The tensor.
        """
        self._own.prefetch(self._stand_ins.get(name, name))

    def stands_in(self, name: str) -> bool:
        """Return whether a name is that of the head that a tied model's embedding stands in for.

        Args:
            name: The tensor.
        """
        return name in self._stand_ins

    def files(self) -> tuple[Path, ...]:
        """Return the model's weight files, for hashing."""
        return self._own.files()

    def close(self) -> None:
        """Release the files; views that are still held stay valid."""
        with self._lock:
            self._views.clear()
        self._own.close()

    def _arrange(self, name: str) -> memoryview:
        stored = self._stand_ins.get(name, name)
        tensor = self._own.info(stored)
        num_rows, row_bytes = self._plan.num_rows, _row_bytes(tensor)
        own_VB = _rows(self._own.read(stored), row_bytes)
        own = np.array(self._row_map.own, np.int64)
        lenders = self._lenders(name, tensor)
        step = max(1, _CHUNK_BYTES // max(1, row_bytes))
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                for begin in range(0, num_rows, step):
                    chosen = own[begin : begin + step]
                    chunk_VB = np.zeros((len(chosen), row_bytes), np.uint8)
                    is_own = chosen >= 0
                    chunk_VB[is_own] = own_VB[chosen[is_own]]
                    for index in np.flatnonzero(~is_own):
                        origins = self._plan.fills[begin + int(index)]
                        if origins:
                            chunk_VB[index] = self._fill(tensor, origins, lenders)
                    _write_all(file.fileno(), chunk_VB)
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise OutputError(
                f"The embedding of '{self.label}' cannot be rearranged in '{self._folder}': "
                f"{error.strerror}. Make room for {num_rows * row_bytes / 1e9:.2f} GB there."
            ) from error
        return memoryview(mapped)

    def _fill(
        self,
        tensor: TensorInfo,
        origins: tuple[RowOrigin, ...],
        lenders: Mapping[ModelReference, _Lender],
    ) -> Bytes:
        found = [(lenders[origin.model], origin.row) for origin in origins]
        if len(found) == 1 and found[0][0].dtype == tensor.dtype:
            return found[0][0].row(found[0][1])
        # In float64 the sum is as good as exact, so that its order cannot reach the result.
        rows = [
            decode(lender.row(row).data, lender.dtype).astype(np.float64) for lender, row in found
        ]
        mean = np.add.reduce(rows) / len(rows)
        wide = mean if tensor.dtype == "F64" else mean.astype(np.float32)
        return _bytes_of(encode(wide, tensor.dtype))

    def _lenders(self, name: str, tensor: TensorInfo) -> dict[ModelReference, _Lender]:
        """Open the same embedding or head of every model that rows are taken from."""
        lacked = [number for number, row in enumerate(self._row_map.own) if row < 0]
        models = {origin.model for number in lacked for origin in self._plan.fills[number]}
        return {model: self._lender(name, tensor, model) for model in sorted(models)}

    def _lender(self, name: str, tensor: TensorInfo, model: ModelReference) -> _Lender:
        source, architecture = self._others[model]
        # A tied model's head is its embedding; families name either in several ways.
        roles = (
            name,
            *(architecture.heads if name in self._heads else ()),
            *architecture.embeddings,
        )
        present = frozenset(source.names())
        infos = [source.info(role) for role in roles if role in present]
        info = next((info for info in infos if info.shape[1:] == tensor.shape[1:]), None)
        if info is None:
            raise IncompatibleError(
                f"'{model}' has no tensor of the width of '{name}' of '{self.label}', so tokens "
                "cannot be taken from it. Merge models of one architecture."
            )
        return _Lender(_rows(source.read(info.name), _row_bytes(info)), info.dtype)


def remap(
    checkpoints: Mapping[ModelReference, Checkpoint], plan: VocabularyPlan, folder: Path
) -> Mapping[ModelReference, TensorSource]:
    """Return the tensors of every model, embeddings in the order of the result's vocabulary.

    Args:
        checkpoints: The models.
        plan: The vocabulary.
        folder: Where rearranged embeddings are written, in files without a name, when they are
            read for the first time.

    Returns:
        A source for each model; the model's own where nothing changes.

    Raises:
        IncompatibleError: A model's family is unknown.
    """
    families = {
        name: (
            checkpoint.source,
            architecture_of(checkpoint.config, tensor_names=checkpoint.source.names()),
        )
        for name, checkpoint in checkpoints.items()
    }
    return {
        name: RemappedSource(
            source,
            architecture,
            row_map=plan.rows[name],
            plan=plan,
            others=families,
            folder=folder,
            is_tied=architecture.is_tied(checkpoints[name].config),
        )
        if name in plan.rows
        else source
        for name, (source, architecture) in families.items()
    }


def _row_bytes(tensor: TensorInfo) -> int:
    count = 1
    for dimension in tensor.shape[1:]:
        count *= dimension
    return count * DTYPES[tensor.dtype].itemsize


def _rows(data: memoryview, row_bytes: int) -> Bytes:
    return np.frombuffer(data, np.uint8).reshape(-1, row_bytes)


def _bytes_of(values: npt.NDArray[np.generic]) -> Bytes:
    return values.reshape(-1).view(np.uint8)


def _write_all(descriptor: int, data: Bytes) -> None:
    view = data.data.cast("B")
    while view:
        view = view[os.write(descriptor, view) :]
