"""Run a quantization from recipe to published folders: open, plan, work, hash, publish.

Weights come from mapped files and leave in pieces; nothing of the model is built. Each output
grows in a sink of its own, which journals every finished tensor, so that the same command after
a crash goes on where it stopped and ends in the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from forge import __version__
from forge.architectures.blocks import Linear
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.hashing import FileRecord, record_files
from forge.checkpoints.manifest import input_entry, manifest_bytes
from forge.checkpoints.progress import Progress, Silence, compile_notice
from forge.checkpoints.sink import MANIFEST_FILE, TensorSink, check_replaceable
from forge.core.errors import Problem, RecipeError
from forge.kernels.cpu import native
from forge.quantize.catalog import method_row
from forge.quantize.check import check_quantize
from forge.quantize.manifest import KIND, engine_entry, quantize_manifest
from forge.quantize.outputs import public_recipe, sidecars_of
from forge.quantize.plan import PlannedOutput, QuantizePlan, build_plan, output_folders
from forge.quantize.workers import Workers, run_all
from forge.quantize.writing import OutputWriter
from forge.recipes.quantize_types import QuantizeRecipe

_MEAN_STAGE: Final = "measuring"


@dataclass(frozen=True, slots=True)
class QuantizedOutput:
    """One finished output.

    Attributes:
        out: Its folder.
        format: Its format's name.
        manifest: What its ``forge_manifest.json`` says.
        num_tensors: Its tensors.
        resumed_tensors: How many of them an earlier run had finished.
        output_bytes: Bytes of its tensors.
    """

    out: Path
    format: str
    manifest: Mapping[str, object]
    num_tensors: int
    resumed_tensors: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """What a quantization made.

    Attributes:
        out: The folder that was asked for.
        outputs: One for each variant; with a single one its folder is ``out``.
        seconds: Wall time, in seconds.
        input_bytes: Bytes of the source's tensors.
    """

    out: Path
    outputs: tuple[QuantizedOutput, ...]
    seconds: float
    input_bytes: int

    @property
    def num_tensors(self) -> int:
        """Tensors of all outputs."""
        return sum(output.num_tensors for output in self.outputs)

    @property
    def resumed_tensors(self) -> int:
        """How many of them earlier runs had finished."""
        return sum(output.resumed_tensors for output in self.outputs)


def plan_quantize(recipe: QuantizeRecipe) -> QuantizePlan:
    """Plan a quantization without reading a weight; a model on the Hub is not downloaded.

    Args:
        recipe: What to make.

    Raises:
        ForgeError: It cannot be done as asked.
    """
    checkpoint = _open(recipe, weights=False)
    try:
        return build_plan(recipe, checkpoint)
    finally:
        checkpoint.source.close()


def run_quantize(
    recipe: QuantizeRecipe,
    out: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantize.

    Args:
        recipe: What to make of which model.
        out: The folder to make. With several variants, each has a folder of its format's name
            in it.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether existing outputs of forge may be replaced, once the new ones are whole.
        progress: Hears how it goes.

    Returns:
        What was made.

    Raises:
        ForgeError: The model, the recipe or the output is not as it should be. Existing outputs
            are untouched, and finished tensors are kept for the same command.
    """
    started = time.monotonic()
    progress = progress or Silence()
    progress.stage("checking")
    folders = output_folders(recipe, out)
    if overwrite:
        # Before a model is opened, because opening may mean to download it.
        for folder in folders:
            check_replaceable(folder, overwrite=True)
    checkpoint = _open(recipe, weights=True)
    try:
        run = _Run(recipe, checkpoint, out, threads, progress, overwrite=overwrite)
        outputs = run.run()
        return QuantizeResult(out, outputs, time.monotonic() - started, run.plan.input_bytes)
    finally:
        checkpoint.source.close()


