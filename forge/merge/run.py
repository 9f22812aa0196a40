"""Run a merge from recipe to published folder: open, check, plan, work, hash, publish.

Nothing waits in memory: inputs are mapped files, results leave in pieces of a megabyte, are hashed
while they are in the cache, and are written in place. Finished tensors are journalled, so that the
same command after a crash goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before anything imports it from deeper below: there, CPython 3.11 and later map and unmap a piece
# of their stack at each of some thousand calls, which doubles the time of this import.
import numpy  # noqa: F401

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.hashing import FileRecord, record_files
from forge.checkpoints.manifest import manifest_bytes
from forge.checkpoints.progress import Progress, Silence, compile_notice
from forge.checkpoints.sink import MANIFEST_FILE, TensorSink, check_replaceable
from forge.checkpoints.source import TensorSource
from forge.core.errors import OutputError
from forge.kernels.cpu import native
from forge.merge.manifest import engine_entry, merge_manifest
from forge.merge.outputs import has_sidecars, sidecars_of
from forge.merge.prepared import Prepared, prepare_opened, sources_of
from forge.merge.stages import open_models
from forge.merge.workers import Workers
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge made.

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


def prepare(recipe: MergeRecipe, out: Path | None, *, weights: bool = True) -> Prepared:
    """Open and check the models of a recipe.

    Raises:
        IncompatibleError: The check found errors; the message lists all of them.
    """
    folder = None if out is None else parent_of(out)
    return prepare_opened(recipe, open_models(recipe, weights=weights, folder=folder), out)


def run_merge(
    recipe: MergeRecipe,
    out: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge.

    Args:
        recipe: What to merge.
        out: The folder to make.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether an existing output of forge may be replaced, once the new one is whole.
        progress: Hears how it goes.

    Raises:
        ForgeError: The inputs or the output are not as they should be. An existing output is
            untouched, and finished tensors are kept for the same command.
    """
    started = time.monotonic()
    progress = progress or Silence()
    progress.stage("checking")
    existing = existing_output(out, recipe.resolved())
    if overwrite or existing is None:
        # Before a model is opened, because opening may mean to download it.
        check_replaceable(out, overwrite=overwrite)
    folder = parent_of(out)
    prepared = prepare(recipe, out)
    for notice in prepared.notices:
        tell = progress.warning if notice in prepared.warnings else progress.notice
        tell(notice)
    num_threads = threads or len(os.sched_getaffinity(0))
    sources = dict(sources_of(prepared, folder))
    try:
        plan = prepared.plan
        fingerprint = fingerprint_of(_identity_of(prepared), sources)
        if (
            not overwrite
            and existing is not None
            and is_made_of(existing, prepared.checkpoints, progress)
            and has_sidecars(out, _sidecars_of(prepared))
        ):
            progress.notice(f"'{out}' already holds exactly this merge; nothing is left to do.")
            num = len(plan.jobs)
            return MergeResult(out, existing, time.monotonic() - started, num, num)
        check_replaceable(out, overwrite=overwrite)
        with TensorSink(
            out,
            plan.tensors,
            max_shard_bytes=recipe.max_shard_bytes,
            fingerprint=fingerprint,
            overwrite=overwrite,
        ) as sink:
            if sink.discarded_reason:
                progress.notice(f"An unfinished merge was discarded: {sink.discarded_reason}.")
            resumed = len(sink.done)
            if resumed:
                progress.notice(f"Resumed: {resumed} of {len(plan.jobs)} tensors were finished.")
            workers = Workers(plan, recipe, sources, sink, progress)
            with native.announcing(compile_notice(progress)):
                workers.run(num_threads)
            notices = (*prepared.notices, *workers.unlike_notices())
            for notice in notices[len(prepared.notices) :]:
                progress.warning(notice)
            progress.stage("hashing")
            inputs = workers.input_records(num_threads)
            _check_statistics(prepared.checkpoints, inputs)
            progress.stage("publishing")
            sidecars = _sidecars_of(prepared)
            content: dict[str, Any] = {}

            def manifest(files: Mapping[str, FileRecord]) -> bytes:
                content.update(
                    merge_manifest(recipe, prepared.checkpoints, notices, plan, inputs, sink, files)
                )
                return manifest_bytes(content)

            sink.commit(sidecars, manifest)
    finally:
        for source in sources.values():
            source.close()
    return MergeResult(out, content, time.monotonic() - started, len(plan.jobs), resumed)


