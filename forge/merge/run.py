"""Run a merge: readers, kernels and writers overlapped on all cores, resumable at every tensor.

One job is one output tensor and runs on one thread from first read to last write; kernels and
system calls release the interpreter lock. A tensor that would keep one thread busy while the
others are done goes first, the rest follows in file order, so that storage is read forwards.
Nothing waits in memory: inputs are mapped files, results leave in pieces of half a megabyte,
are hashed while they are in the cache, and are written in place.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.hashing import FileRecord, RunningHash
from forge.checkpoints.sink import MANIFEST_FILE, TensorSink, check_replaceable
from forge.checkpoints.source import TensorSource
from forge.core.errors import IncompatibleError, NonFiniteError, OutputError
from forge.kernels.cpu import native
from forge.kernels.operands import CHUNK, Operands, Workspace
from forge.merge.check import check_merge
from forge.merge.contract import MethodCall, TensorStatistics
from forge.merge.outputs import manifest_bytes, sidecars_of
from forge.merge.plan import IDENTICAL, MergeJob, MergePlan, build_plan
from forge.merge.vocabulary import VocabularyPlan, plan_vocabulary, remap
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Hears how a merge goes. Calls come from several threads."""

    def stage(self, name: str) -> None:
        """A new stage begins."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """The tensors begin: how many bytes will be written, and how many an earlier run wrote."""

    def advance(self, num_bytes: int) -> None:
        """That many more bytes have been written."""

    def notice(self, text: str) -> None:
        """Something that the user should know."""


class Silence:
    """Progress that nobody hears."""

    def stage(self, name: str) -> None:
        """Ignore."""

    def start(self, total_bytes: int, done_bytes: int) -> None:
        """Ignore."""

    def advance(self, num_bytes: int) -> None:
        """Ignore."""

    def notice(self, text: str) -> None:
        """Keep for the log."""
        log.info("%s", text)


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A merge that has been checked and planned, before any weight is read."""

    recipe: MergeRecipe
    checkpoints: Mapping[ModelReference, Checkpoint]
    vocabulary: VocabularyPlan | None
    notices: tuple[str, ...]


def open_models(recipe: MergeRecipe, *, weights: bool) -> dict[ModelReference, Checkpoint]:
    """Resolve every model of a recipe and read configurations and headers.

    Args:
        recipe: The recipe.
        weights: Whether tensors will be read, so that models on the Hub must be downloaded.

    Raises:
        CheckpointError: A model cannot be found or trusted.
    """
    wanted = list(recipe.references())
    if recipe.tokenizer is not None:
        wanted += recipe.tokenizer.references()
    return {model: open_checkpoint(model, weights=weights) for model in dict.fromkeys(wanted)}


def prepare(recipe: MergeRecipe, out: Path | None, *, weights: bool = True) -> Prepared:
    """Open and check the models of a recipe.

    Raises:
        IncompatibleError: The check found errors; the message lists all of them.
    """
    checkpoints = open_models(recipe, weights=weights)
    vocabulary = plan_vocabulary(recipe, checkpoints)
    report = check_merge(recipe, checkpoints, out=out, vocabulary=vocabulary)
    if report.errors:
        raise IncompatibleError("\n".join(finding.message for finding in report.errors))
    texts = [finding.message for finding in (*report.warnings, *report.notices)]
    return Prepared(recipe, checkpoints, vocabulary, (*recipe.notices, *texts))


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
    existing = _existing(out)
    if overwrite or existing is None or existing.get("recipe") != _as_json(recipe.resolved()):
        # Before a model is opened, because opening may mean to download it.
        check_replaceable(out, overwrite=overwrite)
    folder = _parent_of(out)
    prepared = prepare(recipe, out)
    for notice in prepared.notices:
        progress.notice(notice)
    num_threads = threads or len(os.sched_getaffinity(0))
    sources = dict(_sources_of(prepared, folder))
    try:
        plan = build_plan(recipe, prepared.checkpoints, sources)
        fingerprint = _fingerprint(recipe, sources)
        if not overwrite and existing is not None and existing.get("fingerprint") == fingerprint:
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
            engine = _Engine(plan, recipe, sources, sink, progress)
            with native.announcing(_compile_notice(progress)):
                engine.run(num_threads)
            progress.stage("hashing")
            inputs = engine.finish_hashes(num_threads)
            progress.stage("publishing")
            sidecars = sidecars_of(recipe, plan, prepared.checkpoints, prepared.vocabulary)
            content: dict[str, Any] = {}

            def manifest(files: Mapping[str, FileRecord]) -> bytes:
                content.update(_manifest(prepared, plan, inputs, sink, files, fingerprint))
                return manifest_bytes(content)

            sink.commit(sidecars, manifest)
    finally:
        for source in sources.values():
            source.close()
    return MergeResult(out, content, time.monotonic() - started, len(plan.jobs), resumed)


