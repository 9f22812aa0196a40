"""Mixtures of experts: their recipes, and building them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from forge.api.arguments import checked_seed, checked_size

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress
    from forge.merge.run import MergeResult
    from forge.recipes.moe_types import MoeRecipe


def load_moe_recipe(
    config: str | Path, *, seed: int | None = None, max_shard_size: str | None = None
) -> MoeRecipe:
    """Find and load a recipe for a mixture of experts.

    Args:
        config: Path of a YAML file, or the name of one under ``merge_configs/``.
        seed: Replaces the recipe's seed; from 0 to 2^64 - 1.
        max_shard_size: Replaces the recipe's largest file, such as ``5GB``.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: There is no such recipe, or it is wrong; the message lists every problem.
    """
    from forge.recipes.merge_recipe import find_recipe
    from forge.recipes.moe_recipe import load_moe_recipe as load

    recipe = load(find_recipe(str(config)))
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=checked_seed(seed))
    if max_shard_size is not None:
        recipe = dataclasses.replace(recipe, max_shard_size=checked_size(max_shard_size))
    return recipe


def is_moe(config: str | Path) -> bool:
    """Tell whether a recipe is one of ``moe`` and not of ``merge``.

    Args:
        config: Path of a YAML file, or the name of one under ``merge_configs/``.

    Returns:
        Whether it lists experts and names no merge method.

    Raises:
        RecipeError: There is no such recipe, or it is no YAML.
    """
    from forge.recipes.document import read_documents
    from forge.recipes.merge_recipe import find_recipe

    value = read_documents(find_recipe(str(config)))[-1].value
    return isinstance(value, dict) and "experts" in value and "merge_method" not in value


def moe(
    config: str | Path | MoeRecipe,
    out: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeResult:
    """Build a mixture of experts of dense models.

    Args:
        config: A recipe, or what ``load_moe_recipe`` takes.
        out: The folder to make. It appears at once, when everything in it is complete.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether an existing output of forge may be replaced.
        progress: Hears how it goes.

    Returns:
        The folder, its manifest, and what it took.

    Raises:
        ForgeError: The input or the output is not as it should be. What existed is untouched, and
            the same call resumes what it can.
    """
    from forge.merge.moe.run import run_moe
    from forge.runtime.prompt_states import read_states

    return run_moe(
        _moe_recipe(config),
        out,
        read_states=read_states,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )


def _moe_recipe(config: str | Path | MoeRecipe) -> MoeRecipe:
    return load_moe_recipe(config) if isinstance(config, (str, Path)) else config
