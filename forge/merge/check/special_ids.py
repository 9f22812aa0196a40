"""Compare which tokens begin, end and pad a text: where they differ, generation does not end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import GENERATION_FILE
from forge.checkpoints.folder import read_json_object
from forge.core.errors import ForgeError
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

if TYPE_CHECKING:
    from forge.merge.check.report import Notebook

SPECIAL_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_special_ids(
    recipe: MergeRecipe,
    models: Sequence[ModelReference],
    checkpoints: Mapping[ModelReference, Checkpoint],
    notes: Notebook,
) -> None:
    """Report ids of special tokens that differ between models.

    Args:
        recipe: The recipe.
        models: Those whose embedding or head enters the result; the first gives the result its
            configuration.
        checkpoints: Every model.
        notes: Receives the findings.
    """
    lead = models[0]
    ours = special_ids(checkpoints[lead])
    source = None if recipe.tokenizer is None else recipe.tokenizer.source
    if isinstance(source, ModelReference):
        if shown := _differences(special_ids(checkpoints[source]), ours):
            notes.notice(
                "special-ids",
                f"The result has the tokens of {source} and with them its ids of special tokens, "
                f"not those of {lead}: {shown}.",
            )
        return
    # In a vocabulary that the recipe chooses, the ids of the others mean nothing.
    for model in models[1:] if recipe.tokenizer is None else ():
        if shown := _differences(ours, special_ids(checkpoints[model])):
            notes.warning(
                "special-ids",
                f"{lead} and {model} differ in the ids of special tokens: {shown}. The result uses "
                f"those of {lead}; if generation does not end, look here.",
            )


def special_ids(checkpoint: Checkpoint) -> dict[str, object]:
    """Return the ids in force: those for generation, where there are any, override the model's.

    Args:
        checkpoint: The model.

    Returns:
        Ids, or lists of them, by the names of ``SPECIAL_IDS``.
    """
    try:
        generation = read_json_object(checkpoint.root, GENERATION_FILE) or {}
    except ForgeError:
        # What is wrong with the file is said when it is copied.
        generation = {}
    nested = checkpoint.config.get("text_config")
    found: dict[str, object] = {}
    for part in (nested, checkpoint.config, generation):
        if isinstance(part, Mapping):
            found |= {key: part[key] for key in SPECIAL_IDS if part.get(key) is not None}
    return found


def _differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    return ", ".join(
        f"{key} {json.dumps(ours[key])} / {json.dumps(theirs[key])}"
        for key in SPECIAL_IDS
        if key in ours and key in theirs and ours[key] != theirs[key]
    )