def _sources_of(prepared: Prepared, folder: Path) -> Mapping[ModelReference, TensorSource]:
    own = {model: checkpoint.source for model, checkpoint in prepared.checkpoints.items()}
    if prepared.vocabulary is None:
        return own
    return {**own, **remap(prepared.checkpoints, prepared.vocabulary, folder)}


def _fingerprint(recipe: MergeRecipe, sources: Mapping[ModelReference, TensorSource]) -> str:
    """Identify a merge for resuming: what is merged, from which files, by which arithmetic."""
    files = []
    for model, source in sorted(sources.items(), key=lambda item: str(item[0])):
        for file in source.files():
            status = file.stat()
            files.append([str(model), file.name, status.st_size, status.st_mtime_ns, status.st_ino])
    content = {
        "recipe": recipe.resolved(),
        "files": files,
        "forge": __version__,
        "kernels": native.fingerprint(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _existing(out: Path) -> Mapping[str, object] | None:
    """Return the manifest of an output that is there, if all files it lists have their sizes."""
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_bytes())
        files = manifest["files"]
        is_whole = all((out / name).stat().st_size == files[name]["bytes"] for name in files)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if is_whole else None


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def _parent_of(out: Path) -> Path:
    """Return the folder in which the output will be; it need not exist yet."""
    try:
        return out.resolve().parent
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"'{out}' is a link that leads nowhere. Choose another output."
        ) from error


def _compile_notice(progress: Progress) -> Callable[[str], None]:
    """Return what tells the user, once, why the first run of a method waits."""
    told = threading.Event()

    def announce(kernel: str) -> None:
        log.debug("compiling %s", kernel)
        if not told.is_set():
            told.set()
            progress.notice(
                "Compiling kernels for this machine; this happens once and takes a few seconds."
            )

    return announce


def _method(name: str) -> Any:
    return importlib.import_module(f"forge.merge.methods.{name}")


class _StoppedError(Exception):
    """Another job failed, or the user interrupted."""


class _Engine:
    """The workers of one merge."""

    def __init__(
        self,
        plan: MergePlan,
        recipe: MergeRecipe,
        sources: Mapping[ModelReference, TensorSource],
        sink: TensorSink,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._recipe = recipe
        self._sources = sources
        self._sink = sink
        self._progress = progress
        self._stop = threading.Event()
        self._local = threading.local()
        self._hashes = {
            file: RunningHash(file, algorithm="blake3")
            for source in sources.values()
            for file in source.files()
        }

    def run(self, num_threads: int) -> None:
        """Run all jobs that are not done yet."""
        sizes = {tensor.name: tensor.nbytes for tensor in self._plan.tensors}
        open_jobs = [job for job in self._plan.jobs if job.output not in self._sink.done]
        total = sum(sizes.values())
        remaining = sum(sizes[job.output] for job in open_jobs)
        self._progress.stage("merging")
        self._progress.start(total, total - remaining)
        limit = remaining / (4 * num_threads)
        # Largest first among those that could leave other threads idle at the end.
        large = sorted(
            (job for job in open_jobs if sizes[job.output] > limit),
            key=lambda job: -sizes[job.output],
        )
        small = [job for job in open_jobs if sizes[job.output] <= limit]
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="forge-merge")
        try:
            _drain(pool, self._run_job, [*large, *small], num_threads)
        finally:
            # Reached by Ctrl-C too: workers stop at their next piece, and only then may
            # the sink be closed.
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def finish_hashes(self, num_threads: int) -> dict[Path, FileRecord]:
        """Return the records of all input files."""
        with ThreadPoolExecutor(num_threads, thread_name_prefix="forge-hash") as pool:
            records = pool.map(lambda item: (item[0], item[1].finish()), self._hashes.items())
            return dict(records)

    def _run_job(self, job: MergeJob) -> None:
        if self._stop.is_set():
            raise _StoppedError
        import blake3

        digest = blake3.blake3()

        def emit(offset: int, data: memoryview) -> None:
            if self._stop.is_set():
                raise _StoppedError
            digest.update(data)
            self._sink.write(job.output, offset, data)
            self._progress.advance(data.nbytes)

        views = [self._sources[item.model].read(item.name) for item in job.inputs]
        if job.method == IDENTICAL:
            statistics = self._copy(job, views, emit)
        else:
            statistics = self._merge(job, views, emit)
        record = {"method": job.method, **statistics.as_json()}
        self._sink.finish(job.output, digest=digest.hexdigest(), statistics=record)
        for item in job.inputs:
            info = self._sources[item.model].info(item.name)
            hasher = self._hashes.get(info.file)
            if hasher is not None:
                hasher.advance(info.offset + info.nbytes)

    def _merge(self, job: MergeJob, views: Sequence[memoryview], emit: Any) -> TensorStatistics:
        workspace = getattr(self._local, "workspace", None)
        if workspace is None:
            workspace = self._local.workspace = Workspace()
        operands = Operands(
            inputs=tuple(views),
            dtypes=tuple(self._sources[item.model].info(item.name).dtype for item in job.inputs),
            has_base=job.has_base,
            shape=job.shape,
            out_dtype=job.dtype,
            emit=emit,
            workspace=workspace,
        )
        call = MethodCall(job.values, job.models, job.streams)
        try:
            statistics: TensorStatistics = _method(job.method).merge(operands, call)
        except IncompatibleError as error:
            raise IncompatibleError(f"'{job.output}': {error}") from error
        if not self._recipe.allow_nonfinite:
            _refuse_nonfinite(job, statistics)
        return statistics

    @staticmethod
    def _copy(job: MergeJob, views: Sequence[memoryview], emit: Any) -> TensorStatistics:
        for item, view in zip(job.inputs, views, strict=True):
            if view != views[0]:
                raise IncompatibleError(
                    f"'{item.name}' holds whole numbers that differ between '{item.model}' and "
                    f"'{job.inputs[0].model}', and whole numbers cannot be merged."
                )
        for offset in range(0, views[0].nbytes, CHUNK):
            emit(offset, views[0][offset : offset + CHUNK])
        return TensorStatistics((False,) * len(views), bad_output=False)


