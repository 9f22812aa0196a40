"""Compare which tokens begin, end and pad a text: where they differ, generation does not end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.special_ids import SPECIAL_IDS, special_ids
from forge.merge.check.report import Notebook
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference


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


def _differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    return ", ".join(
        f"{key} {json.dumps(ours[key])} / {json.dumps(theirs[key])}"
        for key in SPECIAL_IDS
        if key in ours and key in theirs and ours[key] != theirs[key]
    )
