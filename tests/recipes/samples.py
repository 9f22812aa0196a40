"""Recipes as text and as values, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

from forge.core.errors import Problem, RecipeError
from forge.merge.catalog import METHODS
from forge.recipes.merge_recipe import MergeRecipe, load_merge_recipe

DARE = """\
models:
  - model: org/base
  - model: org/med
    parameters:
      density: 0.5
      weight: 0.5
merge_method: dare_ties
base_model: org/base
parameters:
  int8_mask: true
dtype: bfloat16
"""

SLERP = """\
slices:
  - sources:
      - model: org/base
        layer_range: [0, 32]
      - model: org/med
        layer_range: [0, 32]
merge_method: slerp
base_model: org/base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
"""


def load(folder: Path, text: str) -> MergeRecipe:
    """Write ``text`` as a recipe and load it."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_merge_recipe(path, METHODS)


def problems(folder: Path, text: str) -> tuple[Problem, ...]:
    """Return the problems of a recipe, none when it loads."""
    try:
        load(folder, text)
    except RecipeError as error:
        return error.problems
    return ()
