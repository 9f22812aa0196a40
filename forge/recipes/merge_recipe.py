"""Find, load and rebuild merge recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forge.core.catalog import Catalog, did_you_mean
from forge.core.errors import Problem, RecipeError
from forge.recipes.document import Document, read_documents
from forge.recipes.merge_entries import (
    ModelEntry,
    SliceEntry,
    SourceEntry,
    TokenEntry,
    TokenizerEntry,
)
from forge.recipes.merge_types import MergeRecipe, OutputSlice, OutputSource
from forge.recipes.parameters import MethodRow
from forge.recipes.stages import read_staged_recipe

__all__ = [
    "MergeRecipe",
    "ModelEntry",
    "OutputSlice",
    "OutputSource",
    "SliceEntry",
    "SourceEntry",
    "TokenEntry",
    "TokenizerEntry",
    "find_recipe",
    "load_merge_recipe",
    "parse_merge_recipe",
]

_SUFFIXES = ("", ".yaml", ".yml")


def load_merge_recipe(path: Path, methods: Catalog[MethodRow]) -> MergeRecipe:
    """Load a merge recipe from a YAML file.

    Args:
        path: The file, as the user typed it; messages repeat it.
        methods: The merge methods to choose from.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: Carries every problem of the file, each with its line and key.
    """
    return read_staged_recipe(read_documents(path), methods)


def parse_merge_recipe(value: Mapping[str, object], methods: Catalog[MethodRow]) -> MergeRecipe:
    """Rebuild a recipe from plain values, such as a manifest's resolved recipe.

    Args:
        value: What the YAML would hold.
        methods: The merge methods to choose from.

    Returns:
        The recipe; equal to ``r`` for the values of ``r.resolved()``.

    Raises:
        RecipeError: Carries every problem, each with its key.
    """
    return read_staged_recipe([Document(value)], methods)


def find_recipe(text: str, folder: str = "merge_configs") -> Path:
    """Find the recipe that a command line names.

    A file that exists is taken as it is. Otherwise the name, without a leading ``configs/`` or
    ``<folder>/`` and with or without ``.yaml`` or ``.yml``, is looked up under ``folder`` in the
    working directory, and then under the ``folder`` that comes with forge.

    Args:
        text: What the user typed.
        folder: Name of the folder of recipes.

    Returns:
        Path of an existing file.

    Raises:
        RecipeError: There is no such file; the message lists names that come near.
    """
    typed = Path(text)
    if typed.is_file():
        return typed
    name = typed
    if not typed.is_absolute() and len(typed.parts) > 1 and typed.parts[0] in ("configs", folder):
        name = Path(*typed.parts[1:])
    package = Path(__file__).resolve().parents[1]
    shelves = [Path(folder), package.parent / folder, package / folder]
    for place in [Path(), *shelves]:
        for suffix in _SUFFIXES:
            candidate = place / f"{name}{suffix}"
            if candidate.is_file():
                return candidate
    known = sorted(
        {path.stem for shelf in shelves for path in shelf.glob("*") if path.suffix in _SUFFIXES[1:]}
    )
    guess = did_you_mean(name.name.removesuffix(".yaml").removesuffix(".yml"), known)
    listing = f" In {folder}/: {', '.join(known)}." if known else f" There is no {folder}/ here."
    raise RecipeError([Problem(f"There is no such recipe.{guess}{listing}", text)])
