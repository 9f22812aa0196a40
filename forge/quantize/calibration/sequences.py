"""Cut text into sequences of one length, without padding.

A text file is sampled at even distances, so that all of it counts; records are shuffled by the
seed, so that a data set that is sorted does not show its beginning only. Every sequence begins
as the model is used to: with the BOS token where its tokenizer writes one.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from forge.core.errors import IncompatibleError
from forge.quantize.calibration.documents import Document, chat_of, text_of
from forge.quantize.calibration.stored import Tokens
from forge.quantize.calibration.tokenizer import ModelTokenizer
from forge.recipes.quantize_calibration import MIN_NUM_TOKENS
from forge.recipes.quantize_types import CalibrationRecipe

_CHARACTERS_PER_TOKEN = 64
"""More text than this for each token that is wanted need not be encoded."""


def cut_text(text: str, recipe: CalibrationRecipe, tokenizer: ModelTokenizer) -> Tokens:
    """Take evenly spread sequences out of one long text.

    Args:
        text: The text.
        recipe: How many sequences of which length.
        tokenizer: The model's.

    Returns:
        int64 [B, T].

    Raises:
        IncompatibleError: The text is empty or too short.
    """
    # Of a very long text, pieces at even distances are encoded instead of all of it.
    share = recipe.tokens * _CHARACTERS_PER_TOKEN
    if len(text) > share * recipe.samples:
        starts = np.linspace(0, len(text) - share, recipe.samples).astype(int)
        pieces = [tokenizer.encode(text[start : start + share]) for start in starts]
        if all(len(piece) >= recipe.tokens for piece in pieces):
            return np.array([_row(piece, 0, recipe, tokenizer) for piece in pieces], np.int64)
    stream = tokenizer.encode(text)
    _check_length(len(stream), recipe, is_empty=not text.strip())
    starts = np.linspace(0, len(stream) - recipe.tokens, recipe.samples).astype(int)
    return np.array([_row(stream, start, recipe, tokenizer) for start in starts], np.int64)


def pack_documents(
    documents: Iterable[Document], recipe: CalibrationRecipe, tokenizer: ModelTokenizer
) -> Tokens:
    """Lay shuffled documents end to end and cut them.

    Args:
        documents: Texts and chats.
        recipe: How many sequences of which length, and whether chats are rendered.
        tokenizer: The model's.

    Returns:
        int64 [B, T].

    Raises:
        IncompatibleError: The documents are too few or too short.
    """
    held = list(documents)
    order = np.random.default_rng(recipe.seed).permutation(len(held))
    encode = _encoder(recipe, tokenizer)
    stream: list[int] = []
    for index in order:
        stream += encode(held[index])
        if len(stream) >= recipe.num_tokens:
            break
    _check_length(len(stream), recipe, is_empty=not held)
    starts = range(0, recipe.num_tokens, recipe.tokens)
    return np.array([_row(stream, start, recipe, tokenizer) for start in starts], np.int64)


def _encoder(
    recipe: CalibrationRecipe, tokenizer: ModelTokenizer
) -> Callable[[Document], list[int]]:
    if recipe.chat_template:
        return lambda document: tokenizer.encode_chat(chat_of(document))
    return lambda document: tokenizer.encode_document(text_of(document))


def _check_length(num_tokens: int, recipe: CalibrationRecipe, *, is_empty: bool) -> None:
    label = recipe.path or "The calibration text"
    if is_empty or num_tokens == 0:
        raise IncompatibleError(f"'{label}' holds no text to calibrate on.")
    possible = num_tokens // recipe.tokens
    if possible >= recipe.samples:
        return
    held = (
        f"'{label}' holds {num_tokens:,} tokens, but {recipe.samples} sequences of "
        f"{recipe.tokens} tokens ({recipe.num_tokens:,}) are asked of it"
    )
    if possible * recipe.tokens < MIN_NUM_TOKENS:
        raise IncompatibleError(f"{held}. Add text; {MIN_NUM_TOKENS} tokens are the least.")
    raise IncompatibleError(f"{held}. Add text, or ask for --calibration-samples {possible}.")


def _row(
    stream: Sequence[int], start: int, recipe: CalibrationRecipe, tokenizer: ModelTokenizer
) -> list[int]:
    """Return a sequence that begins with the prefix, once."""
    prefix = list(tokenizer.prefix)
    if list(stream[start : start + len(prefix)]) == prefix:
        prefix = []
    return prefix + list(stream[start : start + recipe.tokens - len(prefix)])
