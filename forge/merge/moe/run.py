"""Build a mixture of experts from recipe to published folder: open, check, plan, copy, publish.

What the prompts mean is worked out by whoever calls (it may need to run a model) and comes in as
plain arrays; nothing here loads a model.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.hashing import FileRecord
from forge.checkpoints.manifest import manifest_bytes
from forge.checkpoints.progress import Progress, Silence, compile_notice
from forge.checkpoints.sink import TensorSink, check_replaceable
from forge.core.errors import IncompatibleError
from forge.kernels.cpu import native
from forge.merge.check.preflight import facts_of
from forge.merge.check.report import CheckReport, Notebook
from forge.merge.check.resources import check_resources
from forge.merge.moe.check import Frame, check_models, reading_bytes
from forge.merge.moe.gate_source import GateSource
from forge.merge.moe.gates import Floats, make_gates
from forge.merge.moe.outputs import PreparedMoe, moe_manifest, sidecars_of
from forge.merge.moe.plan import ROUTERS, as_merge, build_moe_plan
from forge.merge.run import (
    MergeResult,
    existing_output,
    fingerprint_of,
    is_made_of,
    parent_of,
)
from forge.merge.workers import Workers
from forge.recipes.moe_types import MoeRecipe
from forge.recipes.reference import ModelReference

Reader = Callable[[MoeRecipe, Checkpoint, Progress], Floats]
"""Returns the states of a recipe's prompts; see ``gates.make_gates``."""


def open_moe(recipe: MoeRecipe, *, weights: bool) -> dict[ModelReference, Checkpoint]:
    """Resolve every model of a recipe and read configurations and headers.

    Args:
        recipe: What to build.
        weights: Whether tensors will be read, so that models on the Hub must be downloaded.

    Raises:
        CheckpointError: A model cannot be found or trusted.
    """
    return {model: open_checkpoint(model, weights=weights) for model in recipe.references()}


def check_moe(
    recipe: MoeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    *,
    out: Path | None = None,
) -> tuple[CheckReport, Frame | None]:
    """Check a build; nothing is raised for a mistake of the user.

    Args:
        recipe: What to build.
        checkpoints: Every model of ``recipe.references()``.
        out: Folder that the result will be; free space is looked up there.

    Returns:
        All findings, and what the models are; the frame of a build that is possible.
    """
    notes = Notebook()
    for text in recipe.notices:
        notes.notice("recipe", text)
    frame = check_models(recipe, checkpoints, notes)
    plan = None
    if frame is not None:
        try:
            plan = build_moe_plan(recipe, frame)
        except IncompatibleError as error:
            notes.error("plan", str(error))
    needs = check_resources(as_merge(recipe), checkpoints, plan, 0, out, notes)
    report = CheckReport(
        notes.sorted(),
        needs.input_bytes,
        needs.output_bytes,
        max(needs.memory_bytes, 0 if frame is None else reading_bytes(recipe, frame)),
        needs.free_disk_bytes,
        tuple(facts_of(checkpoint) for checkpoint in checkpoints.values()),
        plan,
    )
    return report, frame


def prepare_moe(recipe: MoeRecipe, out: Path) -> PreparedMoe:
    """Open and check the models of a recipe.

    Args:
        recipe: What to build.
        out: Folder that the result will be.

    Raises:
        IncompatibleError: The check found errors; the message lists all of them.
    """
    checkpoints = open_moe(recipe, weights=True)
    report, frame = check_moe(recipe, checkpoints, out=out)
    if report.errors or report.plan is None or frame is None:
        raise IncompatibleError("\n".join(finding.message for finding in report.errors))
    texts = [finding.message for finding in (*report.warnings, *report.notices)]
    return PreparedMoe(recipe, checkpoints, frame, report.plan, tuple(texts))


def run_moe(
    recipe: MoeRecipe,
    out: Path,
    *,
    read_states: Reader,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeResult:
    """Build a mixture of experts.

    Args:
        recipe: What to build.
        out: The folder to make.
        read_states: Returns what the prompts mean to the base; not called for random routers.
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
    resolved = recipe.resolved()
    existing = existing_output(out, resolved)
    if overwrite or existing is None:
        check_replaceable(out, overwrite=overwrite)
    parent_of(out)
    prepared = prepare_moe(recipe, out)
    for notice in prepared.notices:
        progress.notice(notice)
    plan, num = prepared.plan, len(prepared.plan.jobs)
    try:
        is_new = overwrite or existing is None
        if existing is not None and not is_new:
            is_new = not is_made_of(existing, prepared.checkpoints, progress)
        if existing is not None and not is_new:
            progress.notice(f"'{out}' already holds exactly this; nothing is left to do.")
            return MergeResult(out, existing, time.monotonic() - started, num, num)
        check_replaceable(out, overwrite=overwrite)
        states: Floats | None = None
        if recipe.gate_mode != "random":
            progress.stage("reading prompts")
            states = read_states(recipe, prepared.checkpoints[recipe.base_model], progress)
        gates = make_gates(recipe, prepared.frame, states)
        own = {model: item.source for model, item in prepared.checkpoints.items()}
        with TensorSink(
            out,
            plan.tensors,
            max_shard_bytes=recipe.max_shard_bytes,
            fingerprint=fingerprint_of(resolved, own),
            overwrite=overwrite,
        ) as sink:
            if sink.discarded_reason:
                progress.notice(f"An unfinished build was discarded: {sink.discarded_reason}.")
            resumed = len(sink.done)
            if resumed:
                progress.notice(f"Resumed: {resumed} of {num} tensors were finished.")
            sources = {**own, ROUTERS: GateSource(gates)}
            workers = Workers(plan, as_merge(recipe), sources, sink, progress)
            num_threads = threads or len(os.sched_getaffinity(0))
            with native.announcing(compile_notice(progress)):
                workers.run(num_threads)
            progress.stage("hashing")
            inputs = workers.input_records(num_threads)
            progress.stage("publishing")
            content: dict[str, Any] = {}

            def manifest(files: Mapping[str, FileRecord]) -> bytes:
                content.update(moe_manifest(prepared, inputs, sink, files))
                return manifest_bytes(content)

            sink.commit(sidecars_of(prepared), manifest)
    finally:
        for checkpoint in prepared.checkpoints.values():
            checkpoint.source.close()
    return MergeResult(out, content, time.monotonic() - started, num, resumed)
