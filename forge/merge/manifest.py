"""``forge_manifest.json``: what was merged, how, by what, and what every byte hashes to.

It holds no time and no path of the output, so that the same merge gives the same manifest.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.hashing import FileRecord, content_digest
from forge.checkpoints.sink import TensorSink
from forge.kernels.cpu import native
from forge.merge.plan import MergePlan
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference


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
    tensors = {
        tensor.name: {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "xxh3_128": sink.done[tensor.name].digest,
            **sink.done[tensor.name].statistics,
        }
        for tensor in sorted(plan.tensors, key=lambda tensor: tensor.name)
    }
    return {
        "schema": 1,
        "kind": "merge",
        "forge": __version__,
        "engine": engine_entry(),
        "recipe": recipe.resolved(),
        "recipe_file": None if recipe.file is None else Path(recipe.file).name,
        "inputs": [
            {
                "model": str(model),
                "role": "base" if model == recipe.base_model else "model",
                "revision": checkpoint.revision,
                "lora_revision": checkpoint.lora_revision,
                "files": [
                    {"name": file.name, **inputs[file].as_json()}
                    for file in checkpoint.source.files()
                ],
            }
            for model, checkpoint in checkpoints.items()
        ],
        "models": [str(model) for model in plan.models],
        "notices": list(notices),
        "versions": library_versions(),
        "content_digest": content_digest(
            (tensor.name, tensor.dtype, tensor.shape, sink.done[tensor.name].digest)
            for tensor in plan.tensors
        ),
        "tensors": tensors,
        "files": {name: record.as_json() for name, record in sorted(files.items())},
    }


def engine_entry() -> dict[str, str]:
    """Return what computes, down to the kernels' sources, their compiler and the CPU."""
    return {"name": "forge", "kernels": native.fingerprint()}


def library_versions() -> dict[str, str]:
    """Return the versions of what computes, reads and hashes."""
    found = {"python": platform.python_version()}
    for package in ("numpy", "numba", "llvmlite", "xxhash"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def manifest_bytes(manifest: Mapping[str, object]) -> bytes:
    """Return the manifest as it is stored: two levels indented, one line for each tensor."""
    lines = []
    for key, value in manifest.items():
        if key == "tensors" and isinstance(value, Mapping):
            rows = ",\n".join(
                f"    {json.dumps(name)}: {json.dumps(record, ensure_ascii=False)}"
                for name, record in value.items()
            )
            lines.append(f'  "tensors": {{\n{rows}\n  }}')
        else:
            text = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")
            lines.append(f"  {json.dumps(key)}: {text}")
    # A file name need not be UTF-8; its stray bytes are escaped as JSON escapes them.
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode(errors="backslashreplace")
