"""Make a finished folder visible in one step, with or without one in its place."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from forge.checkpoints.disk import sync_folder
from forge.core.errors import OutputError

MANIFEST_FILE: Final = "forge_manifest.json"
"""Its presence says that forge made a folder, and may replace it."""
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_UNSUPPORTED: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})


def check_replaceable(out: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that must not be touched.

    Args:
        out: The folder to make.
        overwrite: Whether an existing output of forge may be replaced.

    Raises:
        OutputError: It exists and is not empty, and ``overwrite`` is false; or it was not made by
            forge; or it is not a folder.
    """
    try:
        if not out.exists():
            return
        if not out.is_dir():
            raise OutputError(f"'{out}' exists and is not a folder. Choose another output.")
        entries = {entry.name for entry in out.iterdir()}
    except OSError as error:
        raise OutputError(f"'{out}' cannot be looked into: {error.strerror}.") from error
    if not entries:
        return
    if not overwrite:
        raise OutputError(
            f"'{out}' exists and is not empty. Choose another output, or pass --overwrite."
        )
    if MANIFEST_FILE not in entries:
        raise OutputError(
            f"'{out}' was not made by forge (it has no {MANIFEST_FILE}), so it is not "
            "overwritten. Delete it yourself, or choose another output."
        )


def publish(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Rename a finished folder to its final name.

    Args:
        folder: The finished folder, on the same file system as ``out``.
        out: Its final name.
        overwrite: Whether a folder of that name may be replaced. The two exchange their names
            in one step, so that the old one is ``folder`` afterwards, for the caller to delete.

    Raises:
        OutputError: The rename failed, or something has appeared in the place meanwhile. What
            was there is still there.
    """
    try:
        if overwrite and out.exists():
            _exchange(folder, out)
        else:
            # An empty folder may stand there: rename replaces it, and fails on any other.
            folder.rename(out)
    except OSError as error:
        raise OutputError(
            f"'{out}' cannot be put in place: {error.strerror}. "
            f"The finished result is in '{folder}'; the same command will try again."
        ) from error
    sync_folder(out.parent)


def _exchange(folder: Path, out: Path) -> None:
    code = _renameat2(folder, out, _RENAME_EXCHANGE)
    if code == 0:
        return
    if code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    # Without an atomic exchange there is a moment without any output, but never a loss.
    aside = folder.with_name(folder.name + "-replaced")
    out.rename(aside)
    try:
        folder.rename(out)
    except OSError:
        aside.rename(out)
        raise
    aside.rename(folder)


def _renameat2(source: Path, target: Path, flags: int) -> int:
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return errno.ENOSYS
    function.argtypes = [
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
    ]  # fmt: skip
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return 0
    return ctypes.get_errno()
