"""The tensors of a GGUF model under the names, in the shapes and orders of Hugging Face's files.

Files are mapped, and each tensor is decoded when it is read, so that memory holds the tensors that
are being read and nothing else. A decoded tensor's pages of the file are given back at once: they
are read once, and what was made of them is larger.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forge.checkpoints.gguf.layout import Placed
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import open_map
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError

if TYPE_CHECKING:
    from forge.checkpoints.gguf.header import GgufHeader


class GgufSource:
    """The tensors of one GGUF model. Safe to use from many threads.

    Args:
        label: What the user typed, for messages.
        headers: The headers of its files, in file order.
        placed: How each tensor is made, by Hugging Face's names, in file order.
    """

    def __init__(
        self, label: str, headers: Sequence[GgufHeader], placed: Mapping[str, Placed]
    ) -> None:
        self._label = label
        self._sizes = {header.path: header.file_bytes for header in headers}
        self._placed = dict(placed)
        self._infos = {name: _info(name, part) for name, part in placed.items()}
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._label

    def names(self) -> tuple[str, ...]:
        """Return all tensor names, in file order."""
        return tuple(self._placed)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata.

        Args:
            name: The tensor.

        Returns:
            Its shape, type and size as ``read`` returns it, and the place of the bytes that it is
            made from.

        Raises:
            CheckpointError: There is no such tensor.
        """
        self._find(name)
        return self._infos[name]

    def read(self, name: str) -> memoryview:
        """Return a tensor's bytes.

        Args:
            name: The tensor.

        Returns:
            Newly decoded bytes; a view of the file for a tensor that is stored as it is.

        Raises:
            CheckpointError: There is no such tensor, the file changed since its header was
                read, or the source is closed.
        """
        from forge.checkpoints.gguf.decoding import values_of

        placed = self._find(name)
        view = memoryview(self._map(placed.tensor.file))
        packed = view[placed.offset : placed.offset + placed.packed_bytes]
        if placed.is_stored:
            is_aligned = placed.offset % DTYPES[placed.dtype].itemsize == 0
            return packed if is_aligned else memoryview(bytes(packed))
        values = values_of(placed, packed)
        self._advise(placed, mmap.MADV_DONTNEED)
        return values

    def prefetch(self, name: str) -> None:
        """Tell the system that a tensor will be read soon.

        Args:
            name: The tensor.

        Raises:
            CheckpointError: As ``read``.
        """
        self._advise(self._find(name), mmap.MADV_WILLNEED)

    def files(self) -> tuple[Path, ...]:
        """Return the model's files, in file order."""
        return tuple(self._sizes)

    def close(self) -> None:
        """Release the files; a view that is still held keeps its own map alive."""
        with self._lock:
            self._closed = True
            maps, self._maps = self._maps, {}
        for mapped in maps.values():
            try:
                mapped.close()
            except BufferError:
                # Someone still holds a view; the map goes when the last view does.
                continue

    def _find(self, name: str) -> Placed:
        try:
            return self._placed[name]
        except KeyError:
            raise CheckpointError(f"'{self._label}' has no tensor '{name}'.") from None

    def _map(self, file: Path) -> mmap.mmap:
        mapped = self._maps.get(file)
        if mapped is not None:
            return mapped
        with self._lock:
            if self._closed:
                raise CheckpointError(f"'{self._label}' was read after it was closed.")
            if file not in self._maps:
                self._maps[file] = open_map(file, expected_bytes=self._sizes[file])
            return self._maps[file]

    def _advise(self, placed: Placed, advice: int) -> None:
        start = placed.offset - placed.offset % mmap.PAGESIZE
        end = placed.offset + placed.packed_bytes
        self._map(placed.tensor.file).madvise(advice, start, end - start)


def _info(name: str, placed: Placed) -> TensorInfo:
    nbytes = math.prod(placed.shape) * DTYPES[placed.dtype].itemsize
    return TensorInfo(name, placed.shape, placed.dtype, placed.tensor.file, placed.offset, nbytes)
