"""The small files beside a mixture's weights: configuration, tokenizer, card, manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import (
    GENERATION_FILE,
    read_companions,
    read_tokenizer_files,
)
from forge.checkpoints.hashing import FileRecord
from forge.checkpoints.manifest import (
    SCHEMA,
    input_entry,
    library_versions,
    output_entries,
    tensor_entries,
)
from forge.checkpoints.sidecars import config_file, model_card
from forge.checkpoints.sink import TensorSink
from forge.merge.manifest import PACKAGES, engine_entry
from forge.merge.moe.check import Frame
from forge.merge.moe.config import config_of
from forge.merge.plan import MergePlan
from forge.recipes.moe_types import MoeRecipe
from forge.recipes.reference import ModelReference


@dataclass(frozen=True, slots=True)
class PreparedMoe:
    """A build that has been checked and planned, before any weight is read."""

    recipe: MoeRecipe
    checkpoints: Mapping[ModelReference, Checkpoint]
    frame: Frame
    plan: MergePlan
    notices: tuple[str, ...]


def sidecars_of(prepared: PreparedMoe) -> dict[str, bytes]:
    """Return every file of the output but weights, index and manifest.

    Args:
        prepared: What is built.
    """
    recipe = prepared.recipe
    base = prepared.checkpoints[recipe.base_model]
    config = config_of(
        prepared.frame,
        prepared.frame.subjects[recipe.base_model],
        num_experts=len(recipe.experts),
        per_token=recipe.experts_per_token,
        dtype=recipe.dtype,
    )
    files = dict(config_file(config))
    files |= read_companions(base.root, (GENERATION_FILE,))
    files |= read_tokenizer_files(base.tokenizer_root)
    local_paths = {path for item in prepared.checkpoints.values() for path in item.local_paths}
    files |= model_card(
        title=recipe.name or "Mixture of experts",
        models=recipe.references(),
        method=f"mixture of experts ({prepared.frame.family.name})",
        recipe=recipe.to_yaml(),
        local_paths=local_paths,
    )
    return files


def moe_manifest(
    prepared: PreparedMoe,
    inputs: Mapping[Path, FileRecord],
    sink: TensorSink,
    files: Mapping[str, FileRecord],
) -> dict[str, Any]:
    """Return what ``forge_manifest.json`` says about a build.

    Args:
        prepared: What was built.
        inputs: Records of all input files.
        sink: Holds the digest of every tensor.
        files: Records of all output files.
    """
    recipe = prepared.recipe
    tensors, digest = tensor_entries(prepared.plan.tensors, sink.done)
    packages = (*PACKAGES, "torch", "transformers") if recipe.gate_mode == "hidden" else PACKAGES
    return {
        "schema": SCHEMA,
        "kind": "moe",
        "forge": __version__,
        "engine": engine_entry(),
        "architecture": prepared.frame.family.name,
        "recipe": recipe.resolved(),
        "recipe_file": None if recipe.file is None else Path(recipe.file).name,
        "inputs": [
            {
                "model": str(model),
                "role": "base" if model == recipe.base_model else "expert",
                "revision": checkpoint.revision,
                "lora_revision": checkpoint.lora_revision,
                "files": [input_entry(inputs[file]) for file in checkpoint.source.files()],
            }
            for model, checkpoint in prepared.checkpoints.items()
        ],
        "models": [],
        "notices": list(prepared.notices),
        "versions": library_versions(packages),
        "content_digest": digest,
        "tensors": tensors,
        "files": output_entries(files),
    }
