"""Write a recipe in mergekit's dialect: its words, without forge's own keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forge.core.errors import IncompatibleError
from forge.recipes.document import read_document
from forge.recipes.merge_types import MergeRecipe

_OWN_KEYS: Final = ("name", "seed", "allow_nonfinite", "max_shard_size")
_LARGEST_SEED: Final = 2**32 - 1
_RESCALE: Final[Mapping[str, bool]] = {"l1": True, "none": False}


def mergekit_recipe(recipe: MergeRecipe) -> dict[str, object]:
    """Return what mergekit is given: the recipe as written, without forge's own keys.

    Args:
        recipe: The recipe.

    Returns:
        Plain YAML values.

    Raises:
        IncompatibleError: The recipe asks for something that mergekit does not have.
    """
    if recipe.seed > _LARGEST_SEED:
        raise IncompatibleError(f"mergekit takes no seed above {_LARGEST_SEED}; choose another.")
    if recipe.allow_nonfinite:
        raise IncompatibleError(
            "'allow_nonfinite' has no meaning for mergekit, which never looks. Remove the key."
        )
    if any(entry.method is not None for entry in recipe.slices):
        raise IncompatibleError(
            "mergekit has one merge_method for all slices. Use forge's own engine, or make a "
            "recipe of each method."
        )
    written: object = recipe.resolved()
    if recipe.file is not None:
        written = read_document(Path(recipe.file)).value
    assert isinstance(written, dict)
    return {
        key: _translated(value) for key, value in written.items() if key not in _OWN_KEYS
    }  # fmt: skip


def _translated(value: object) -> object:
    """Write forge's words for 'rescale' as mergekit's booleans, wherever they stand."""
    if isinstance(value, list):
        return [_translated(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _rescale(item) if key == "rescale" else _translated(item)
        for key, item in value.items()
    }


def _rescale(value: object) -> object:
    if isinstance(value, list):
        return [
            {**item, "value": _rescale(item.get("value"))}
            if isinstance(item, dict)
            else _rescale(item)
            for item in value
        ]
    if value == "density":
        raise IncompatibleError(
            "'rescale: density' cannot be done by mergekit, which rescales to the former L1 norm. "
            "Write 'rescale: l1', or use forge's own engine."
        )
    return _RESCALE.get(value, value) if isinstance(value, str) else value


def differing_semantics(recipe: MergeRecipe) -> list[str]:
    """Return what mergekit does differently from what the recipe says to forge.

    Args:
        recipe: The recipe.

    Returns:
        Notices for the manifest.
    """
    row = recipe.method.parameter("rescale")
    if row is None or row.kind != "choice":
        return []
    return ["mergekit rescales to the former L1 norm, which forge calls 'rescale: l1'."]