def _drain(pool: ThreadPoolExecutor, task: Any, jobs: Sequence[MergeJob], width: int) -> None:
    """Keep a few jobs in flight; raise the first error at once."""
    queue = iter(jobs)
    flying: set[Future[None]] = set()
    while True:
        while len(flying) < 4 * width:
            job = next(queue, None)
            if job is None:
                break
            flying.add(pool.submit(task, job))
        if not flying:
            return
        finished, flying = wait(flying, return_when=FIRST_COMPLETED)
        for future in finished:
            future.result()


def _refuse_nonfinite(job: MergeJob, statistics: TensorStatistics) -> None:
    for item, is_bad in zip(job.inputs, statistics.bad_inputs, strict=True):
        if is_bad:
            raise NonFiniteError(
                f"'{item.name}' of '{item.model}' holds a NaN or an infinity. Repair or replace "
                "that checkpoint; 'allow_nonfinite: true' merges it nevertheless."
            )
    if statistics.bad_output:
        raise NonFiniteError(
            f"The merged '{job.output}' holds a NaN or an infinity in {job.dtype}, though its "
            "inputs are finite: the result overflows. Write bfloat16 or float32 ('out_dtype'), or "
            "lower the weights."
        )


def _manifest(
    prepared: Prepared,
    plan: MergePlan,
    inputs: Mapping[Path, FileRecord],
    sink: TensorSink,
    files: Mapping[str, FileRecord],
    fingerprint: str,
) -> dict[str, Any]:
    recipe = prepared.recipe
    tensors: dict[str, Any] = {}
    content = hashlib.sha256()
    for tensor in sorted(plan.tensors, key=lambda tensor: tensor.name):
        record = sink.done[tensor.name]
        tensors[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "blake3": record.digest,
            **record.statistics,
        }
        content.update(
            f"{tensor.name}\0{tensor.dtype}\0{list(tensor.shape)}\0{record.digest}\n".encode()
        )
    return {
        "schema": 1,
        "kind": "merge",
        "forge": __version__,
        "engine": {"name": "forge", "kernels": native.fingerprint()},
        "fingerprint": fingerprint,
        "recipe": recipe.resolved(),
        "recipe_file": None if recipe.file is None else Path(recipe.file).name,
        "inputs": [
            {
                "model": str(model),
                "role": "base" if model == recipe.base_model else "model",
                "revision": checkpoint.revision,
                "lora_revision": checkpoint.lora_revision,
                "files": [_file_entry(inputs[file]) for file in checkpoint.source.files()],
            }
            for model, checkpoint in prepared.checkpoints.items()
        ],
        "models": [str(model) for model in plan.models],
        "notices": list(prepared.notices),
        "versions": _versions(),
        "content_digest": content.hexdigest(),
        "tensors": tensors,
        "files": {
            name: {"bytes": record.bytes, "blake3": record.digest}
            for name, record in sorted(files.items())
        },
    }


def _file_entry(record: FileRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "bytes": record.bytes,
        "algorithm": record.algorithm,
        "digest": record.digest,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("numpy", "numba", "llvmlite", "blake3"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