class _Run:
    """One quantization of an opened model."""

    def __init__(
        self,
        recipe: QuantizeRecipe,
        checkpoint: Checkpoint,
        out: Path,
        threads: int | None,
        progress: Progress,
        *,
        overwrite: bool,
    ) -> None:
        self._recipe = recipe
        self._checkpoint = checkpoint
        self._folders = output_folders(recipe, out)
        self._threads = threads or len(os.sched_getaffinity(0))
        self._progress = progress
        self._overwrite = overwrite
        self._stop = threading.Event()
        self._tokens: npt.NDArray[np.int64] | None = None
        self._calibration: Mapping[str, object] | None = None
        self.plan = check_quantize(recipe, checkpoint, out=out)
        self._notices = (*recipe.notices, *checkpoint.notices, *self.plan.notices)

    def run(self) -> tuple[QuantizedOutput, ...]:
        for notice in self._notices:
            self._progress.notice(notice)
        finished = self._finished_outputs()
        open_folders = [folder for folder in self._folders if folder not in finished]
        for folder in open_folders:
            check_replaceable(folder, overwrite=self._overwrite)
        if open_folders:
            with native.announcing(compile_notice(self._progress)):
                self._measure()
                self._calibrate(open_folders)
                finished |= self._work(open_folders)
            if self._tokens is not None:
                from forge.quantize.calibrated import forget_tokens

                forget_tokens(self._recipe, self._checkpoint)
        return tuple(finished[folder] for folder in self._folders)

    # -- what exists already ---------------------------------------------------------------

    def _finished_outputs(self) -> dict[Path, QuantizedOutput]:
        """Return the outputs that already are exactly what would be made."""
        found: dict[Path, QuantizedOutput] = {}
        if self._overwrite:
            return found
        inputs: list[dict[str, object]] | None = None
        for folder, output in zip(self._folders, self.plan.outputs, strict=True):
            manifest = self._manifest_of_same(folder, output)
            if manifest is None:
                continue
            if inputs is None:
                # Times would not do: a folder that another one replaced may be older.
                self._progress.stage("hashing")
                inputs = [input_entry(row) for row in record_files(self._checkpoint.source.files())]
            if manifest["inputs"][0]["files"] != inputs:
                continue
            self._progress.notice(f"'{folder}' already holds exactly this; nothing is left to do.")
            num = len(output.tensors)
            found[folder] = QuantizedOutput(
                folder, output.variant.format, manifest, num, num, output.output_bytes
            )
        return found

    def _manifest_of_same(self, folder: Path, output: PlannedOutput) -> Mapping[str, Any] | None:
        """Return the manifest of a whole output of this recipe by this version."""
        expected = public_recipe(self._recipe, output.variant, self._checkpoint)
        try:
            manifest: Mapping[str, Any] = json.loads((folder / MANIFEST_FILE).read_bytes())
            files = manifest["files"]
            is_whole = all((folder / name).stat().st_size == files[name]["bytes"] for name in files)
            is_same = (
                manifest["kind"] == KIND
                and manifest["engine"] == engine_entry()
                and manifest["forge"] == __version__
                and manifest["recipe"] == json.loads(json.dumps(expected))
                and isinstance(manifest["inputs"][0]["files"], list)
            )
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        return manifest if is_whole and is_same else None

    # -- the work --------------------------------------------------------------------------

    def _measure(self) -> None:
        """Fix what the layout of double quantization depends on."""
        if not any(variant.double_quant for variant in self._recipe.variants):
            return
        self._progress.stage(_MEAN_STAGE)
        workers = Workers(self.plan, self._checkpoint.source, (), self._stop)
        means: dict[str, np.float32] = {}

        def measure(linear: Linear) -> None:
            means[linear.module] = workers.mean(linear)

        jobs = (partial(measure, linear) for linear in self._by_size(self.plan.linears))
        run_all(jobs, num_threads=self._threads, stop=self._stop)
        self.plan = build_plan(self._recipe, self._checkpoint, means=means)

    def _work(self, folders: Sequence[Path]) -> dict[Path, QuantizedOutput]:
        outputs = [
            output
            for folder, output in zip(self._folders, self.plan.outputs, strict=True)
            if folder in folders
        ]
        with ExitStack() as stack:
            writers = []
            for folder, output in zip(folders, outputs, strict=True):
                sink = stack.enter_context(
                    TensorSink(
                        folder,
                        output.tensors,
                        max_shard_bytes=self._recipe.max_shard_bytes,
                        fingerprint=self._fingerprint(output),
                        overwrite=self._overwrite,
                    )
                )
                writers.append(OutputWriter(output, sink, self._progress, self._stop))
            resumed = [len(writer.sink.done) for writer in writers]
            self._tell_of_earlier_runs(writers)
            workers = Workers(self.plan, self._checkpoint.source, writers, self._stop)
            self._start(writers)
            self._quantize(workers)
            self._progress.stage("hashing")
            inputs = workers.input_records(self._threads)
            self._progress.stage("publishing")
            return {
                folder: self._publish(folder, writer, count, inputs)
                for folder, writer, count in zip(folders, writers, resumed, strict=True)
            }

    def _calibrate(self, folders: Sequence[Path]) -> None:
        if not method_row(self._recipe.method).needs_calibration:
            return
        from forge.quantize.calibrated import calibration_entry, tokens_of

        self._tokens = tokens_of(self._recipe, self._checkpoint, folders, self._progress)
        self._calibration = calibration_entry(self._recipe, self._tokens)

    def _quantize(self, workers: Workers) -> None:
        if self._tokens is not None:
            from forge.quantize.calibrated import quantize_calibrated

            quantize_calibrated(
                self._recipe, self._checkpoint, self.plan, workers, self._tokens,
                num_threads=self._threads, stop=self._stop, progress=self._progress,
            )  # fmt: skip
            return
        quantized = self._by_size(workers.open_linears())
        jobs = [partial(workers.quantize, linear) for linear in quantized]
        jobs += [partial(workers.copy, name) for name in self.plan.kept]
        run_all(jobs, num_threads=self._threads, stop=self._stop)

    def _start(self, writers: Sequence[OutputWriter]) -> None:
        total = sum(writer.planned.output_bytes for writer in writers)
        done = sum(
            tensor.nbytes
            for writer in writers
            for tensor in writer.planned.tensors
            if tensor.name in writer.sink.done
        )
        self._progress.stage("quantizing")
        self._progress.start(total, done)

    def _tell_of_earlier_runs(self, writers: Sequence[OutputWriter]) -> None:
        for writer in writers:
            if writer.sink.discarded_reason:
                reason = writer.sink.discarded_reason
                self._progress.notice(f"An unfinished quantization was discarded: {reason}.")
            if writer.sink.done:
                self._progress.notice(
                    f"Resumed: {len(writer.sink.done)} of {len(writer.planned.tensors)} tensors "
                    f"of {writer.planned.variant.format} were finished."
                )

    def _publish(
        self, folder: Path, writer: OutputWriter, resumed: int, inputs: Mapping[Path, FileRecord]
    ) -> QuantizedOutput:
        output = writer.planned
        content: dict[str, object] = {}

        def manifest(files: Mapping[str, FileRecord]) -> bytes:
            content.update(
                quantize_manifest(
                    self._recipe, self._checkpoint, self.plan, output,
                    notices=self._notices, inputs=inputs, calibration=self._calibration,
                    sink=writer.sink, files=files,
                )
            )  # fmt: skip
            return manifest_bytes(content)

        sidecars = sidecars_of(
            self._recipe, output, self._checkpoint, self.plan.architecture, self._tokens
        )
        writer.sink.commit(sidecars, manifest)
        return QuantizedOutput(
            folder, output.variant.format, content, len(output.tensors), resumed,
            output.output_bytes,
        )  # fmt: skip

    def _fingerprint(self, output: PlannedOutput) -> str:
        """Identify an output for resuming: what is made, from which files, by which arithmetic."""
        files = []
        for file in self._checkpoint.source.files():
            status = file.stat()
            files.append([file.name, status.st_size, status.st_mtime_ns, status.st_ino])
        content = {
            "kind": KIND,
            "recipe": public_recipe(self._recipe, output.variant, self._checkpoint),
            "files": files,
            "forge": __version__,
            "engine": engine_entry(),
            "calibration": self._calibration,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @staticmethod
    def _by_size(linears: Sequence[Linear]) -> list[Linear]:
        # A large layer begun last would leave the other threads waiting.
        return sorted(linears, key=lambda linear: -linear.shape_OI[0] * linear.shape_OI[1])


def _open(recipe: QuantizeRecipe, *, weights: bool) -> Checkpoint:
    if recipe.model is None:
        raise RecipeError([Problem("names no model. Give one: forge quantize MODEL ...")])
    return open_checkpoint(recipe.model, weights=weights)
