"""Load recipes for mixtures of experts, reporting everything that is wrong with one at once.

Reading goes on after each problem, and each is told where it stands, as with merge recipes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forge.core.catalog import did_you_mean
from forge.core.errors import RecipeError
from forge.recipes.document import Document, read_document
from forge.recipes.findings import Findings, shown
from forge.recipes.merge_types import DEFAULT_MAX_SHARD_SIZE
from forge.recipes.moe_shapes import ExpertShape, MoeShape
from forge.recipes.moe_types import (
    DEFAULT_EXPERTS_PER_TOKEN,
    FAMILIES,
    GATE_MODES,
    ExpertEntry,
    MoeRecipe,
)
from forge.recipes.output_words import read_dtype, read_shard_size
from forge.recipes.place import KeyPath
from forge.recipes.shapes import fit

__all__ = ["ExpertEntry", "MoeRecipe", "load_moe_recipe", "parse_moe_recipe"]

MOST_PROMPT_CHARACTERS: Final = 100_000
_MERGE: Final = "That is a key of merge recipes; 'forge merge' reads those."
_HINTS: Final = {
    **dict.fromkeys(("merge_method", "models", "slices", "parameters"), _MERGE),
    "noise_scale": "forge adds no noise to experts; remove it.",
    "gate_type": "Did you mean 'gate_mode'?",
}
_PROMPTED: Final = ("hidden", "cheap_embed")
# mergekit knows two kinds of random, and a family by a shorter name.
_HABITS: Final = {"uniform_random": "random", "qwen": "qwen2_moe", "qwen3": "qwen3_moe"}


def load_moe_recipe(path: Path) -> MoeRecipe:
    """Load a recipe for a mixture of experts from a YAML file.

    Args:
        path: The file, as the user typed it; messages repeat it.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: Carries every problem of the file, each with its line and key.
    """
    return _read(read_document(path))


def parse_moe_recipe(value: Mapping[str, object]) -> MoeRecipe:
    """Rebuild a recipe from plain values, such as a manifest's resolved recipe.

    Args:
        value: What the YAML would hold.

    Returns:
        The recipe; equal to ``r`` for the values of ``r.resolved()``.

    Raises:
        RecipeError: Carries every problem, each with its key.
    """
    return _read(Document(value))


def _read(document: Document) -> MoeRecipe:
    findings = Findings(document, list(document.problems))
    value = document.value
    shape = fit(MoeShape, value, (), findings, hints=_HINTS)
    if not isinstance(value, dict):
        raise RecipeError(findings.problems)
    base = findings.reference(shape.base_model, ("base_model",))
    if value.get("base_model") is None:
        findings.missing(
            ("base_model",),
            "The recipe names no base model, whose attention, norms and embeddings the result "
            "has. Add 'base_model: ...'.",
        )
    mode = _read_mode(shape.gate_mode, findings)
    if not shape.experts and not isinstance(value.get("experts"), (str, int, float, dict)):
        findings.missing(
            ("experts",), "The recipe lists no experts. Add 'experts:' with '- source_model: ...'."
        )
    experts = _read_experts(shape.experts or [], ("experts",), mode, findings)
    shared = _read_experts(shape.shared_experts or [], ("shared_experts",), mode, findings)
    listed = len(shape.experts or [])
    per_token = _read_count(shape.experts_per_token, listed, findings)
    dtype = read_dtype(shape.dtype, ("dtype",), findings)
    architecture = _read_architecture(shape.architecture, findings)
    size = read_shard_size(shape.max_shard_size or DEFAULT_MAX_SHARD_SIZE, findings)
    if findings.problems or base is None:
        raise RecipeError(findings.problems)
    return MoeRecipe(
        base,
        experts,
        shared_experts=shared,
        gate_mode=mode or "hidden",
        experts_per_token=per_token,
        architecture=architecture,
        dtype=dtype,
        name=shape.name,
        seed=shape.seed,
        max_shard_size=size,
        notices=tuple(dict.fromkeys(findings.notices)),
        file=findings.place(()).file,
    )


def _read_mode(text: str | None, findings: Findings) -> str | None:
    """Return the gate mode; ``None`` when it is wrong, so that prompts are not judged by it."""
    if text is None:
        return None if "gate_mode" in _written(findings) else "hidden"
    if text in GATE_MODES:
        return text
    habit = _HABITS.get(text)
    guess = f" Did you mean '{habit}'?" if habit else did_you_mean(text, GATE_MODES)
    listing = "; ".join(f"{name}: {meaning}" for name, meaning in GATE_MODES.items())
    findings.add(("gate_mode",), f"{shown(text)} is no gate mode.{guess} Known: {listing}.")
    return None


def _written(findings: Findings) -> Mapping[str, object]:
    value = findings.document.value
    return value if isinstance(value, dict) else {}


def _read_count(count: int | None, listed: int, findings: Findings) -> int:
    if listed == 1:
        findings.add(("experts",), "A mixture needs at least 2 experts, but 1 is listed.")
    if count is None:
        return DEFAULT_EXPERTS_PER_TOKEN
    path: KeyPath = ("experts_per_token",)
    if count < 1:
        findings.add(path, f"{count} is below 1: every token goes through an expert or more.")
    elif listed > 1 and count > listed:
        findings.add(
            path,
            f"{count} experts for each token are asked of {listed}. Write at most {listed}, or "
            "list more experts.",
        )
    return count


def _read_architecture(text: str | None, findings: Findings) -> str | None:
    if text is None or text in FAMILIES:
        return text
    habit = _HABITS.get(text)
    if habit is not None:
        return habit
    guess = did_you_mean(text, FAMILIES)
    findings.add(
        ("architecture",), f"forge builds no {shown(text)}.{guess} Known: {', '.join(FAMILIES)}."
    )
    return None


def _read_experts(
    items: list[object], path: KeyPath, mode: str | None, findings: Findings
) -> tuple[ExpertEntry, ...]:
    entries: list[ExpertEntry] = []
    for index, item in enumerate(items):
        at = (*path, index)
        shape = fit(ExpertShape, item, at, findings, hints=_HINTS)
        model = findings.reference(shape.source_model, (*at, "source_model"))
        if isinstance(item, dict) and item.get("source_model") is None:
            findings.missing(
                (*at, "source_model"), "This item names no model. Add 'source_model: ...'."
            )
        positive = _read_prompts(shape.positive_prompts, (*at, "positive_prompts"), findings)
        negative = _read_prompts(shape.negative_prompts, (*at, "negative_prompts"), findings)
        held = item if isinstance(item, dict) else {}
        if mode in _PROMPTED and isinstance(item, dict) and held.get("positive_prompts") is None:
            is_shared = path == ("shared_experts",)
            # Without prompts a shared expert counts the same everywhere; an expert would never.
            if not is_shared:
                findings.missing(
                    (*at, "positive_prompts"),
                    f"gate_mode {mode} needs prompts that this expert is good at. Add "
                    "'positive_prompts:' with a list, or write 'gate_mode: random'.",
                )
        if mode == "random" and (positive or negative):
            findings.notices.append("Prompts have no effect with gate_mode random.")
        scale = _read_scale(shape.residual_scale, (*at, "residual_scale"), findings)
        if model is not None:
            entries.append(ExpertEntry(model, positive, negative, scale, findings.place(at)))
    return tuple(entries)


def _read_scale(value: float | None, path: KeyPath, findings: Findings) -> float:
    scale = 1.0 if value is None else float(value)
    if not math.isfinite(scale):
        findings.add(path, f"{shown(value)} is not finite. It multiplies the expert's output.")
    return scale


def _read_prompts(items: list[object] | None, path: KeyPath, findings: Findings) -> tuple[str, ...]:
    if items is None:
        return ()
    if not items:
        findings.add(path, "This list is empty. Write a prompt, or remove the key.")
    prompts: list[str] = []
    for index, item in enumerate(items):
        if not isinstance(item, str):
            findings.add((*path, index), f"{shown(item)} must be text. Put it in quotes.")
        elif not item.strip():
            findings.add((*path, index), "This prompt is empty.")
        elif len(item) > MOST_PROMPT_CHARACTERS:
            findings.add(
                (*path, index),
                f"This prompt has {len(item):,} characters; {MOST_PROMPT_CHARACTERS:,} are the "
                "most.",
            )
        else:
            prompts.append(item)
    return tuple(prompts)
