"""Factors that wait for the layout of the output, in a nameless file beside it.

The file has no name from the beginning, so the system takes it back however the process ends.
"""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from forge.adapters.truncation import Truncated, Way
from forge.core.errors import OutputError


class Scratch:
    """A place for factors; a context manager. The file is made with the first of them.

    Args:
        out: The output, beside which the file lies.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out.resolve().parent
        self._file: IO[bytes] | None = None
        self._places: dict[str, tuple[int, tuple[int, int], int, Way]] = {}
        self._lock = threading.Lock()

    def put(self, name: str, factors: Truncated) -> None:
        """Keep a tensor's factors.

        Args:
            name: The tensor.
            factors: Its factors.

        Raises:
            OutputError: The disk is full.
        """
        left, right = factors.left_OR, factors.right_RI
        with self._lock:
            try:
                if self._file is None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
                begin = self._file.seek(0, 2)
                self._file.write(np.ascontiguousarray(left).data)
                self._file.write(np.ascontiguousarray(right).data)
            except OSError as error:
                raise OutputError(
                    f"Factors cannot wait in '{self._folder}': {error.strerror}. Make room there, "
                    "or choose another place for the output."
                ) from error
            rows, columns = left.shape[0], right.shape[1]
            self._places[name] = (begin, (rows, columns), factors.rank, factors.way)

    def get(self, name: str) -> Truncated | None:
        """Return a tensor's factors, or ``None`` when there are none.

        Args:
            name: The tensor.
        """
        if name not in self._places:
            return None
        begin, (rows, columns), rank, way = self._places[name]
        assert self._file is not None
        with self._lock:
            self._file.seek(begin)
            data = self._file.read((rows + columns) * rank * 4)
        values = np.frombuffer(data, np.float32)
        left, right = values[: rows * rank], values[rows * rank :]
        return Truncated(left.reshape(rows, rank), right.reshape(rank, columns), way)

    def rank(self, name: str) -> int:
        """Return the rank of a tensor's factors.

        Args:
            name: A tensor that has some.
        """
        return self._places[name][2]

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
