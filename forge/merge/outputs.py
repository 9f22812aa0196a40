"""The small files beside the weights: configuration, tokenizer, card, manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping

from forge.checkpoints.chat_templates import choose_template, template_of, with_template
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import (
    GENERATION_FILE,
    PROCESSOR_FILES,
    read_companions,
    read_tokenizer_files,
)
from forge.checkpoints.sidecars import config_file, merged_config, model_card
from forge.merge.plan import MergePlan
from forge.merge.vocabulary import VocabularyPlan
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference


def sidecars_of(
    recipe: MergeRecipe,
    plan: MergePlan,
    checkpoints: Mapping[ModelReference, Checkpoint],
    vocabulary: VocabularyPlan | None,
) -> dict[str, bytes]:
    """Return every file of the output but weights, index and manifest.

    Args:
        recipe: The recipe.
        plan: What is written.
        checkpoints: The models.
        vocabulary: The new vocabulary, when the recipe makes one.
    """
    donor = checkpoints[plan.donor]
    is_stack = bool(recipe.slices)
    config = merged_config(
        donor.config,
        plan.architecture,
        dtype=plan.dtype,
        layers=plan.layers if is_stack else None,
        vocab_size=None if vocabulary is None else vocabulary.num_rows,
        label=str(plan.donor),
    )
    files = dict(config_file(config))
    files |= read_companions(donor.root, (GENERATION_FILE, *PROCESSOR_FILES))
    tokenizer = read_tokenizer_files(donor.root)
    if vocabulary is not None and vocabulary.tokenizer_files:
        tokenizer = dict(vocabulary.tokenizer_files)
    if recipe.chat_template is not None:
        templates = [
            template_of(read_tokenizer_files(checkpoints[model].root))
            for model in recipe.references()
        ]
        tokenizer = with_template(tokenizer, choose_template(recipe.chat_template, templates))
    files |= tokenizer
    local_paths = {path for checkpoint in checkpoints.values() for path in checkpoint.local_paths}
    files |= model_card(
        title=recipe.name or "Merged model",
        models=recipe.references(),
        method=recipe.merge_method,
        recipe=recipe.to_yaml(),
        local_paths=local_paths,
    )
    return files


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
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
