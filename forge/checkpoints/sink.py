"""Write a checkpoint in place and out of order; resume it; publish it by one rename.

The output grows in ``<out>.forge-partial`` (see ``partial``) from a layout that is fixed
beforehand (see ``layout``). Files are sized with ``ftruncate``, which leaves holes:
reserving the blocks was measured to be five times slower. Tensors are written with
``pwrite``: dirtying a memory map costs a page fault per page and turns a full disk into a
signal instead of an error.

A journal line follows each finished tensor. What it says is checked against the bytes
before a later run trusts it, so neither a torn line nor a lost page can survive into a
result, and the order in which the system wrote them back does not matter.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final

from forge.checkpoints.disk import (
    check_sidecar_names,
    check_space,
    explain_failure,
    sync_tree,
    write_file,
)
from forge.checkpoints.hashing import FileRecord, checksum_of_range, record_file, tree_digest
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.layout import (
    PlannedTensor,
    ShardLayout,
    digest_layout,
    index_file,
    lay_out,
)
from forge.checkpoints.partial import (
    PARTIAL_SUFFIX,
    PartialLock,
    TensorRecord,
    discard,
    journal_head,
    journal_line,
    read_journal,
)
from forge.checkpoints.replace import MANIFEST_FILE, check_replaceable, publish
from forge.checkpoints.shard import GrowingShard
from forge.checkpoints.source import SINGLE_FILE
from forge.core.errors import CheckpointError, OutputError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "MANIFEST_FILE",
    "FileRecord",
    "PlannedTensor",
    "ShardLayout",
    "TensorRecord",
    "TensorSink",
    "check_replaceable",
    "lay_out",
]

_FLUSH_SECONDS: Final = 5.0
_LOG = logging.getLogger(__name__)


class TensorSink:
    """An output checkpoint under construction; a context manager.

    Leaving the context without ``commit`` keeps what is finished for the next run of the same
    merge, or removes everything when nothing is. ``write`` and ``finish`` may be called from
    many threads, in any order; each tensor is written by one caller and finished once.

    Args:
        out: The folder to make.
        tensors: What it will hold; see ``lay_out``.
        max_shard_bytes: See ``lay_out``.
        fingerprint: Identifies the work (recipe, inputs, versions); a partial folder with
            another fingerprint is discarded.
        overwrite: Whether an existing output of forge may be replaced.
        single_file: See ``lay_out``.

    Attributes:
        layout: Where every tensor lies.
        done: Finished tensors, those of an earlier run included.
        discarded_reason: Why an earlier run's partial folder was not used, or ``None``.

    Raises:
        OutputError: The output exists, another process writes it, the place is not writable, or
            the disk is too small. Nothing that existed has been touched.
    """

    def __init__(
        self,
        out: Path,
        tensors: Sequence[PlannedTensor],
        *,
        max_shard_bytes: int,
        fingerprint: str,
        overwrite: bool = False,
        single_file: str = SINGLE_FILE,
    ) -> None:
        check_replaceable(out, overwrite=overwrite)
        self.layout = lay_out(tensors, max_shard_bytes=max_shard_bytes, single_file=single_file)
        self.discarded_reason: str | None = None
        self._out = out.resolve()
        self._overwrite = overwrite
        self._partial = self._out.with_name(self._out.name + PARTIAL_SUFFIX)
        self._folder = self._partial / "output"
        self._journal_path = self._partial / "journal.jsonl"
        self._places: dict[str, tuple[GrowingShard, TensorInfo]] = {}
        self._shards = [GrowingShard(self._folder / shard.file, shard) for shard in self.layout]
        for shard in self._shards:
            for tensor in shard.layout.tensors:
                self._places[tensor.name] = (shard, tensor)
        self._done: dict[str, TensorRecord] = {}
        self.done: Mapping[str, TensorRecord] = MappingProxyType(self._done)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._dirty = threading.Event()
        self._journal = -1
        self._owner: PartialLock | None = None
        self._flusher: threading.Thread | None = None
        self._flush_error: OSError | None = None
        self._keep = False
        self._published = False
        try:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._owner = PartialLock(self._partial, out)
        except OSError as error:
            raise self._failed(f"'{self._out.parent}' is not writable", error) from error
        try:
            self._open(fingerprint)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise self._failed(f"'{self._partial}' cannot be prepared", error) from error
            raise
        self._flusher = threading.Thread(
            target=self._flush_regularly, name="forge-flush", daemon=True
        )
        self._flusher.start()

    def write(self, name: str, offset: int, data: memoryview | npt.NDArray[np.generic]) -> None:
        """Write a part of a tensor.

        Args:
            name: The tensor.
            offset: Where the part begins, in bytes from the tensor's own start.
            data: Contiguous bytes or array; of an array, its bytes count and not its dtype.

        Raises:
            OutputError: The disk is full or failed. The same command resumes.
            ValueError: The part does not lie inside the tensor.
        """
        shard, tensor = self._places[name]
        view = data if isinstance(data, memoryview) else data.data
        if offset < 0 or offset + view.nbytes > tensor.nbytes:
            raise ValueError(f"{view.nbytes} bytes at {offset} leave tensor '{name}'")
        if view.nbytes == 0:
            return
        view = view.cast("B")
        position = tensor.offset + offset
        try:
            descriptor = shard.descriptor()
            while view:
                count = os.pwrite(descriptor, view, position)
                view = view[count:]
                position += count
        except OSError as error:
            raise self._failed(f"'{shard.path.name}' cannot be written", error) from error

    def finish(self, name: str, *, digest: str, statistics: Mapping[str, object]) -> None:
        """Record that all parts of a tensor have been written.

        Args:
            name: The tensor.
            digest: Hexadecimal XXH3-128 of its bytes, as they were handed to ``write``.
            statistics: Plain JSON values, kept with the record.

        Raises:
            OutputError: The journal cannot be written.
        """
        shard, tensor = self._places[name]
        record = TensorRecord(name, digest, dict(statistics))
        line = journal_line(record)
        try:
            with self._lock:
                # One write on a descriptor opened for appending: a line is whole or torn at
                # the end of the file, never mixed with another one.
                if os.write(self._journal, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._done[name] = record
        except OSError as error:
            raise self._failed("the journal cannot be written", error) from error
        self._dirty.set()
        shard.start_writing(tensor)
        shard.mark(tensor)

    def commit(
        self,
        sidecars: Mapping[str, bytes],
        manifest: Callable[[Mapping[str, FileRecord]], bytes],
    ) -> None:
        """Complete the output and make it visible.

        Args:
            sidecars: Small files by path relative to the output.
            manifest: Given the XXH3-128 records of all files by path, returns the manifest's
                bytes. It is called once, after everything else has been written.

        Raises:
            OutputError: The disk is full, or the output cannot be put in place; what was there
                is still there.
            ValueError: A tensor is not finished, or a sidecar's path leaves the output.
        """
        missing = [name for name in self._places if name not in self._done]
        if missing:
            raise ValueError(f"{len(missing)} tensors are not finished, such as '{missing[0]}'")
        small = {**index_file(self.layout), **sidecars}
        check_sidecar_names(small, reserved={shard.file for shard in self.layout} | {MANIFEST_FILE})
        self._stop_flushing()
        try:
            if self._flush_error is not None:
                # The system reports a lost page once; a second sync would not know of it.
                raise self._flush_error
            for name, content in small.items():
                write_file(self._folder / name, content)
            records = self._records(small)
            write_file(self._folder / MANIFEST_FILE, manifest(records))
            sync_tree(self._folder)
        except OSError as error:
            raise self._failed(f"'{self._partial}' cannot be completed", error) from error
        except CheckpointError as error:
            raise OutputError(f"The output cannot be read back: {error}") from error
        check_replaceable(self._out, overwrite=self._overwrite)
        publish(self._folder, self._out, overwrite=self._overwrite)
        self._published = True
        self._done_with(remove=True)

    def close(self) -> None:
        """Release everything; finished tensors stay for the next run, and without any, nothing.

        No thread may be in ``write`` or ``finish`` any more: a descriptor closed under it could
        be another file's by the time it writes.
        """
        self._stop_flushing()
        self._done_with(remove=self._published or not (self._done or self._keep))

    def __enter__(self) -> TensorSink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- opening ---------------------------------------------------------------------------

    def _open(self, fingerprint: str) -> None:
        layout = digest_layout(self.layout)
        journal = read_journal(self._journal_path)
        if journal is None and self._folder.exists():
            self.discarded_reason = "its journal is unreadable"
        elif journal is not None and journal.fingerprint != fingerprint:
            self.discarded_reason = "it belongs to another recipe, other inputs or another version"
        elif journal is not None and journal.layout != layout:
            self.discarded_reason = "its tensors were laid out differently"
        if journal is None or self.discarded_reason is not None:
            discard(self._partial, keep=frozenset({"lock"}))
            journal = None
        # Until its tensors have been verified, an earlier run's work is not ours to delete.
        self._keep = journal is not None and bool(journal.records)
        self._folder.mkdir(exist_ok=True)
        # Also after a crash between an exchange and the clean-up, nothing old may remain.
        discard(self._folder, keep=frozenset(shard.file for shard in self.layout))
        self._check_space()
        for shard in self._shards:
            shard.prepare()
        self._journal = os.open(
            self._journal_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666
        )
        if journal is None:
            os.write(self._journal, journal_head(fingerprint, layout))
        else:
            os.ftruncate(self._journal, journal.valid_bytes)
            self._trust_verified(journal.records)

    def _check_space(self) -> None:
        needed = sum(shard.layout.file_bytes for shard in self._shards)
        present = sum(shard.allocated_bytes() for shard in self._shards)
        check_space(self._partial, needed - present)

    def _trust_verified(self, records: Mapping[str, TensorRecord]) -> None:
        known = [record for name, record in records.items() if name in self._places]
        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            verdicts = list(pool.map(self._is_intact, known))
        self._done.update(
            {row.name: row for row, intact in zip(known, verdicts, strict=True) if intact}
        )
        if len(self._done) < len(known):
            _LOG.warning(
                "%d of %d tensors of the interrupted run are damaged; they are redone",
                len(known) - len(self._done),
                len(known),
            )
        self._keep = False
        for name in self._done:
            shard, tensor = self._places[name]
            shard.mark(tensor)

    def _is_intact(self, record: TensorRecord) -> bool:
        shard, tensor = self._places[record.name]
        try:
            digest = checksum_of_range(shard.path, tensor.offset, tensor.nbytes)
        except CheckpointError as error:
            _LOG.warning("%s", error)
            return False
        return digest == record.digest

    # -- finishing -------------------------------------------------------------------------

    def _records(self, small: Mapping[str, bytes]) -> dict[str, FileRecord]:
        records = [record_file(self._folder / name, name=name) for name in small]
        for shard in self.layout:
            digest = tree_digest(
                shard.header, (self._done[tensor.name].digest for tensor in shard.tensors)
            )
            records.append(FileRecord(shard.file, shard.file_bytes, "xxh3_128_tree", digest))
        return {record.name: record for record in sorted(records, key=lambda row: row.name)}

    def _flush_regularly(self) -> None:
        while not self._stop.wait(_FLUSH_SECONDS):
            if self._dirty.is_set():
                self._dirty.clear()
                try:
                    for shard in self._shards:
                        shard.sync()
                    os.fdatasync(self._journal)
                except OSError as error:
                    self._flush_error = error
                    return

    def _stop_flushing(self) -> None:
        self._stop.set()
        if self._flusher is not None:
            self._flusher.join()

    def _done_with(self, *, remove: bool) -> None:
        for shard in self._shards:
            shard.close()
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
        if self._owner is None:
            return
        if remove:
            try:
                # First, so that a later run never takes what is left here for progress.
                self._journal_path.unlink(missing_ok=True)
                discard(self._partial, keep=frozenset({"lock"}))
            except OSError as error:
                _LOG.warning(
                    "'%s' could not be deleted (%s); delete it yourself", self._partial, error
                )
        self._owner.close(remove=remove)
        self._owner = None
        if remove:
            try:
                self._partial.rmdir()
            except OSError:
                # Another merge has just moved in; the folder is now its own.
                _LOG.debug("'%s' is in use again", self._partial)

    def _failed(self, what: str, error: OSError) -> OutputError:
        return explain_failure(what, error, partial=self._partial)
