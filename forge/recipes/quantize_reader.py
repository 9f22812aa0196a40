"""Turn a document into a quantization recipe, reporting everything that is wrong at once.

As for merges, reading goes on after each problem, and only a document without any becomes a
recipe.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

from forge.core.catalog import did_you_mean
from forge.core.errors import RecipeError
from forge.recipes.document import Document
from forge.recipes.findings import Findings, shown
from forge.recipes.output_words import read_shard_size
from forge.recipes.quantize_calibration import read_calibration
from forge.recipes.quantize_rows import Choices, MethodRow
from forge.recipes.quantize_shapes import HINTS, QuantizeShape
from forge.recipes.quantize_types import DEFAULT_MAX_SHARD_SIZE, QuantizeRecipe, Variant
from forge.recipes.quantize_variants import read_variants, words_of
from forge.recipes.shapes import fit

_SEARCHES: Final = ("sketch", "gram", "module")
_NEEDED: Final = "calibration"


def read_quantize_recipe(document: Document, choices: Choices) -> QuantizeRecipe:
    """Read a quantization recipe.

    Args:
        document: The YAML, or values built in memory.
        choices: The methods and formats to choose from.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: Carries every problem of the document.
    """
    findings = Findings(document, list(document.problems))
    value = document.value
    shape = fit(QuantizeShape, value, (), findings, hints=HINTS)
    if not isinstance(value, dict):
        raise RecipeError(findings.problems)
    model = findings.reference(shape.model, ("model",))
    method = _read_method(shape, value.get("method"), choices, findings)
    variants: tuple[Variant, ...] = ()
    calibration = None
    if method is not None:
        variants = read_variants(method, shape, choices, findings)
        _report_foreign(method, value, choices, findings)
    if method is None or method.needs_calibration:
        calibration = read_calibration(shape.calibration, shape.seed, findings)
    search = _read_search(shape.search, findings)
    device = _read_device(shape.device, findings)
    keep = tuple(dict.fromkeys(filter(None, words_of(shape.keep))))
    size = read_shard_size(shape.max_shard_size or DEFAULT_MAX_SHARD_SIZE, findings)
    if findings.problems or method is None:
        raise RecipeError(findings.problems)
    return QuantizeRecipe(
        method.name,
        variants,
        model=model,
        search=search,
        clip=shape.clip is not False,
        duo_scaling=shape.duo_scaling is not False,
        error_feedback=bool(shape.error_feedback),
        calibration=calibration,
        keep=keep,
        device=device,
        seed=shape.seed,
        max_shard_size=size,
        notices=(*findings.notices, *_format_notices(variants, choices)),
        file=findings.place(()).file,
    )


def _read_method(
    shape: QuantizeShape, written: object, choices: Choices, findings: Findings
) -> MethodRow | None:
    name, known = shape.method, ", ".join(choices.methods)
    if name is None:
        if written is None:
            findings.missing(("method",), f"No method is named. Choose one of {known}.")
        return None
    if name in choices.methods:
        return choices.methods[name]
    guess = did_you_mean(name, choices.methods)
    findings.add(("method",), f"{shown(name)} is no method.{guess} Known: {known}.")
    # Judging the rest by the method that is probably meant shows its mistakes in this run, too.
    nearest = get_close_matches(name.lower(), choices.methods, n=1, cutoff=0.6)
    return choices.methods[nearest[0]] if nearest else None


def _report_foreign(
    method: MethodRow, value: dict[str, object], choices: Choices, findings: Findings
) -> None:
    """Report keys that mean something to other methods only; a switch that is off means nothing."""
    keys = {item.name for row in choices.methods.values() for item in row.options}
    own = {item.name for item in method.options}
    for key in value:
        if value[key] in (None, False):
            continue
        if key in keys - own:
            owners = " or ".join(choices.owners(key))
            findings.add((key,), f"'{key}' belongs to {owners}, not to {method.name}. Remove it.")
        elif key == _NEEDED and not method.needs_calibration:
            findings.add(
                (key,), f"{method.name} looks at weights alone and needs no calibration. Remove it."
            )


def _format_notices(variants: tuple[Variant, ...], choices: Choices) -> list[str]:
    rows = [choices.formats[variant.format] for variant in variants]
    return [row.notice for row in rows if row.notice is not None]


def _read_search(text: str | None, findings: Findings) -> str:
    if text is not None and text not in _SEARCHES:
        guess = did_you_mean(text, _SEARCHES)
        findings.add(("search",), f"{shown(text)} is none of {', '.join(_SEARCHES)}.{guess}")
    return text or _SEARCHES[0]


def _read_device(text: str | None, findings: Findings) -> str:
    if text is None:
        return "cpu"
    kind, colon, number = text.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        findings.add(
            ("device",), f"{shown(text)} is no device. Write 'cpu', 'cuda' or, say, 'cuda:1'."
        )
    return text
