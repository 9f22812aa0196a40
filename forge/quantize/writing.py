"""Write the tensors of one output: hash each piece while it is in the cache, journal the whole."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.hashing import new_checksum
from forge.checkpoints.progress import Progress
from forge.checkpoints.sink import TensorSink
from forge.quantize.plan import PlannedOutput

if TYPE_CHECKING:
    from forge.architectures.blocks import Linear

_PIECE_BYTES: Final = 1 << 20
"""Written in one go; a signal waits no longer than that."""

MODULE_KEY: Final = "module"
"""Under which a layer's statistics are journalled, with the first of its parts."""


class StoppedError(Exception):
    """Another job failed, or the user interrupted."""


class OutputWriter:
    """Writes one output; safe to use from many threads, each with its own tensors.

    Args:
        planned: What the output consists of.
        sink: Where it goes.
        progress: Hears of every piece.
        stop: When set, the next piece is not written.
    """

    def __init__(
        self, planned: PlannedOutput, sink: TensorSink, progress: Progress, stop: threading.Event
    ) -> None:
        self.planned = planned
        self.sink = sink
        self._progress = progress
        self._stop = stop

    def has(self, names: Iterable[str]) -> bool:
        """Return whether all of these tensors are finished.

        Args:
            names: The tensors.
        """
        return all(name in self.sink.done for name in names)

    def write(
        self, name: str, data: npt.NDArray[np.generic], statistics: Mapping[str, object]
    ) -> None:
        """Write a whole tensor, unless it is finished.

        Args:
            name: The tensor.
            data: Its elements; of an array that is not contiguous, a copy is written.
            statistics: Plain JSON values to keep with it.
        """
        if name in self.sink.done:
            return
        stream = TensorStream(self, name)
        stream.emit(0, data)
        stream.finish(statistics)

    def stream_parts(self, linear: Linear) -> PartStreams:
        """Return a receiver of the parts of a layer.

        Args:
            linear: The layer.
        """
        return PartStreams(self, linear)

    def put(self, name: str, offset: int, data: memoryview) -> None:
        """Write a piece, and tell of it.

        Args:
            name: The tensor.
            offset: Where the piece begins, in bytes.
            data: The piece.

        Raises:
            StoppedError: The work has been stopped.
        """
        if self._stop.is_set():
            raise StoppedError
        self.sink.write(name, offset, data)
        self._progress.advance(data.nbytes)


class TensorStream:
    """One tensor, written from its start to its end."""

    def __init__(self, writer: OutputWriter, name: str) -> None:
        self._writer = writer
        self._name = name
        self._hash = new_checksum()

    def emit(self, offset: int, data: npt.NDArray[np.generic]) -> None:
        """Write the next pieces.

        Args:
            offset: Where they begin, in bytes: where the previous ones ended.
            data: Their elements.
        """
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        for start in range(0, view.nbytes, _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            self._hash.update(piece)
            self._writer.put(self._name, offset + start, piece)

    def finish(self, statistics: Mapping[str, object]) -> None:
        """Journal the tensor.

        Args:
            statistics: Plain JSON values to keep with it.
        """
        self._writer.sink.finish(
            self._name, digest=self._hash.hexdigest(), statistics=dict(statistics)
        )


class PartStreams:
    """The parts of one layer, as a format emits them; what is finished already is passed over."""

    def __init__(self, writer: OutputWriter, linear: Linear) -> None:
        self._module = linear.module
        self._streams = {
            name: TensorStream(writer, name)
            for name in writer.planned.names_of(linear)
            if name not in writer.sink.done
        }

    def emit(self, suffix: str, offset: int, data: npt.NDArray[np.generic]) -> None:
        """Write the next pieces of a part.

        Args:
            suffix: The part.
            offset: Where they begin, in bytes.
            data: Their elements.
        """
        stream = self._streams.get(f"{self._module}.{suffix}")
        if stream is not None:
            stream.emit(offset, data)

    def finish(self, statistics: Mapping[str, object]) -> None:
        """Journal all parts.

        Args:
            statistics: Plain JSON values to keep with each.
        """
        for stream in self._streams.values():
            stream.finish(statistics)
