"""Report what the tokens of the result do: where texts end, what is split otherwise, or lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import GENERATION_FILE
from forge.checkpoints.folder import parse_json_object
from forge.checkpoints.special_ids import special_ids
from forge.core.errors import ForgeError
from forge.merge.check.report import Notebook
from forge.merge.check.round_trips import check_round_trips
from forge.merge.vocabulary.endings import Endings, endings_of
from forge.merge.vocabulary.planning import VocabularyPlan
from forge.merge.vocabulary.round_trip import Change
from forge.merge.vocabulary.tokens import Tokenizer
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

_MOST: Final = 0.9
"""Share of a model's tokens that a vocabulary must have to be one that the model knows."""


def check_result_tokens(
    recipe: MergeRecipe,
    models: Sequence[ModelReference],
    checkpoints: Mapping[ModelReference, Checkpoint],
    tokenizers: Mapping[ModelReference, Tokenizer | None],
    vocabulary: VocabularyPlan | None,
    notes: Notebook,
) -> Mapping[str, tuple[Change, ...]]:
    """Report what the result's tokenizer and special tokens change for each model.

    Args:
        recipe: The recipe.
        models: As for ``check_tokenizers``.
        checkpoints: Every model.
        tokenizers: Their tokenizers.
        vocabulary: The result's vocabulary, when the recipe makes one.
        notes: Receives the findings.

    Returns:
        For each model whose tokenizer is not the result's, the texts that both treat differently.
    """
    try:
        endings = endings_of(recipe, checkpoints, vocabulary, known=tokenizers)
    except ForgeError as error:
        notes.error("special-ids", str(error))
        return {}
    for text in endings.warnings:
        notes.warning("special-ids", text)
    for text in endings.notices:
        notes.notice("special-ids", text)
    result = tokenizers[models[0]] if vocabulary is None else vocabulary.tokenizer
    if result is None:
        return {}
    _check_end(endings, result, checkpoints[models[0]], notes)
    if vocabulary is not None:
        _check_shares(vocabulary, models, tokenizers, notes)
    return check_round_trips(
        result,
        {model: tokenizers[model] for model in models},
        notes,
        says_success=vocabulary is not None,
    )


def _check_end(endings: Endings, tokenizer: Tokenizer, lead: Checkpoint, notes: Notebook) -> None:
    """Report a tokenizer that ends texts with another token than generation does."""
    word = endings.words.get("eos_token") or tokenizer.words.get("eos_token")
    own = None if word is None else tokenizer.ids.get(word)
    try:
        generation = parse_json_object(endings.generation or b"{}", lead.root / GENERATION_FILE)
    except ForgeError as error:
        notes.warning("special-ids", f"{error} It is copied as it is, and loaders will refuse it.")
        return
    value = generation.get("eos_token_id")
    if value is None:
        value = {**special_ids(lead), **endings.config_ids}.get("eos_token_id")
    if own is None or value is None or own in (value if isinstance(value, list) else [value]):
        return
    notes.warning(
        "special-ids",
        f"The result's tokenizer ends texts with {word!r} ({own}), but generation ends at "
        f"eos_token_id {json.dumps(value)}. A model that was taught {word!r} will not stop. Set "
        "eos_token_id in generation_config.json of the model that the tokenizer is taken from.",
    )


def _check_shares(
    vocabulary: VocabularyPlan,
    models: Sequence[ModelReference],
    tokenizers: Mapping[ModelReference, Tokenizer | None],
    notes: Notebook,
) -> None:
    """Report models that know most of the result's text by other tokens."""
    for model in models:
        own = tokenizers[model]
        if own is None or not own.ids:
            continue
        share = sum(token in vocabulary.tokenizer.ids for token in own.ids) / len(own.ids)
        if share < _MOST:
            notes.warning(
                "tokenizer",
                f"Of the {len(own.ids):,} tokens of {model}, only {share:.0%} are in the "
                "vocabulary of the result. Its layers were trained on other tokens than they will "
                "get, so the result will hardly write sense. Merge models of one tokenizer.",
            )
