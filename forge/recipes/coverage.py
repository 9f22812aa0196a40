"""Compare a recipe's filters with the names of the tensors that will be written."""

from __future__ import annotations

import re
from collections.abc import Sequence

from forge.core.catalog import did_you_mean
from forge.core.errors import Problem
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.method_rules import has_own_values
from forge.recipes.parameters import MethodRow
from forge.recipes.place import Place
from forge.recipes.reference import ModelReference
from forge.recipes.settings import Setting

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def dead_filters(recipe: MergeRecipe, tensor_names: Sequence[str]) -> list[Problem]:
    """Return a problem for each filter that matches no tensor.

    Args:
        recipe: The recipe.
        tensor_names: Full names of all tensors of the result.

    Returns:
        The problems in listing order; an empty list when every filter matches.
    """
    problems: list[Problem] = []
    for _, setting in recipe.settings():
        for rule in setting.rules:
            if any(rule.matches(name) for name in tensor_names):
                continue
            parts = {part for name in tensor_names for part in name.split(".")}
            guess = did_you_mean(str(rule.filter), sorted(parts))
            problems.append(
                rule.place.problem(
                    f"The filter '{rule.filter}' matches none of the {len(tensor_names)} tensors."
                    f"{guess} A filter is plain text that occurs in a tensor's name, such as "
                    f"'{_example(tensor_names)}'."
                )
            )
    return problems


def missing_values(recipe: MergeRecipe, tensor_names: Sequence[str]) -> list[Problem]:
    """Return a problem for each required parameter that some tensor gets no value for.

    That happens when a parameter is given behind filters only.

    Args:
        recipe: The recipe.
        tensor_names: Full names of all tensors of the result.

    Returns:
        One problem for each parameter and model, which names a tensor without a value.
    """
    problems: list[Problem] = []
    rows = [(method, row) for method in recipe.methods for row in method.parameters]
    for method, row in rows:
        if not row.required:
            continue
        for model, slice_index, place in _askers(recipe, method, is_global=row.scope == "global"):
            levels = recipe.levels(model=model, slice_index=slice_index)
            setting = Setting.stacked(row.name, levels)
            orphan = next((name for name in tensor_names if setting.matching(name) is None), None)
            if orphan is not None:
                found = next((level[row.name] for level in levels if row.name in level), None)
                problems.append(
                    (place if found is None else found.rules[-1].place).problem(
                        f"No filter of '{row.name}' matches '{orphan}'. End the list with a "
                        "'- value: ...' for all other tensors."
                    )
                )
    return problems


def _askers(
    recipe: MergeRecipe, method: MethodRow, *, is_global: bool
) -> list[tuple[ModelReference | None, int | None, Place]]:
    """Return who needs a value of its own for a method: (model, slice, place)."""
    top = Place(recipe.file)
    slices = [
        (index, part)
        for index, part in enumerate(recipe.slices)
        if recipe.method_of(index).name == method.name
    ]
    if is_global:
        if recipe.models:
            return [(None, None, top)]
        return [(None, index, part.place) for index, part in slices]
    askers: list[tuple[ModelReference | None, int | None, Place]] = [
        (entry.model, None, entry.place)
        for entry in recipe.models
        if has_own_values(method, entry.model, recipe.base_model)
    ]
    for index, part in slices:
        base = part.base_model or recipe.base_model
        askers += [
            (source.model, index, source.place)
            for source in part.sources
            if has_own_values(method, source.model, base)
        ]
    return askers


def _example(tensor_names: Sequence[str]) -> str:
    """Return what the layers' tensors have in common with a useful filter: a block's name."""
    numbered = next((name for name in tensor_names if _NUMBER.search(name)), "")
    rest = _NUMBER.split(numbered, maxsplit=1)[-1].strip(".")
    return rest.split(".")[0] or "embed_tokens"
