"""``forge_manifest.json`` of a quantized checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

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
from forge.quantize.outputs import public_name, public_recipe
from forge.quantize.plan import PlannedOutput, QuantizePlan
from forge.quantize.writing import MODULE_KEY
from forge.recipes.quantize_types import QuantizeRecipe

KIND = "quantize"
_PACKAGES = ("numpy", "numba", "llvmlite", "xxhash")
_CALIBRATED_PACKAGES = (*_PACKAGES, "torch", "transformers")


def engine_entry() -> dict[str, str]:
    """Return what computes, down to the kernels' sources, their compiler and the CPU."""
    return {"name": "forge", "kernels": native.fingerprint("quantized")}


def quantize_manifest(
    recipe: QuantizeRecipe,
    checkpoint: Checkpoint,
    plan: QuantizePlan,
    output: PlannedOutput,
    *,
    notices: Sequence[str],
    inputs: Mapping[Path, FileRecord],
    calibration: Mapping[str, object] | None,
    sink: TensorSink,
    files: Mapping[str, FileRecord],
) -> dict[str, object]:
    """Return what ``forge_manifest.json`` says about one output.

    Args:
        recipe: The recipe.
        checkpoint: The model.
        plan: What was written.
        output: The output.
        notices: What was said about the work.
        inputs: Records of the model's files.
        calibration: What is known of the calibration tokens, or ``None``.
        sink: Holds digest and statistics of every tensor.
        files: Records of the output's files.
    """
    hidden = frozenset({MODULE_KEY})
    tensors, digest = tensor_entries(output.tensors, sink.done, hidden=hidden)
    modules = {
        linear.module: sink.done[output.names_of(linear)[0]].statistics.get(MODULE_KEY, {})
        for linear in plan.linears
    }
    packages = _PACKAGES if calibration is None else _CALIBRATED_PACKAGES
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "forge": __version__,
        "engine": engine_entry(),
        "recipe": public_recipe(recipe, output.variant, checkpoint),
        "recipe_file": None if recipe.file is None else Path(recipe.file).name,
        "variant": dataclasses.asdict(output.variant),
        "inputs": [
            {
                "model": public_name(checkpoint),
                "role": "source",
                "revision": checkpoint.revision,
                "lora_revision": checkpoint.lora_revision,
                "files": [input_entry(inputs[file]) for file in checkpoint.source.files()],
            }
        ],
        "models": [],
        "notices": list(notices),
        "versions": library_versions(packages),
        "calibration": calibration,
        "num_parameters": plan.num_parameters,
        "num_quantized": plan.num_quantized,
        "kept_linears": list(plan.kept_linears),
        "content_digest": digest,
        "modules": modules,
        "tensors": tensors,
        "files": output_entries(files),
    }
