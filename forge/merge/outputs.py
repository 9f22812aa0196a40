"""The small files beside the weights: configuration, tokenizer, card, manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forge.architectures.names import layers_present
from forge.architectures.table import FURTHER_LAYERS, Architecture
from forge.checkpoints.chat_templates import with_template
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import (
    GENERATION_FILE,
    PROCESSOR_FILES,
    read_companions,
    read_tokenizer_files,
)
from forge.checkpoints.sidecars import config_file, merged_config, model_card
from forge.merge.plan import MergePlan
from forge.merge.vocabulary.endings import Ids, endings_of, with_words
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
    config = _without_further_layers(config, plan.architecture, donor)
    tokenizer = read_tokenizer_files(donor.tokenizer_root)
    if vocabulary is not None and vocabulary.tokenizer_files:
        tokenizer = dict(vocabulary.tokenizer_files)
    endings = endings_of(recipe, checkpoints, vocabulary)
    config = _with_ids(config, plan.architecture, endings.config_ids)
    tokenizer = with_words(tokenizer, endings.words)
    if endings.template is not None:
        tokenizer = with_template(tokenizer, endings.template)
    files = dict(config_file(config))
    if endings.generation is not None:
        files[GENERATION_FILE] = endings.generation
    files |= read_companions(donor.root, PROCESSOR_FILES)
    files |= tokenizer
    local_paths = {path for checkpoint in checkpoints.values() for path in checkpoint.local_paths}
    files |= model_card(
        title=recipe.name or "Merged model",
        models=recipe.origins(),
        method=recipe.merge_method,
        recipe=recipe.to_yaml(),
        local_paths=local_paths,
    )
    return files


def has_sidecars(out: Path, files: Mapping[str, bytes]) -> bool:
    """Return whether an output's small files are these, byte for byte.

    A model's tokenizer, chat template and configuration are not among the weights that a manifest
    names as inputs, and are repaired more often.

    Args:
        out: The output.
        files: What ``sidecars_of`` returns.
    """
    try:
        return all((out / name).read_bytes() == content for name, content in files.items())
    except OSError:
        return False


def _without_further_layers(
    config: dict[str, object], architecture: Architecture, donor: Checkpoint
) -> dict[str, object]:
    """Return a config that does not promise layers that were left out; see ``layers-extra``."""
    present = layers_present(architecture, donor.source.names())
    if not present or present[-1] < architecture.num_layers(donor.config):
        return config
    section = architecture.text_section
    nested = config.get(section) if section is not None else None
    if section is not None and isinstance(nested, Mapping):
        text = {key: 0 if key == FURTHER_LAYERS else value for key, value in nested.items()}
        return {**config, section: text}
    return {key: 0 if key == FURTHER_LAYERS else value for key, value in config.items()}


def _with_ids(
    config: dict[str, object], architecture: Architecture, ids: Mapping[str, Ids]
) -> dict[str, object]:
    """Return a config with other ids of tokens, wherever it has them."""
    section = architecture.text_section
    nested = config.get(section) if section is not None else None
    if section is None or not isinstance(nested, Mapping):
        return {**config, **ids}
    # A key that stands nowhere belongs to the language model, which is read first.
    inner = {key: ids[key] for key in ids if key in nested or key not in config}
    outer = {key: ids[key] for key in ids if key in config}
    return {**config, section: {**nested, **inner}, **outer}
