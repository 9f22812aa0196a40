"""Load quantization recipes, complete them from the command line, and rebuild them.

An option of the command line is a key of the recipe that was written last: both are read by the
same reader, under the same rules, and a message names whichever of them is at fault.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forge.core.errors import Problem, RecipeError
from forge.recipes.document import Document, read_document
from forge.recipes.merge_recipe import find_recipe
from forge.recipes.quantize_calibration import short_form
from forge.recipes.quantize_reader import read_quantize_recipe
from forge.recipes.quantize_rows import Choices
from forge.recipes.quantize_types import (
    KEYS_OF_SOURCE,
    CalibrationRecipe,
    QuantizeRecipe,
    Variant,
)

__all__ = [
    "FOLDER",
    "CalibrationRecipe",
    "Choices",
    "QuantizeRecipe",
    "Variant",
    "find_quantize_recipe",
    "load_quantize_recipe",
    "parse_quantize_recipe",
]

FOLDER: Final = "quant_configs"
"""Name of the folder of recipes, in the working directory and in forge."""
_FORMAT_KEYS: Final = ("format", "version", "type")
_CALIBRATION_OPTIONS: Final = {
    "calibration_samples": "samples",
    "calibration_tokens": "tokens",
    "calibration_field": "field",
    "chat_template": "chat_template",
}


def find_quantize_recipe(text: str) -> Path:
    """Find the recipe that a command line names; see ``find_recipe``.

    Args:
        text: What the user typed.

    Returns:
        Path of an existing file.

    Raises:
        RecipeError: There is no such file; the message lists names that come near.
    """
    return find_recipe(text, FOLDER)


def load_quantize_recipe(
    path: Path | None,
    choices: Choices,
    *,
    options: Mapping[str, object] | None = None,
) -> QuantizeRecipe:
    """Load a quantization recipe and complete it from the command line.

    Args:
        path: The file, as the user typed it; ``None`` when options say everything.
        choices: The methods and formats to choose from.
        options: Values by the name of the option, with underscores; ``None`` is "not given".
            They replace the recipe's keys; ``version``, ``type`` and ``format`` replace each
            other, and ``calibration`` keeps the recipe's sizes.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: Carries every problem, each with its line and key, or its option.
    """
    document = Document({}) if path is None else read_document(path)
    given = {key: value for key, value in (options or {}).items() if value is not None}
    value = document.value
    if isinstance(value, dict):
        document = dataclasses.replace(document, value=_completed(value, given))
    try:
        return read_quantize_recipe(document, choices)
    except RecipeError as error:
        problems = [_at_option(item, given, only_options=path is None) for item in error.problems]
        raise RecipeError(problems) from error


def parse_quantize_recipe(value: Mapping[str, object], choices: Choices) -> QuantizeRecipe:
    """Rebuild a recipe from plain values, such as a manifest's resolved recipe.

    Args:
        value: What the YAML would hold.
        choices: The methods and formats to choose from.

    Returns:
        The recipe; equal to ``r`` for the values of ``r.resolved()``.

    Raises:
        RecipeError: Carries every problem, each with its key.
    """
    return read_quantize_recipe(Document(value), choices)


def _completed(value: dict[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Return the recipe's keys with those of the command line over them."""
    merged = dict(value)
    if any(key in given for key in _FORMAT_KEYS):
        for key in _FORMAT_KEYS:
            merged.pop(key, None)
    merged |= {
        key: item
        for key, item in given.items()
        if key != "calibration" and key not in _CALIBRATION_OPTIONS
    }
    sizes = {name: given[key] for key, name in _CALIBRATION_OPTIONS.items() if key in given}
    if "calibration" in given:
        merged["calibration"] = _source_replaced(value.get("calibration"), given["calibration"])
    if sizes:
        held = merged.get("calibration")
        if held is None:
            held = {}
        elif isinstance(held, str):
            held = short_form(held) or held
        if isinstance(held, dict):
            merged["calibration"] = {**held, **sizes}
    return merged


def _source_replaced(old: object, new: object) -> object:
    short = short_form(str(new))
    if short is None:
        return new
    permitted = KEYS_OF_SOURCE[str(short["source"])]
    kept = ("samples", "tokens", "chat_template")
    held = old if isinstance(old, dict) else {}
    return short | {key: held[key] for key in kept if key in held and key in permitted}


def _at_option(problem: Problem, given: Mapping[str, object], *, only_options: bool) -> Problem:
    """Return a problem that names the option at fault instead of a key of no file."""
    key = problem.key or ""
    names = {f"calibration.{name}": option for option, name in _CALIBRATION_OPTIONS.items()}
    names |= {"calibration.path": "calibration", "calibration.source": "calibration"}
    sizes = [option for option in _CALIBRATION_OPTIONS if option in given]
    option = names.get(key, key)
    if option == "calibration" and option not in given and sizes:
        option = sizes[0]
    if option in given or (only_options and option):
        return Problem(problem.message, f"--{option.replace('_', '-')}:")
    return problem
