"""Merging: recipes, what they would run into, plans, and the merge itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from forge.api.arguments import checked_seed, checked_size
from forge.api.mixtures import is_moe, load_moe_recipe

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress
    from forge.core.catalog import Catalog
    from forge.merge.check.preflight import CheckReport
    from forge.merge.plan import MergePlan
    from forge.merge.run import MergeResult
    from forge.recipes.merge_recipe import MergeRecipe
    from forge.recipes.moe_types import MoeRecipe
    from forge.recipes.parameters import MethodRow

Engine = Literal["forge", "mergekit"]


def load_recipe(
    config: str | Path, *, seed: int | None = None, max_shard_size: str | None = None
) -> MergeRecipe:
    """Find and load a merge recipe.

    Args:
        config: Path of a YAML file, or the name of one under ``merge_configs/``.
        seed: Replaces the recipe's seed; from 0 to 2^64 - 1.
        max_shard_size: Replaces the recipe's largest file, such as ``5GB``.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: There is no such recipe, or it is wrong; the message lists every problem.
    """
    from forge.merge.catalog import METHODS
    from forge.recipes.merge_recipe import find_recipe, load_merge_recipe

    recipe = load_merge_recipe(find_recipe(str(config)), METHODS)
    if seed is not None:
        recipe = recipe.with_seed(checked_seed(seed))
    if max_shard_size is not None:
        recipe = dataclasses.replace(recipe, max_shard_size=checked_size(max_shard_size))
    return recipe


def check(config: str | Path | MergeRecipe | MoeRecipe, *, out: Path | None = None) -> CheckReport:
    """Say what a merge, or a mixture of experts, would run into, from headers and configurations.

    Args:
        config: A recipe, or what ``load_recipe`` or ``load_moe_recipe`` takes.
        out: Where the result would go, to judge the space there.

    Returns:
        All findings, and what the models are. A problem of the models is a finding, not an
        exception.

    Raises:
        RecipeError: The recipe itself is wrong.
        CheckpointError: A model cannot be found or read.
    """
    from forge.merge.check.preflight import check_merge
    from forge.merge.moe.run import check_moe, open_moe
    from forge.merge.stages import open_models
    from forge.recipes.moe_types import MoeRecipe

    if isinstance(config, (str, Path)):
        config = load_moe_recipe(config) if is_moe(config) else load_recipe(config)
    if isinstance(config, MoeRecipe):
        checkpoints = open_moe(config, weights=False)
    else:
        checkpoints = open_models(config, weights=False)
    try:
        if isinstance(config, MoeRecipe):
            return check_moe(config, checkpoints, out=out)[0]
        return check_merge(config, checkpoints, out=out)
    finally:
        for checkpoint in checkpoints.values():
            checkpoint.source.close()


def plan(config: str | Path | MergeRecipe, *, out: Path | None = None) -> MergePlan:
    """Plan a merge without reading a weight.

    Args:
        config: A recipe, or what ``load_recipe`` takes.
        out: Where the result would go, to judge the space there.

    Returns:
        What would be computed, tensor by tensor.

    Raises:
        ForgeError: The merge cannot be done as asked; the message lists every reason.
    """
    from forge.merge.run import prepare

    prepared = prepare(_recipe(config), out, weights=False)
    for checkpoint in prepared.checkpoints.values():
        checkpoint.source.close()
    return prepared.plan


def merge(
    config: str | Path | MergeRecipe,
    out: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    progress: Progress | None = None,
    engine: Engine = "forge",
) -> MergeResult:
    """Merge checkpoints.

    Args:
        config: A recipe, or what ``load_recipe`` takes.
        out: The folder to make. It appears at once, when everything in it is complete.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether an existing output of forge may be replaced.
        seed: Replaces the recipe's seed; from 0 to 2^64 - 1.
        progress: Hears how it goes.
        engine: ``mergekit`` runs the recipe through mergekit instead (an extra).

    Returns:
        The folder, its manifest, and what it took.

    Raises:
        ForgeError: The input or the output is not as it should be. What existed is untouched, and
            the same call resumes what it can.
    """
    recipe = _recipe(config)
    if seed is not None:
        recipe = recipe.with_seed(checked_seed(seed))
    if engine == "mergekit":
        from forge.merge.engine_mergekit import run_with_mergekit

        return run_with_mergekit(
            recipe, out, threads=threads, overwrite=overwrite, progress=progress
        )
    from forge.merge.run import run_merge

    return run_merge(recipe, out, threads=threads, overwrite=overwrite, progress=progress)


def methods() -> Catalog[MethodRow]:
    """Return all merge methods with their parameters, defaults, formulas and sources."""
    from forge.merge.catalog import METHODS

    return METHODS


def _recipe(config: str | Path | MergeRecipe) -> MergeRecipe:
    return load_recipe(config) if isinstance(config, (str, Path)) else config
