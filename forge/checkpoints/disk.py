"""What the disk has room for, how it fails, and how a folder of small files gets onto it."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

from forge.core.errors import OutputError

_SPARE_BYTES: Final = 16 << 20
"""Room for sidecars and the journal."""
_WORTH_STARTING: Final = 1 << 20
_SYNC_FILE_RANGE_WRITE: Final = 2
_FULL_OR_BROKEN: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse a disk that is too small.

    Args:
        folder: A folder on it.
        needed_bytes: What will be written, without sidecars.

    Raises:
        OutputError: There is less room than that.
    """
    free = _free_bytes(folder)
    if needed_bytes + _SPARE_BYTES > free:
        raise OutputError(
            f"'{folder.parent}' has {_readable(free)} free; the output needs "
            f"{_readable(needed_bytes + _SPARE_BYTES)} more. "
            "Free some space or choose another folder."
        )


def explain_failure(what: str, error: OSError, *, partial: Path) -> OutputError:
    """Return the error to raise when writing failed.

    Args:
        what: What could not be done.
        error: Why.
        partial: The folder that keeps what is finished.

    Returns:
        An error with a next step where there is one: room can be made, and the run resumed.
    """
    reason = error.strerror or str(error)
    if error.errno not in _FULL_OR_BROKEN:
        return OutputError(f"{what}: {reason}.")
    try:
        free = f" {_readable(_free_bytes(partial.parent))} are free there."
    except OSError:
        free = ""
    return OutputError(
        f"{what}: {reason}.{free} What is finished is kept in '{partial}': "
        "make room, and the same command resumes."
    )


def check_sidecar_names(names: Iterable[str], *, reserved: set[str]) -> None:
    """Refuse a small file that would leave the output's folder or replace its weights.

    Args:
        names: Paths relative to the folder, with forward slashes.
        reserved: Names that are taken.

    Raises:
        ValueError: A name is impossible; the caller made it, not the user.
    """
    for name in names:
        parts = name.split("/")
        if name in reserved or not all(part.isprintable() and part.strip(". ") for part in parts):
            raise ValueError(f"{name!r} is not a possible name for a sidecar")


def write_file(path: Path, content: bytes) -> None:
    """Write a small file, with the folders that lead to it.

    Args:
        path: The file.
        content: Its bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def sync_tree(folder: Path) -> None:
    """Make a folder and all that is in it survive a power loss.

    Args:
        folder: The folder.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            _sync_file(path)
    sync_folder(folder)


@cache
def _sync_file_range() -> Any:
    """Return the C library's function, or ``None`` where there is none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def start_writing(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the system begin to write a part of a file to the disk, and do not wait.

    So that the disk works beside the processor, and the sync at the end finds little left: for a
    merge of 0.5 GB that is a fifth of a second less. Failing does no harm, because that sync
    reports errors.

    Args:
        descriptor: The file.
        offset: Where the part begins, in bytes.
        nbytes: Its length.
    """
    function = _sync_file_range()
    if function is not None and nbytes >= _WORTH_STARTING:
        function(descriptor, offset, nbytes, _SYNC_FILE_RANGE_WRITE)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries survive a power loss.

    Args:
        folder: The folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot; they order their entries themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _readable(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
