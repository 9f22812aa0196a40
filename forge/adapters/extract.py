"""Extract a fine-tune from its base as a LoRA adapter: ``A - B`` as thin factors.

The work has four parts. Both models are compared, tensor by tensor, which says what differs and by
how much. The differences are sorted into those that factors can hold, those that are held whole,
and those that an adapter cannot hold, which are named with what they lose. Then each difference is
decomposed (see ``truncation``) and its factors are written. At last everything is hashed and
appears at once.

A tensor is read from mapped files and leaves as its factors, so memory holds one difference for
each thread. With a share of the energy instead of a rank, the ranks are known only when all tensors
have been decomposed; until then the factors wait in a nameless file beside the output.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from forge import __version__
from forge.adapters.comparing import energies_of
from forge.adapters.contract import ExtractResult, Request, TensorEnergy, check_request
from forge.adapters.delta import Delta, Singles
from forge.adapters.finished import finished_extraction, is_extracted_from
from forge.adapters.jobs import run_all
from forge.adapters.limits import check_experts, notices_of
from forge.adapters.outputs import (
    KIND,
    adapter_config,
    extraction_manifest,
    factor_names,
    is_flipped,
    planned_tensors,
    public_name,
    sidecars,
    whole_tensors,
)
from forge.adapters.plan import Changed, Pairing, kept_share, pair_up, sort_changes
from forge.adapters.scratch import Scratch
from forge.adapters.truncation import Truncated, kept_energy, truncate
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.companions import ADAPTER_WEIGHTS_FILE
from forge.checkpoints.floats import encode
from forge.checkpoints.hashing import FileRecord, checksum_of, record_files
from forge.checkpoints.manifest import library_versions, manifest_bytes
from forge.checkpoints.progress import Progress, Silence
from forge.checkpoints.sink import PlannedTensor, TensorSink, check_replaceable
from forge.core.dtypes import BY_TORCH_NAME, DTYPES
from forge.core.errors import IncompatibleError
from forge.recipes.reference import ModelReference

_ALL_BYTES: Final = 1 << 62


def run_extract(
    tuned: str,
    base: str,
    out: Path,
    request: Request,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExtractResult:
    """Extract an adapter.

    Args:
        tuned: The fine-tune: a folder, a Hub id, ``path@revision``, ``model+lora``.
        base: The model that it was tuned from.
        out: The folder to make. It appears at once, when everything in it is complete.
        request: What is asked for.
        threads: Tensors at work at once; by default one for each core.
        overwrite: Whether an existing output of forge may be replaced.
        progress: Hears how it goes.

    Returns:
        What was made.

    Raises:
        IncompatibleError: The one is not a fine-tune of the other, nothing differs, or the rank
            is beyond every matrix.
        CheckpointError: A model cannot be read.
        NonFiniteError: A tensor holds a NaN or an infinity.
        OutputError: The output exists, or cannot be written. Nothing that existed is touched, and
            the same call resumes.
    """
    started = time.monotonic()
    progress = progress or Silence()
    check_request(request)
    existing = None if overwrite else finished_extraction(out, request)
    if existing is None:
        check_replaceable(out, overwrite=overwrite)
    models: dict[str, Checkpoint] = {}
    try:
        for role, text in (("model", tuned), ("base", base)):
            progress.stage("opening")
            models[role] = open_checkpoint(ModelReference.parse(text))
        run = _Extraction(models, out, request, threads, progress, overwrite=overwrite)
        if existing is not None:
            progress.stage("hashing")
            if is_extracted_from(existing, models):
                progress.notice(f"'{out}' already holds exactly this adapter.")
                return run.describe(existing, started)
            check_replaceable(out, overwrite=False)
        return run.run(started)
    finally:
        for checkpoint in models.values():
            checkpoint.source.close()


class _Extraction:
    """One extraction from opened models."""

    def __init__(
        self,
        models: Mapping[str, Checkpoint],
        out: Path,
        request: Request,
        threads: int | None,
        progress: Progress,
        *,
        overwrite: bool,
    ) -> None:
        self._models = models
        self._out = out
        self._request = request
        self._threads = threads or len(os.sched_getaffinity(0))
        self._progress = progress
        self._overwrite = overwrite
        self._dtype = BY_TORCH_NAME[request.dtype].name
        self._notices: list[str] = [text for one in models.values() for text in one.notices]
        self._pairing: Pairing
        self._changes: tuple[Changed, ...]

    def run(self, started: float) -> ExtractResult:
        """Make the adapter."""
        for notice in self._notices:
            self._progress.notice(notice)
        factored = self._sort()
        for notice in notices_of(self._changes, self._pairing, self._request):
            self._say(notice)
        with Scratch(self._out) as scratch:
            ranks = self._ranks(factored, scratch)
            check_experts(factored, ranks)
            return self._write(factored, ranks, scratch, started)

    def describe(self, manifest: dict[str, Any], started: float) -> ExtractResult:
        """Say of an adapter that is there what would be said if it had just been made.

        Args:
            manifest: Its manifest.
            started: When the work began.
        """
        tensors = manifest["tensors"]
        told = {one.name: tensors[factor_names(one)[1]] for one in self._sort()}
        ranks = {name: int(entry["rank"]) for name, entry in told.items()}
        rows = tuple(_row(change, told.get(change.name), ranks) for change in self._changes)
        size = sum(
            math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
            for entry in tensors.values()
        )
        kept, num = float(manifest["energy"]["kept"]), len(tensors)
        seconds = time.monotonic() - started
        return ExtractResult(self._out, manifest, rows, kept, num, num, size, seconds)

    def _sort(self) -> list[Changed]:
        """Find what differs and what becomes of it; return what is held by factors."""
        tuned, base = self._models["model"], self._models["base"]
        if (tuned.root.resolve(), str(tuned.reference.lora)) == (
            base.root.resolve(), str(base.reference.lora)
        ):  # fmt: skip
            raise IncompatibleError(
                f"'{tuned.reference}' and '{base.reference}' are the same model. Name the "
                "fine-tune, and its base with --base."
            )
        self._pairing = pair_up(tuned, base, embeddings=self._request.embeddings)
        energies = energies_of(self._pairing, threads=self._threads, progress=self._progress)
        if not energies:
            raise IncompatibleError(
                f"Every tensor of '{tuned.reference}' is that of '{base.reference}'; there is "
                "nothing to extract."
            )
        self._changes = sort_changes(
            self._pairing, energies, base.config, embeddings=self._request.embeddings
        )
        return [change for change in self._changes if change.fate == "factors"]

    # -- what is held ----------------------------------------------------------------------

    def _ranks(self, factored: Sequence[Changed], scratch: Scratch) -> dict[str, int]:
        if self._request.share is None:
            assert self._request.rank is not None
            return {change.name: min(self._request.rank, change.side) for change in factored}
        self._progress.stage("decomposing")
        self._progress.start(sum(math.prod(change.shape) for change in factored), 0)

        def decompose(change: Changed) -> None:
            delta = Delta(change.tuned, change.base)
            scratch.put(change.name, self._factors(change, delta))
            self._progress.advance(math.prod(change.shape))

        jobs = (partial(decompose, change) for change in _by_size(factored))
        run_all(jobs, num_threads=self._threads)
        return {change.name: scratch.rank(change.name) for change in factored}

    def _factors(self, change: Changed, delta: Delta) -> Truncated:
        return truncate(
            delta,
            rank=self._request.rank or change.side,
            share=self._request.share,
            energy=change.energy,
            name=change.name,
        )

    # -- writing ---------------------------------------------------------------------------

    def _write(
        self,
        factored: Sequence[Changed],
        ranks: Mapping[str, int],
        scratch: Scratch,
        started: float,
    ) -> ExtractResult:
        whole = whole_tensors(self._changes, self._pairing)
        tensors = planned_tensors(
            self._changes, ranks, whole, pairing=self._pairing, dtype=self._dtype
        )
        with TensorSink(
            self._out,
            tensors,
            max_shard_bytes=_ALL_BYTES,
            fingerprint=self._fingerprint(),
            overwrite=self._overwrite,
            single_file=ADAPTER_WEIGHTS_FILE,
        ) as sink:
            resumed = len(sink.done)
            if sink.discarded_reason:
                self._say(f"An unfinished extraction was discarded: {sink.discarded_reason}.")
            if resumed:
                self._say(f"Resumed: {resumed} of {len(tensors)} tensors were finished.")
            self._extract(sink, factored, whole, tensors, scratch)
            return self._publish(sink, tensors, ranks, resumed, started)

    def _extract(
        self,
        sink: TensorSink,
        factored: Sequence[Changed],
        whole: Mapping[str, str],
        tensors: Sequence[PlannedTensor],
        scratch: Scratch,
    ) -> None:
        sizes = {tensor.name: tensor.nbytes for tensor in tensors}
        self._progress.stage("extracting")
        self._progress.start(sum(sizes.values()), sum(sizes[name] for name in sink.done))

        def extract(change: Changed) -> None:
            a, b = factor_names(change)
            if a in sink.done and b in sink.done:
                return
            delta = Delta(change.tuned, change.base)
            found = scratch.get(change.name) or self._factors(change, delta)
            kept = kept_energy(delta, found, energy=change.energy, dtype=self._dtype)
            statistics = {"method": found.way, "rank": found.rank, "kept": kept}
            left, right = found.left_OR, found.right_RI
            if is_flipped(change):
                left, right = right.T, left.T
            # B last: what is said of the tensor stands with it.
            self._put(sink, a, right, {"method": found.way})
            self._put(sink, b, left, {**statistics, "norm": math.sqrt(change.energy)})

        def copy(stored: str, name: str) -> None:
            if stored in sink.done:
                return
            tuned = self._pairing.pairs[name][0]
            data = tuned.source.read(tuned.name)
            sink.write(stored, 0, data)
            sink.finish(stored, digest=checksum_of(data), statistics={"method": "whole"})
            self._progress.advance(data.nbytes)

        jobs: list[Callable[[], None]] = [partial(extract, one) for one in _by_size(factored)]
        jobs += [partial(copy, stored, name) for stored, name in whole.items()]
        run_all(jobs, num_threads=self._threads)

    def _put(
        self, sink: TensorSink, name: str, values: Singles, statistics: Mapping[str, object]
    ) -> None:
        stored = np.ascontiguousarray(encode(np.ascontiguousarray(values), self._dtype))
        data = stored.reshape(-1).view(np.uint8).data
        sink.write(name, 0, data)
        sink.finish(name, digest=checksum_of(data), statistics=statistics)
        self._progress.advance(data.nbytes)

    def _publish(
        self,
        sink: TensorSink,
        tensors: Sequence[PlannedTensor],
        ranks: Mapping[str, int],
        resumed: int,
        started: float,
    ) -> ExtractResult:
        told = {
            change.name: sink.done[factor_names(change)[1]].statistics
            for change in self._changes
            if change.fate == "factors"
        }
        rows = tuple(_row(change, told.get(change.name), ranks) for change in self._changes)
        kept = {row.name: row.kept for row in rows}
        total, share = kept_share(self._changes, kept)
        self._progress.stage("hashing")
        files = [file for one in self._models.values() for file in one.source.files()]
        inputs = dict(zip(files, record_files(files), strict=True))
        self._progress.stage("publishing")
        tuned, base = self._models["model"], self._models["base"]
        config = adapter_config(self._changes, ranks, self._pairing, base)
        content: dict[str, object] = {}
        energy = {
            "norm": math.sqrt(total),
            "kept": share,
            "lost": {
                row.name: row.norm for row in rows if row.fate == "lost" and row.norm is not None
            },
        }

        def manifest(records: Mapping[str, FileRecord]) -> bytes:
            content.update(
                extraction_manifest(
                    self._request.as_json(), self._models, tensors, sink.done, energy=energy,
                    notices=self._notices, inputs=inputs, files=records,
                )
            )  # fmt: skip
            return manifest_bytes(content)

        sink.commit(sidecars(config, tuned, base, overall=share), manifest)
        size = sum(tensor.nbytes for tensor in tensors)
        seconds = time.monotonic() - started
        return ExtractResult(self._out, content, rows, share, len(tensors), resumed, size, seconds)

    def _fingerprint(self) -> str:
        files = []
        for checkpoint in self._models.values():
            for file in checkpoint.source.files():
                status = file.stat()
                files.append([file.name, status.st_size, status.st_mtime_ns, status.st_ino])
        content = {
            "kind": KIND,
            "request": self._request.as_json(),
            "models": [public_name(checkpoint) for checkpoint in self._models.values()],
            "files": files,
            "forge": __version__,
            "versions": library_versions(("numpy",)),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _say(self, notice: str) -> None:
        self._notices.append(notice)
        self._progress.notice(notice)


def _row(change: Changed, told: Mapping[str, Any] | None, ranks: Mapping[str, int]) -> TensorEnergy:
    kept = 0.0 if change.fate == "lost" else 1.0
    if told is not None:
        kept = float(told["kept"])
    norm = None if math.isnan(change.energy) else math.sqrt(change.energy)
    return TensorEnergy(change.name, change.shape, change.fate, ranks.get(change.name), norm, kept)


def _by_size(changes: Sequence[Changed]) -> list[Changed]:
    # A large matrix begun last would leave the other threads waiting.
    return sorted(changes, key=lambda change: -math.prod(change.shape))
