"""What several functions of the API are given: models by name, seeds, sizes of files."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forge.recipes.reference import ModelReference


def reference(text: str) -> ModelReference:
    """Read how recipes name a model.

    Args:
        text: A folder, a Hub id, ``path@revision`` or ``model+lora``.

    Returns:
        The reference.

    Raises:
        CheckpointError: It is malformed.
    """
    from forge.core.errors import CheckpointError, RecipeError
    from forge.recipes.reference import ModelReference

    try:
        return ModelReference.parse(text)
    except RecipeError as error:
        # There is no recipe here that the message could point to.
        raise CheckpointError(error.problems[0].message) from error


def checked_seed(seed: int) -> int:
    """Return a seed that is in range; raise ``RecipeError`` for another."""
    from forge.core.errors import Problem, RecipeError

    if not 0 <= seed < 2**64:
        raise RecipeError([Problem(f"{seed} is not a whole number from 0 to 2^64 - 1.", "seed")])
    return seed


def checked_size(text: str) -> str:
    """Return a size such as ``5GB``; raise ``RecipeError`` for what is none."""
    from forge.core.errors import Problem, RecipeError
    from forge.recipes.merge_entries import parse_size

    try:
        parse_size(text)
    except ValueError as error:
        message = f"{text!r} is not a size. Write one such as 5GB or 500MB."
        raise RecipeError([Problem(message, "max_shard_size")]) from error
    return text
