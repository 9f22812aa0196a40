"""Open the models of a recipe, its stages among them.

A stage is checked and planned like a merge of its own, and then stands beside the models that lie
in folders: a ``Checkpoint`` whose tensors are computed, with the configuration, tokenizer and other
small files that the stage would write, in a temporary folder.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from forge.checkpoints.checkpoint import CONFIG_FILE, Checkpoint, open_checkpoint
from forge.core.errors import CheckpointError, IncompatibleError
from forge.merge.alignment import align
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

if TYPE_CHECKING:
    from forge.merge.prepared import Prepared


def open_models(
    recipe: MergeRecipe, *, weights: bool, folder: Path | None = None
) -> dict[ModelReference, Checkpoint]:
    """Resolve every model of a recipe and read configurations and headers.

    Args:
        recipe: The recipe.
        weights: Whether tensors will be read, so that models on the Hub must be downloaded.
        folder: Where a stage may put rearranged embeddings while it is read.

    Raises:
        CheckpointError: A model cannot be found or trusted.
        IncompatibleError: A stage cannot be merged; the message lists every reason.
    """
    stages: dict[ModelReference, Checkpoint] = {}
    used = _used(recipe)
    for name, stage in recipe.stages:
        if name not in used:
            continue
        from forge.merge.prepared import prepare_opened

        try:
            prepared = prepare_opened(stage, _opened(stage, stages, weights=weights), None)
        except (CheckpointError, IncompatibleError) as error:
            lines = str(error).splitlines()
            told = "\n".join(f"Stage '{name}': {line}" for line in lines)
            raise type(error)(told) from error
        stages[ModelReference(name)] = _as_checkpoint(name, prepared, folder)
    return _opened(recipe, stages, weights=weights)


def _used(recipe: MergeRecipe) -> frozenset[str]:
    """Return the names of the stages that the result needs."""
    stages = dict(recipe.stages)
    used: set[str] = set()
    open_recipes = [recipe]
    while open_recipes:
        for model in _wanted(open_recipes.pop()):
            if model.path in stages and model.path not in used:
                used.add(model.path)
                open_recipes.append(stages[model.path])
    return frozenset(used)


def _wanted(recipe: MergeRecipe) -> tuple[ModelReference, ...]:
    named = recipe.references()
    if recipe.tokenizer is not None:
        named += recipe.tokenizer.references()
    return tuple(dict.fromkeys(named))


def _opened(
    recipe: MergeRecipe, stages: Mapping[ModelReference, Checkpoint], *, weights: bool
) -> dict[ModelReference, Checkpoint]:
    opened = {
        model: stages[model] if model in stages else open_checkpoint(model, weights=weights)
        for model in _wanted(recipe)
    }
    kinds = {row.statistics for row in recipe.methods if row.statistics}
    for entry in recipe.models if kinds else ():
        if entry.statistics is not None:
            checkpoint = opened[entry.model]
            from forge.checkpoints.statistics_file import open_statistics

            found = open_statistics(
                entry.statistics, checkpoint.source, weights=weights, kind=recipe.method.statistics
            )
            opened[entry.model] = replace(checkpoint, statistics=found)
    return align(recipe, opened)


def _as_checkpoint(name: str, prepared: Prepared, folder: Path | None) -> Checkpoint:
    from forge.merge.outputs import sidecars_of
    from forge.merge.prepared import sources_of
    from forge.merge.stage_source import StageSource

    root = Path(tempfile.mkdtemp(prefix="forge-stage-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    files = sidecars_of(prepared.recipe, prepared.plan, prepared.checkpoints, prepared.vocabulary)
    for path, content in files.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)
    source = StageSource(
        name,
        prepared.recipe,
        prepared.plan,
        sources_of(prepared, folder or root),
        root,
    )
    told = {notice: f"Stage '{name}': {notice}" for notice in prepared.notices}
    config = json.loads(files[CONFIG_FILE])
    return Checkpoint(
        ModelReference(name),
        root,
        None,
        config,
        source,
        tuple(told.values()),
        warnings=tuple(text for notice, text in told.items() if notice in prepared.warnings),
        parts=prepared.checkpoints,
    )
