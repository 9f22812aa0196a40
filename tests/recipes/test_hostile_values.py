"""Whatever stands under whatever key, a recipe is read or refused; nothing else happens."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.core.errors import RecipeError
from forge.merge.catalog import METHODS
from forge.recipes.merge_recipe import parse_merge_recipe
from forge.recipes.shapes import (
    ConditionShape,
    ModelShape,
    RecipeShape,
    SliceShape,
    SourceShape,
    TokenizerShape,
    TokenShape,
    TokenSourceShape,
)
from tests.recipes.samples import DARE, SLERP

TOKENS = """
tokenizer:
  source: union
  pad_to_multiple_of: 8
  tokens:
    <a>: {source: org/med, force: true}
    <b>: {source: {kind: model_token, model: org/med, token: x}}
seed: 3
chat_template: chatml
max_shard_size: 1GB
"""
SAMPLES = [yaml.safe_load(DARE + TOKENS), yaml.safe_load(SLERP + TOKENS)]
SHAPES = (
    RecipeShape,
    ModelShape,
    SliceShape,
    SourceShape,
    ConditionShape,
    TokenizerShape,
    TokenShape,
    TokenSourceShape,
)
KEYS = sorted({name for shape in SHAPES for name in shape.model_fields} | {"weight", "density"})
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["org/med", "org/base", "union", "zero", "ties", "a@b@c", 10**400])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def paths(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value within a value."""
    entries: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for key, inner in entries:
        yield (*path, key)
        yield from paths(inner, (*path, key))


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(SAMPLES), values, st.data())
def test_one_strange_value_in_a_right_recipe(
    sample: dict[str, object], strange: object, data: st.DataObject
) -> None:
    recipe = copy.deepcopy(sample)
    *outer, last = data.draw(st.sampled_from(list(paths(recipe))))
    holder: object = recipe
    for key in outer:
        holder = holder[key]  # type: ignore[index]
    holder[last] = strange  # type: ignore[index]
    read_or_refuse(recipe)


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=6))
def test_strange_recipes(recipe: dict[str, object]) -> None:
    read_or_refuse(recipe)


def read_or_refuse(value: dict[str, object]) -> None:
    """Read a recipe; a refusal must carry problems with keys that can be printed."""
    problems: tuple[object, ...] = ()
    try:
        recipe = parse_merge_recipe(value, METHODS)
    except RecipeError as error:
        problems = error.problems
        assert problems
        assert len(set(problems)) == len(problems)
    else:
        assert parse_merge_recipe(recipe.resolved(), METHODS) == recipe
