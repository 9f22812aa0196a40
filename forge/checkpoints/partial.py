"""The folder in which an output grows: who owns it, what is finished, what may be trusted.

    <out>.forge-partial/
        lock            held (flock) by the one process that writes; contains its pid
        journal.jsonl   first line: what is being made; then one line per finished tensor
        output/         becomes <out> by one rename

Only ``output/`` is ever renamed, so nothing of the bookkeeping can be left in a result,
and a process that dies between the rename and its clean-up leaves only an empty shell.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from forge.core.errors import OutputError

PARTIAL_SUFFIX: Final = ".forge-partial"
_JOURNAL_VERSION: Final = 1

_ENTRIES: Final = frozenset({"lock", "journal.jsonl", "output", "recipe.yaml", "mergekit.log"})
"""Everything that forge, with either engine, puts into a partial folder."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor that has been written completely.

    Attributes:
        name: Name in the output.
        digest: Hexadecimal XXH3-128 of its bytes.
        statistics: Whatever was measured; plain JSON values.
    """

    name: str
    digest: str
    statistics: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Journal:
    """What a journal says.

    Attributes:
        fingerprint: Of the run that wrote it.
        layout: Digest of its layout.
        records: Finished tensors by name.
        valid_bytes: Length without a torn last line.
    """

    fingerprint: str
    layout: str
    records: dict[str, TensorRecord]
    valid_bytes: int


class PartialLock:
    """An exclusive lock on a partial folder, released by ``close`` or by the process's death."""

    def __init__(self, folder: Path, out: Path) -> None:
        self._path = folder / "lock"
        self._descriptor = self._acquire(out)

    def _acquire(self, out: Path) -> int:
        _refuse_foreign(self._path.parent)
        while True:
            self._path.parent.mkdir(exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The owner before us may have removed the file between our open and our lock.
                if os.fstat(descriptor).st_nlink:
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                    return descriptor
            except BlockingIOError:
                owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
                os.close(descriptor)
                raise OutputError(
                    f"'{out}' is being written by another run"
                    f"{f' (process {owner})' if owner.isdigit() else ''}. "
                    "Wait for it, stop it, or choose another output folder."
                ) from None
            except OSError as error:
                os.close(descriptor)
                raise OutputError(
                    f"'{self._path}' cannot be locked: {error.strerror}. "
                    "Choose an output folder on a file system with locks."
                ) from error
            os.close(descriptor)

    def close(self, *, remove: bool) -> None:
        """Release the lock.

        Args:
            remove: Whether the lock file goes too; only its holder may do that.
        """
        if self._descriptor >= 0:
            if remove:
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


def _refuse_foreign(folder: Path) -> None:
    """Refuse to take over what forge has not made, because a partial folder gets emptied."""
    is_ours = not folder.is_symlink() and (
        not folder.exists()
        or (folder.is_dir() and all(entry.name in _ENTRIES for entry in folder.iterdir()))
    )
    if not is_ours:
        raise OutputError(
            f"'{folder}' is where an unfinished output is kept, and what is there is not one of "
            "forge's. Move it away, or choose another output folder."
        )


def read_journal(path: Path) -> Journal | None:
    """Read a journal.

    Args:
        path: The file.

    Returns:
        Its content up to the first line that is torn or not a journal's; ``None`` when there
        is no journal, or its first line is none.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    lines = content.split(b"\n")[:-1]
    head = _parse(lines[0]) if lines else None
    if head is None or head.get("forge_journal") != _JOURNAL_VERSION:
        return None
    fingerprint, layout = head.get("fingerprint"), head.get("layout")
    if not isinstance(fingerprint, str) or not isinstance(layout, str):
        return None
    valid_bytes = len(lines[0]) + 1
    records: dict[str, TensorRecord] = {}
    for line in lines[1:]:
        entry = _parse(line)
        if entry is None:
            break
        name, digest, statistics = entry.get("name"), entry.get("digest"), entry.get("statistics")
        if not (isinstance(name, str) and isinstance(digest, str) and isinstance(statistics, dict)):
            break
        records[name] = TensorRecord(name, digest, statistics)
        valid_bytes += len(line) + 1
    return Journal(fingerprint, layout, records, valid_bytes)


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def journal_head(fingerprint: str, layout: str) -> bytes:
    """Return a journal's first line.

    Args:
        fingerprint: Of the run.
        layout: Digest of the layout.

    Returns:
        The line with its line feed.
    """
    head = {"forge_journal": _JOURNAL_VERSION, "fingerprint": fingerprint, "layout": layout}
    return json.dumps(head).encode() + b"\n"


def journal_line(record: TensorRecord) -> bytes:
    """Return a finished tensor's line.

    Args:
        record: The tensor.

    Returns:
        The line with its line feed.
    """
    entry = {"name": record.name, "digest": record.digest, "statistics": dict(record.statistics)}
    return json.dumps(entry).encode() + b"\n"


def discard(folder: Path, *, keep: frozenset[str] = frozenset()) -> None:
    """Empty a folder of ours.

    Args:
        folder: The folder; it stays.
        keep: Names of entries that stay.
    """
    for entry in folder.iterdir():
        if entry.name in keep:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
