"""Hash files while their pages are hot, and many files at once.

Hashing a finished file means reading it again. While it is being written, or read for a
merge, its bytes lie in the page cache anyway: ``RunningHash`` follows the part of a file
that is complete, so that at the end only a tail is left.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from forge.core.errors import CheckpointError

Algorithm = Literal["sha256", "blake3"]

_PIECE_BYTES: Final = 16 << 20
"""Hashed in one go; a signal waits no longer than that."""


class _Hasher(Protocol):
    def update(self, data: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file was.

    Attributes:
        name: Path relative to the checkpoint's folder, with forward slashes.
        bytes: Size.
        algorithm: ``sha256`` or ``blake3``.
        digest: Hexadecimal digest of the whole file.
    """

    name: str
    bytes: int
    algorithm: str
    digest: str


class RunningHash:
    """Hash a file's growing prefix from whichever thread has just extended it.

    Args:
        path: The file; opened when the first byte is hashed.
        algorithm: ``sha256`` or ``blake3``.
        name: Name in the record; the file's own name by default.
    """

    def __init__(self, path: Path, *, algorithm: Algorithm, name: str | None = None) -> None:
        self._path = path
        self._name = path.name if name is None else name
        self._algorithm: Algorithm = algorithm
        self._hasher = _new_hasher(algorithm)
        self._busy = threading.Lock()
        self._target_lock = threading.Lock()
        self._target = 0
        self._position = 0

    @property
    def position(self) -> int:
        """Bytes hashed so far."""
        return self._position

    def advance(self, up_to: int) -> None:
        """Hash the file up to an offset, unless another thread is at it.

        That other thread then takes over the new offset, and this call returns at once.

        Args:
            up_to: Number of bytes from the file's start that will not change any more.

        Raises:
            CheckpointError: The file cannot be read, or is shorter than ``up_to``.
        """
        with self._target_lock:
            self._target = max(self._target, up_to)
        # Checked again after the release: a thread that raised the target while this one
        # was about to let go must not be forgotten.
        while self._position < self._target and self._busy.acquire(blocking=False):
            try:
                self._hash_to_target()
            finally:
                self._busy.release()

    def finish(self) -> FileRecord:
        """Hash what is left of the file.

        Returns:
            The record of the whole file.

        Raises:
            CheckpointError: The file cannot be read, or is shorter than what was hashed.
        """
        try:
            size = self._path.stat().st_size
        except OSError as error:
            raise CheckpointError(f"'{self._path}' cannot be read: {error.strerror}.") from error
        with self._busy:
            with self._target_lock:
                self._target = size
            self._hash_to_target()
            if self._position != size:
                raise CheckpointError(f"'{self._path}' changed while it was hashed.")
            return FileRecord(self._name, size, self._algorithm, self._hasher.hexdigest())

    def _hash_to_target(self) -> None:
        while self._position < self._target:
            end = self._target
            try:
                _feed(self._hasher, self._path, self._position, end)
            except CheckpointError:
                # The hasher may have taken a part of it; a later call must start afresh.
                self._hasher, self._position = _new_hasher(self._algorithm), 0
                raise
            self._position = end


def _new_hasher(algorithm: Algorithm) -> _Hasher:
    if algorithm == "sha256":
        return hashlib.sha256()
    import blake3

    hasher: _Hasher = blake3.blake3()
    return hasher


def blake3_of(data: memoryview) -> str:
    """Return the BLAKE3 digest of bytes in memory.

    Args:
        data: Contiguous bytes.

    Returns:
        The hexadecimal digest.
    """
    hasher = _new_hasher("blake3")
    hasher.update(data)
    return hasher.hexdigest()


def blake3_of_range(path: Path, offset: int, nbytes: int) -> str:
    """Return the BLAKE3 digest of a part of a file.

    Args:
        path: The file.
        offset: Where the part begins, in bytes.
        nbytes: Its length.

    Returns:
        The hexadecimal digest.

    Raises:
        CheckpointError: The file cannot be read, or ends before the part does.
    """
    hasher = _new_hasher("blake3")
    _feed(hasher, path, offset, offset + nbytes)
    return hasher.hexdigest()


def _feed(hasher: _Hasher, path: Path, begin: int, end: int) -> None:
    """Hash a range through a map: the pages are in memory, and a copy costs as much again."""
    if begin == end:
        return
    try:
        with path.open("rb") as file:
            # A map beyond the end of a file would kill the process on access.
            if os.fstat(file.fileno()).st_size < end:
                raise CheckpointError(f"'{path}' is shorter than expected.")
            start = begin - begin % mmap.ALLOCATIONGRANULARITY
            with (
                mmap.mmap(
                    file.fileno(), end - start, access=mmap.ACCESS_READ, offset=start
                ) as mapped,
                memoryview(mapped) as view,
            ):
                # Piece by piece, so that another thread gets the interpreter in between.
                for offset in range(begin - start, end - start, _PIECE_BYTES):
                    with view[offset : min(offset + _PIECE_BYTES, end - start)] as piece:
                        hasher.update(piece)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error


def hash_file(path: Path, *, algorithm: Algorithm, name: str | None = None) -> FileRecord:
    """Hash a whole file.

    Args:
        path: The file.
        algorithm: ``sha256`` or ``blake3``.
        name: Name in the record; the file's own name by default.

    Returns:
        The record.

    Raises:
        CheckpointError: The file cannot be read.
    """
    return RunningHash(path, algorithm=algorithm, name=name).finish()


def hash_files(paths: Iterable[Path], *, algorithm: Algorithm) -> tuple[FileRecord, ...]:
    """Hash several files on all cores.

    Args:
        paths: The files.
        algorithm: ``sha256`` or ``blake3``.

    Returns:
        One record per file, in the order given.

    Raises:
        CheckpointError: A file cannot be read.
    """
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(hash_file, path, algorithm=algorithm) for path in paths]
        return tuple(job.result() for job in jobs)
