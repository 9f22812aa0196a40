"""Change the layout of a quantized checkpoint without loss, layer by layer.

Codes, scales and zero points are read from one layout and laid out in another; nothing is
rounded, so the way back gives the same bytes. Every other tensor is copied. Like a merge, the
output appears at once when it is complete, and the same command resumes.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.hashing import FileRecord, checksum_of, new_checksum, record_safetensors
from forge.checkpoints.manifest import manifest_bytes
from forge.checkpoints.progress import Progress, Silence
from forge.checkpoints.sink import MANIFEST_FILE, TensorSink, check_replaceable
from forge.core.errors import CheckpointError, IncompatibleError
from forge.formats.catalog import load_format
from forge.quantize.conversion import Conversion, ConvertedLayer, plan_conversion
from forge.quantize.conversion_outputs import convert_manifest, sidecars_of
from forge.quantize.workers import run_all
from forge.quantize.writing import StoppedError
from forge.recipes.reference import ModelReference

DEFAULT_MAX_SHARD_BYTES: Final = 5 * 10**9

_PIECE_BYTES: Final = 1 << 20
"""Hashed while it is in the cache, and written in one go; a signal waits no longer than that."""
_NUMPY: Final = {"I16": np.int16, "I32": np.int32, "I64": np.int64, "F16": np.float16}


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What a conversion made.

    Attributes:
        out: The folder.
        manifest: What ``forge_manifest.json`` says.
        seconds: Wall time, in seconds.
        num_tensors: Tensors of the output.
        resumed_tensors: How many of them an earlier run had finished.
    """

    out: Path
    manifest: Mapping[str, object]
    seconds: float
    num_tensors: int
    resumed_tensors: int


def run_convert(
    model: ModelReference,
    to: str,
    out: Path,
    *,
    threads: int | None = None,
    max_shard_bytes: int = DEFAULT_MAX_SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert a checkpoint.

    Args:
        model: The quantized model.
        to: Name of the new layout, such as ``gemm`` or ``compressed-tensors``.
        out: The folder to make.
        threads: Worker threads; by default one for each core that this process may use.
        max_shard_bytes: Most tensor bytes in one file.
        overwrite: Whether an existing output of forge may be replaced, once the new one is whole.
        progress: Hears how it goes.

    Raises:
        ForgeError: The input or the output is not as it should be. What existed is untouched, and
            finished tensors are kept for the same command.
    """
    started = time.monotonic()
    progress = progress or Silence()
    progress.stage("checking")
    if model.lora is not None:
        raise IncompatibleError(
            f"'{model}' has an adapter, and a conversion cannot apply one to codes. Merge the "
            "adapter into the model in full precision, and quantize the result."
        )
    checkpoint = open_checkpoint(model, stored=True)
    try:
        plan = plan_conversion(checkpoint, to)
        notices = _notices(checkpoint, plan)
        for notice in notices:
            progress.notice(notice)
        existing = None if overwrite else _made_before(out, checkpoint, plan)
        if existing is not None:
            progress.notice(f"'{out}' already holds exactly this; nothing is left to do.")
            num = len(plan.tensors)
            return ConvertResult(out, existing, time.monotonic() - started, num, num)
        with TensorSink(
            out,
            plan.tensors,
            max_shard_bytes=max_shard_bytes,
            fingerprint=_fingerprint(checkpoint, plan),
            overwrite=overwrite,
        ) as sink:
            if sink.discarded_reason:
                progress.notice(f"Unfinished work was discarded: {sink.discarded_reason}.")
            resumed = len(sink.done)
            workers = _Workers(checkpoint, plan, sink, progress)
            workers.run(threads or len(os.sched_getaffinity(0)))
            progress.stage("hashing")
            inputs = workers.input_records()
            progress.stage("publishing")
            content: dict[str, object] = {}

            def manifest(files: Mapping[str, FileRecord]) -> bytes:
                content.update(convert_manifest(checkpoint, plan, notices, inputs, sink, files))
                return manifest_bytes(content)

            sink.commit(sidecars_of(checkpoint, plan), manifest)
    finally:
        checkpoint.source.close()
    seconds = time.monotonic() - started
    return ConvertResult(out, content, seconds, len(plan.tensors), resumed)


class _Workers:
    """The workers of one conversion: each takes a layer, or a tensor to copy."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Conversion, sink: TensorSink, progress: Progress
    ) -> None:
        self._source = checkpoint.source
        self._plan = plan
        self._sink = sink
        self._progress = progress
        self._stop = threading.Event()
        self._from = load_format(plan.source_row.name)
        self._to = load_format(plan.target_row.name)
        self._digests: dict[str, str] = {}

    def run(self, num_threads: int) -> None:
        """Write all tensors that are not finished."""
        done = sum(tensor.nbytes for tensor in self._plan.tensors if tensor.name in self._sink.done)
        self._progress.stage("converting")
        self._progress.start(sum(tensor.nbytes for tensor in self._plan.tensors), done)
        run_all(self._jobs(), num_threads=num_threads, stop=self._stop)

    def input_records(self) -> dict[Path, FileRecord]:
        """Return the records of all input files, reading only what no job has read."""
        return {
            file: record_safetensors(file, known=self._known_of(file))
            for file in self._source.files()
        }

    def _known_of(self, file: Path) -> dict[str, str]:
        return {
            name: digest
            for name, digest in self._digests.items()
            if self._source.info(name).file == file
        }

    def _jobs(self) -> Iterator[Callable[[], None]]:
        done = self._sink.done
        for layer in self._plan.layers:
            if not all(name in done for name in layer.target_names):
                yield partial(self._convert, layer)
        for name in self._plan.copied:
            if name not in done:
                yield partial(self._copy, name)

    def _convert(self, layer: ConvertedLayer) -> None:
        parts: dict[str, npt.NDArray[np.generic]] = {}
        for part, name in zip(layer.source_parts, layer.source_names, strict=True):
            view = self._source.read(name)
            self._digests[name] = checksum_of(view)
            parts[part.suffix] = np.frombuffer(view, _NUMPY[part.dtype]).reshape(part.shape)
        try:
            weight = self._from.unpack(parts, shape_OI=layer.shape_OI, scheme=self._plan.scheme)
            packed = self._to.pack(weight)
        except (CheckpointError, IncompatibleError) as error:
            raise type(error)(f"'{layer.module}' of '{self._source.label}': {error}") from error
        for part, name in zip(layer.target_parts, layer.target_names, strict=True):
            if name not in self._sink.done:
                array = np.ascontiguousarray(packed[part.suffix])
                self._write(name, array.reshape(-1).view(np.uint8).data, "converted")

    def _copy(self, name: str) -> None:
        self._digests[name] = self._write(name, self._source.read(name), "copied")

    def _write(self, name: str, data: memoryview, method: str) -> str:
        hasher = new_checksum()
        for start in range(0, data.nbytes, _PIECE_BYTES):
            if self._stop.is_set():
                raise StoppedError
            piece = data[start : start + _PIECE_BYTES]
            hasher.update(piece)
            self._sink.write(name, start, piece)
            self._progress.advance(piece.nbytes)
        digest = hasher.hexdigest()
        self._sink.finish(name, digest=digest, statistics={"method": method})
        return digest


