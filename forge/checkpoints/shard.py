"""One output file while tensors are written into it, in any order."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from forge.checkpoints.disk import start_writing
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.layout import ShardLayout


class GrowingShard:
    """One output file: its descriptor, and which of its tensors are complete.

    Args:
        path: The file.
        layout: What it will hold.
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        self.path = path
        self.layout = layout
        self._descriptor = -1
        self._lock = threading.Lock()
        self._unfinished = {tensor.name for tensor in layout.tensors}

    def allocated_bytes(self) -> int:
        """Return how much disk space the file takes already."""
        try:
            return min(self.path.stat().st_blocks * 512, self.layout.file_bytes)
        except FileNotFoundError:
            return 0

    def prepare(self) -> None:
        """Give the file its size and its header; what else it holds stays."""
        descriptor = self.descriptor()
        if os.fstat(descriptor).st_size != self.layout.file_bytes:
            os.ftruncate(descriptor, self.layout.file_bytes)
        header = memoryview(self.layout.header)
        position = 0
        while position < len(header):
            position += os.pwrite(descriptor, header[position:], position)
        self.close()

    def descriptor(self) -> int:
        """Return the open file, opening it on first use."""
        with self._lock:
            if self._descriptor < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self.path, flags, 0o666)
            return self._descriptor

    def mark(self, tensor: TensorInfo) -> None:
        """Note that a tensor is complete.

        Args:
            tensor: One of the layout's tensors; nothing writes to it any more.
        """
        with self._lock:
            self._unfinished.discard(tensor.name)
            is_complete = not self._unfinished
        if is_complete:
            # A checkpoint can have more shards than a process may have open files.
            self.close()

    def start_writing(self, tensor: TensorInfo) -> None:
        """Let the system begin to write a tensor that has just been completed.

        Args:
            tensor: One of the layout's tensors.
        """
        start_writing(self.descriptor(), tensor.offset, tensor.nbytes)

    def sync(self) -> None:
        """Write what is dirty to the disk."""
        with self._lock:
            descriptor = os.dup(self._descriptor) if self._descriptor >= 0 else -1
        if descriptor >= 0:
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Close the file; writing opens it again."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
