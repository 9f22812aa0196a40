"""The small files beside the weights: configuration, tokenizer, card, manifest."""

from __future__ import annotations

from collections.abc import Mapping

from forge.architectures.table import Architecture
from forge.checkpoints.chat_templates import choose_template, template_of, with_template
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import (
    GENERATION_FILE,
    PROCESSOR_FILES,
    read_companions,
    read_tokenizer_files,
)
from forge.checkpoints.sidecars import config_file, merged_config, model_card
from forge.merge.check.special_ids import SPECIAL_IDS
from forge.merge.plan import MergePlan
from forge.merge.vocabulary.planning import VocabularyPlan
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
        tied=plan.tied if plan.tied != plan.architecture.is_tied(donor.config) else None,
        label=str(plan.donor),
    )
    tokenizer = read_tokenizer_files(donor.root)
    speaker = donor
    if vocabulary is not None:
        # The ids of special tokens, and when to stop, belong to the tokenizer.
        speaker = checkpoints[vocabulary.tokenizer_model]
        config = _with_special_ids(config, plan.architecture, speaker)
        if vocabulary.tokenizer_files:
            tokenizer = dict(vocabulary.tokenizer_files)
    files = dict(config_file(config))
    files |= read_companions(speaker.root, (GENERATION_FILE,))
    files |= read_companions(donor.root, PROCESSOR_FILES)
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


def _with_special_ids(
    config: dict[str, object], architecture: Architecture, speaker: Checkpoint
) -> dict[str, object]:
    """Return a config whose special ids are those of the model whose tokenizer is taken."""
    theirs = architecture.text_config(speaker.config)
    ids = {key: theirs[key] for key in SPECIAL_IDS if key in theirs}
    section = architecture.text_section
    nested = config.get(section) if section is not None else None
    if section is None or not isinstance(nested, Mapping):
        return {**config, **ids}
    inner = {**nested, **{key: value for key, value in ids.items() if key in nested}}
    return {**config, section: inner, **{key: ids[key] for key in ids if key in config}}
