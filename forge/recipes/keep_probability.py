"""Check that DELLA's keep probabilities, density ± epsilon, stay strictly inside (0, 1).

Both may be gradients and stand at different levels, so each is judged where the other is known:
at every anchor of either, between which both are linear.
"""

from __future__ import annotations

from collections.abc import Iterator

from forge.recipes.findings import Findings
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.method_rules import has_own_values
from forge.recipes.reference import ModelReference
from forge.recipes.settings import Rule


def check_keep_probability(recipe: MergeRecipe, findings: Findings) -> None:
    """Report each model whose density ± epsilon leaves (0, 1).

    A density of 0 or 1 drops or keeps everything, whatever epsilon is.

    Args:
        recipe: A recipe of any method; only those with both parameters are judged.
        findings: Receives the problems.
    """
    for model, index in _askers(recipe):
        row = recipe.method_of(index).parameter("epsilon")
        if row is None or row.scope != "model":
            continue
        if recipe.method_of(index).parameter("density") is None:
            continue
        for tensor in _witnesses(recipe):
            density = _rule(recipe, "density", tensor, model, index)
            epsilon = _rule(recipe, "epsilon", tensor, model, index)
            for position in _breakpoints(density, epsilon):
                middle, width = density.at(position), epsilon.at(position)
                if not isinstance(middle, float) or not isinstance(width, float):
                    continue
                if not 0 < middle < 1 or (middle - width > 0 and middle + width < 1):
                    continue
                written = density if density.place.path else epsilon
                path = written.place.path or ("parameters", "epsilon")
                findings.add(
                    path,
                    f"density {middle:g} ± epsilon {width:g} of {model} leaves (0, 1), and each "
                    f"element is kept with a probability in that range. {row.advice}",
                )
                break


def _askers(recipe: MergeRecipe) -> Iterator[tuple[ModelReference, int | None]]:
    for entry in recipe.models:
        if has_own_values(recipe.method, entry.model, recipe.base_model):
            yield entry.model, None
    for index, part in enumerate(recipe.slices):
        method = recipe.method_of(index)
        for source in part.sources:
            if has_own_values(method, source.model, part.base_model or recipe.base_model):
                yield source.model, index


def _witnesses(recipe: MergeRecipe) -> list[str]:
    """Return names for which the rules differ: one for each filter, one that none matches."""
    rules = [
        rule
        for name, setting in recipe.settings()
        if name in ("density", "epsilon")
        for rule in setting.rules
    ]
    return list(dict.fromkeys(rule.filter or "" for rule in rules))


def _rule(
    recipe: MergeRecipe, name: str, tensor: str, model: ModelReference, index: int | None
) -> Rule:
    for level in recipe.levels(model=model, slice_index=index):
        rule = level[name].matching(tensor) if name in level else None
        if rule is not None:
            return rule
    raise KeyError(f"{recipe.method_of(index).name} has no default for '{name}'")


def _breakpoints(*rules: Rule) -> list[float]:
    points = {0.0, 1.0}
    for rule in rules:
        last = len(rule.anchors) - 1
        points.update(index / last for index in range(last + 1) if last)
    return sorted(points)
