"""The small files beside quantized weights: configuration, tokenizer, recipe, card."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import (
    GENERATION_FILE,
    PROCESSOR_FILES,
    read_companions,
    read_tokenizer_files,
)
from forge.checkpoints.sidecars import config_file, merged_config
from forge.formats.catalog import format_row
from forge.quantize.calibration.stored import TOKENS_FILE, dump_tokens
from forge.quantize.catalog import method_row
from forge.quantize.plan import PlannedOutput
from forge.recipes.document import dump_yaml
from forge.recipes.quantize_types import QuantizeRecipe, Variant
from forge.recipes.reference import ModelReference

__all__ = ["RECIPE_FILE", "TOKENS_FILE", "public_name", "public_recipe", "sidecars_of"]

RECIPE_FILE: Final = "quantize_recipe.yaml"


def sidecars_of(
    recipe: QuantizeRecipe,
    output: PlannedOutput,
    checkpoint: Checkpoint,
    architecture: Architecture,
    tokens_BT: npt.NDArray[np.int64] | None,
) -> dict[str, bytes]:
    """Return every file of an output but weights, index and manifest.

    Args:
        recipe: What was made.
        output: The output.
        checkpoint: The model.
        architecture: Its family.
        tokens_BT: The calibration tokens, if there were any.
    """
    config = merged_config(checkpoint.config, architecture, label=str(checkpoint.reference))
    config["quantization_config"] = dict(output.quantization_config)
    files = dict(config_file(config))
    files |= read_companions(checkpoint.root, (GENERATION_FILE, *PROCESSOR_FILES))
    files |= read_tokenizer_files(checkpoint.tokenizer_root)
    public = public_recipe(recipe, output.variant, checkpoint)
    files[RECIPE_FILE] = dump_yaml(public).encode()
    if tokens_BT is not None:
        files[TOKENS_FILE] = dump_tokens(tokens_BT)
    return files | _card(output, checkpoint, public)


def public_recipe(
    recipe: QuantizeRecipe, variant: Variant, checkpoint: Checkpoint
) -> dict[str, object]:
    """Return the resolved recipe of one output, without paths of this machine.

    Args:
        recipe: The recipe.
        variant: The output's variant.
        checkpoint: The model; of a local folder, the last part of its path is named.
    """
    resolved = dict(dataclasses.replace(recipe, variants=(variant,)).resolved())
    resolved["model"] = public_name(checkpoint)
    calibration = resolved.get("calibration")
    if isinstance(calibration, Mapping) and calibration.get("source") != "hub":
        path = calibration.get("path")
        resolved["calibration"] = {
            **calibration,
            **({"path": Path(path).name} if isinstance(path, str) else {}),
        }
    return resolved


def public_name(checkpoint: Checkpoint) -> str:
    """Return a model's name without the path of a local folder.

    Args:
        checkpoint: The model.
    """

    def name(model: ModelReference, revision: str | None) -> str:
        path = model.path if revision is not None else Path(model.path).resolve().name
        return path if model.revision is None else f"{path}@{model.revision}"

    text = name(checkpoint.reference, checkpoint.revision)
    adapter = checkpoint.reference.lora
    return text if adapter is None else f"{text}+{name(adapter, checkpoint.lora_revision)}"


def _card(
    output: PlannedOutput, checkpoint: Checkpoint, recipe: Mapping[str, object]
) -> dict[str, bytes]:
    """Return a short ``README.md``: what was quantized, how, who can read it."""
    row, method = format_row(output.variant.format), method_row(str(recipe["method"]))
    name = public_name(checkpoint)
    front = ["---"]
    if checkpoint.revision is not None:
        front += [f"base_model: {json.dumps(checkpoint.reference.path)}"]
        front += ["base_model_relation: quantized"]
    front += ["library_name: transformers", "tags:", "- forge", "- quantized", "---"]
    body = [
        f"# {name.rpartition('/')[2]}, {row.title}", "",
        f"Quantized with forge by {method.title} from `{name}`: {output.variant.bits} bits in "
        "the linear layers of all decoder blocks.", "",
        "Read by " + ", ".join(["forge", *(reader.name for reader in row.readers)]) + ".", "",
        *([row.notice, ""] if row.notice else []),
        "`forge_manifest.json` records the hashes of all inputs and outputs; "
        "`forge verify` checks them.", "",
        "## Recipe", "",
        "```yaml", dump_yaml(dict(recipe)).strip("\n"), "```", "",
    ]  # fmt: skip
    return {"README.md": "\n".join([*front, "", *body]).encode()}
