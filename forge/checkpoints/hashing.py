"""Digests of tensors, and of files made from them.

Every tensor has the XXH3-128 of its bytes, taken while they are in the processor's cache: where
it is computed, or where it is read for a merge. A safetensors file is nothing but a header and
tensors, so its digest is made from theirs and costs no second reading:

    xxh3_128_tree   XXH3-128 over one line (hexadecimal, line feed) each for the XXH3-128 of its
                    first bytes up to the data section and of every tensor in order of offset

Any other file is hashed as a whole. XXH3-128 runs at the speed of memory, where BLAKE3 took a
fifth and SHA-256 half of a merge's CPU time. It finds every damage; it is no signature, but
neither would another digest be that lies beside what it vouches for.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from forge.checkpoints.header import read_header
from forge.core.errors import CheckpointError

if TYPE_CHECKING:
    import xxhash

Algorithm = Literal["sha256", "xxh3_128", "xxh3_128_tree"]

_PIECE_BYTES: Final = 16 << 20
"""Hashed in one go; a signal waits no longer than that."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file was.

    Attributes:
        name: Path relative to the checkpoint's folder, with forward slashes.
        bytes: Size.
        algorithm: ``xxh3_128_tree`` for safetensors, else ``xxh3_128``.
        digest: Hexadecimal digest of the whole file.
    """

    name: str
    bytes: int
    algorithm: Algorithm
    digest: str

    def as_json(self) -> dict[str, object]:
        """Return the record as manifests list it."""
        return {"bytes": self.bytes, self.algorithm: self.digest}


def content_digest(tensors: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """Return a digest of a checkpoint's tensors that does not depend on how files are cut.

    Args:
        tensors: Name, dtype, shape and XXH3-128 of each.

    Returns:
        The hexadecimal SHA-256 over one line for each tensor, by name.
    """
    hasher = hashlib.sha256()
    for name, dtype, shape, digest in sorted(tensors, key=lambda row: row[0]):
        line = f"{name}\0{dtype}\0{list(shape)}\0{digest}\n"
        hasher.update(line.encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()


def tree_digest(header: bytes, digests: Iterable[str]) -> str:
    """Return the ``xxh3_128_tree`` of a safetensors file.

    Args:
        header: Its first bytes, up to the data section.
        digests: Hexadecimal XXH3-128 of its tensors, in order of offset.

    Returns:
        The hexadecimal digest.
    """
    return tree_of(checksum_of(memoryview(header)), digests)


def tree_of(header_digest: str, digests: Iterable[str]) -> str:
    """Return the ``xxh3_128_tree`` of a file whose header has been hashed already."""
    lines = "".join(f"{digest}\n" for digest in (header_digest, *digests))
    return checksum_of(memoryview(lines.encode()))


def record_safetensors(
    path: Path, *, known: Mapping[str, str] | None = None, name: str | None = None
) -> FileRecord:
    """Return the record of a safetensors file.

    Args:
        path: The file.
        known: Digests that need not be computed again, by tensor.
        name: Name in the record; the file's own name by default.

    Returns:
        The record.

    Raises:
        CheckpointError: The file cannot be read, or is no safetensors file.
    """
    known = known or {}
    header = read_header(path)
    digests = [
        known[tensor.name]
        if tensor.name in known
        else checksum_of_range(path, tensor.offset, tensor.nbytes)
        for tensor in header.tensors.values()
    ]
    digest = tree_of(checksum_of_range(path, 0, header.data_start), digests)
    return FileRecord(name or path.name, header.file_bytes, "xxh3_128_tree", digest)


def record_file(
    path: Path, *, known: Mapping[str, str] | None = None, name: str | None = None
) -> FileRecord:
    """Return the record of any file; what is called safetensors must be it.

    Args:
        path: The file.
        known: As for ``record_safetensors``; of other files, nothing can be known.
        name: Name in the record; the file's own name by default.

    Returns:
        The record.

    Raises:
        CheckpointError: The file cannot be read.
    """
    if path.suffix == ".safetensors":
        return record_safetensors(path, known=known, name=name)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    return FileRecord(name or path.name, size, "xxh3_128", checksum_of_range(path, 0, size))


def record_files(paths: Iterable[Path]) -> tuple[FileRecord, ...]:
    """Return the records of several files, computed on all cores.

    Args:
        paths: The files.

    Returns:
        One record per file, in the order given.

    Raises:
        CheckpointError: A file cannot be read.
    """
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        return tuple(pool.map(record_file, paths))


def new_checksum() -> xxhash.xxh3_128:
    """Return an empty XXH3-128 to be updated."""
    import xxhash

    return xxhash.xxh3_128()


def checksum_of(data: memoryview) -> str:
    """Return the XXH3-128 of bytes in memory.

    Args:
        data: Contiguous bytes.

    Returns:
        The hexadecimal digest.
    """
    hasher = new_checksum()
    hasher.update(data)
    return hasher.hexdigest()


def checksum_of_range(path: Path, offset: int, nbytes: int) -> str:
    """Return the XXH3-128 of a part of a file.

    The part is mapped: the pages are mostly in memory, and a copy costs as much again.

    Args:
        path: The file.
        offset: Where the part begins, in bytes.
        nbytes: Its length.

    Returns:
        The hexadecimal digest.

    Raises:
        CheckpointError: The file cannot be read, or ends before the part does.
    """
    hasher = new_checksum()
    if not nbytes:
        return hasher.hexdigest()
    try:
        with path.open("rb") as file:
            # A map beyond the end of a file would kill the process on access.
            if os.fstat(file.fileno()).st_size < offset + nbytes:
                raise CheckpointError(f"'{path}' is shorter than expected.")
            start = offset - offset % mmap.ALLOCATIONGRANULARITY
            length = offset + nbytes - start
            with (
                mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start) as mapped,
                memoryview(mapped) as view,
            ):
                # Piece by piece, so that another thread gets the interpreter in between.
                for begin in range(offset - start, length, _PIECE_BYTES):
                    with view[begin : min(begin + _PIECE_BYTES, length)] as piece:
                        hasher.update(piece)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    return hasher.hexdigest()