def _sidecars_of(prepared: Prepared) -> dict[str, bytes]:
    return sidecars_of(prepared.recipe, prepared.plan, prepared.checkpoints, prepared.vocabulary)


def _identity_of(prepared: Prepared) -> Mapping[str, object]:
    """Return the recipe, and where rows of embeddings come from, which is in no weight file."""
    resolved = dict(prepared.recipe.resolved())
    if prepared.vocabulary is not None:
        resolved["vocabulary"] = prepared.vocabulary.digest()
    return resolved


def _check_statistics(
    checkpoints: Mapping[ModelReference, Checkpoint], inputs: Mapping[Path, FileRecord]
) -> None:
    """Refuse statistics of other weights than those that were read, in stages as well."""
    for checkpoint in checkpoints.values():
        _check_statistics(checkpoint.parts, inputs)
        if checkpoint.statistics is not None:
            from forge.checkpoints.statistics_file import check_files

            files = {file.name: inputs[file].as_json() for file in checkpoint.source.files()}
            check_files(checkpoint.statistics, str(checkpoint.reference), files)


def fingerprint_of(
    resolved: Mapping[str, object], sources: Mapping[ModelReference, TensorSource]
) -> str:
    """Identify a merge for resuming: what is merged, from which files, by which arithmetic.

    Args:
        resolved: The recipe as plain values.
        sources: Tensors of every model.
    """
    files = []
    for model, source in sorted(sources.items(), key=lambda item: str(item[0])):
        for file in source.files():
            status = file.stat()
            files.append([str(model), file.name, status.st_size, status.st_mtime_ns, status.st_ino])
    content = {
        "recipe": resolved,
        "files": files,
        "forge": __version__,
        "kernels": native.fingerprint(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def existing_output(out: Path, resolved: Mapping[str, object]) -> Mapping[str, Any] | None:
    """Return the manifest of an output of a recipe, by this version, with nothing missing.

    Args:
        out: The folder.
        resolved: The recipe as plain values.
    """
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_bytes())
        files = manifest["files"]
        is_whole = all((out / name).stat().st_size == files[name]["bytes"] for name in files)
        same_engine = manifest["engine"] == engine_entry() and manifest["forge"] == __version__
        same_recipe = manifest["recipe"] == json.loads(json.dumps(resolved))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if is_whole and same_engine and same_recipe else None


def is_made_of(
    manifest: Mapping[str, Any],
    checkpoints: Mapping[ModelReference, Checkpoint],
    progress: Progress,
) -> bool:
    """Tell by their hashes whether an output was made of the input files as they are now.

    Times would not do: a folder that another one replaced may be older than the output.

    Args:
        manifest: The output's.
        checkpoints: The models, in the order of its inputs.
        progress: Hears that files are hashed.
    """
    progress.stage("hashing")
    for entry, checkpoint in zip(manifest["inputs"], checkpoints.values(), strict=True):
        records = record_files(checkpoint.source.files())
        if entry["files"] != [{"name": record.name, **record.as_json()} for record in records]:
            return False
        if checkpoint.statistics is not None:
            records = record_files(checkpoint.statistics.source.files())
            said = entry.get("statistics", {}).get("files")
            if said != [{"name": record.name, **record.as_json()} for record in records]:
                return False
    return True


def parent_of(out: Path) -> Path:
    """Return the folder in which an output will be; it need not exist yet.

    Args:
        out: The output.

    Raises:
        OutputError: It is a link that leads nowhere.
    """
    try:
        return out.resolve().parent
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"'{out}' is a link that leads nowhere. Choose another output."
        ) from error