def _notices(checkpoint: Checkpoint, plan: Conversion) -> tuple[str, ...]:
    notices = list(checkpoint.notices)
    if plan.target_row.notice is not None:
        notices.append(plan.target_row.notice)
    if plan.scheme.symmetric and plan.target_row.version is not None:
        notices.append(
            "AWQ has no symmetric scheme: zero points, which are all the middle code, are written "
            "out. A conversion back keeps them, so its file is larger than this one was."
        )
    return tuple(notices)


def _fingerprint(checkpoint: Checkpoint, plan: Conversion) -> str:
    """Identify a conversion for resuming."""
    status = [(file, file.stat()) for file in checkpoint.source.files()]
    files = [[file.name, row.st_size, row.st_mtime_ns, row.st_ino] for file, row in status]
    content = {"to": plan.target_row.name, "files": files, "forge": __version__}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _made_before(
    out: Path, checkpoint: Checkpoint, plan: Conversion
) -> Mapping[str, object] | None:
    """Return the manifest of an output that this conversion made, if nothing of it is missing.

    Raises:
        OutputError: The output is something else.
    """
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_bytes())
        files = manifest["files"]
        is_whole = all((out / name).stat().st_size == files[name]["bytes"] for name in files)
        is_ours = (manifest["kind"], manifest["forge"]) == ("convert", __version__)
        wanted = {"from": plan.source_row.name, "to": plan.target_row.name}
        entries = {entry["name"]: entry for entry in manifest["inputs"][0]["files"]}
        if is_whole and is_ours and manifest["conversion"] == wanted:
            records = [record_safetensors(file) for file in checkpoint.source.files()]
            if all(entries[row.name][row.algorithm] == row.digest for row in records):
                return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        pass
    check_replaceable(out, overwrite=False)
    return None
