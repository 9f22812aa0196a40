"""``forge_manifest.json`` of a merge: what was merged, how, by what, and what it all hashes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.hashing import FileRecord
from forge.checkpoints.manifest import (
    SCHEMA,
    input_entry,
    library_versions,
    output_entries,
    tensor_entries,
)
from forge.checkpoints.sink import TensorSink
from forge.kernels.cpu import native
from forge.merge.plan import MergePlan
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

PACKAGES: Final = ("numpy", "numba", "llvmlite", "xxhash")
"""What computes and hashes in a merge."""


def merge_manifest(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    notices: Sequence[str],
    plan: MergePlan,
    inputs: Mapping[Path, FileRecord],
    sink: TensorSink,
    files: Mapping[str, FileRecord],
) -> dict[str, Any]:
    """Return what ``forge_manifest.json`` says about a merge.

    Args:
        recipe: The recipe.
        checkpoints: All models.
        notices: What was said about the merge.
        plan: What was written.
        inputs: Records of all input files.
        sink: Holds digest and statistics of every tensor.
        files: Records of all output files.
    """
    tensors, digest = tensor_entries(plan.tensors, sink.done)
    return {
        "schema": SCHEMA,
        "kind": "merge",
        "forge": __version__,
        "engine": engine_entry(),
        "recipe": recipe.resolved(),
        "recipe_file": None if recipe.file is None else Path(recipe.file).name,
        "inputs": [
            _input(model, checkpoint, recipe.base_model, inputs)
            for model, checkpoint in checkpoints.items()
        ],
        "models": [str(model) for model in plan.models],
        "notices": list(notices),
        "versions": library_versions(PACKAGES),
        "content_digest": digest,
        "tensors": tensors,
        "files": output_entries(files),
    }


def _input(
    model: ModelReference,
    checkpoint: Checkpoint,
    base: ModelReference | None,
    inputs: Mapping[Path, FileRecord],
) -> dict[str, Any]:
    """Return what is said of one model; of a stage, also what it was computed from."""
    entry: dict[str, Any] = {
        "model": str(model),
        "role": "base" if model == base else "model",
        "revision": checkpoint.revision,
        "lora_revision": checkpoint.lora_revision,
        "files": [input_entry(inputs[file]) for file in checkpoint.source.files()],
    }
    if checkpoint.statistics is not None:
        entry["statistics"] = {
            "kind": checkpoint.statistics.kind,
            "num_tokens": checkpoint.statistics.num_tokens,
            "files": [input_entry(inputs[file]) for file in checkpoint.statistics.source.files()],
        }
    if checkpoint.parts:
        # Its recipe stands under 'stages' in the manifest's.
        entry["inputs"] = [
            _input(part, inner, None, inputs) for part, inner in checkpoint.parts.items()
        ]
    return entry


def engine_entry() -> dict[str, str]:
    """Return what computes, down to the kernels' sources, their compiler and the CPU."""
    return {"name": "forge", "kernels": native.fingerprint()}
