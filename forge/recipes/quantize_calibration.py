"""Read ``calibration``: a short form for the usual cases, and a mapping for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Final

from forge.core.catalog import did_you_mean
from forge.recipes.findings import Findings, shown
from forge.recipes.place import KeyPath
from forge.recipes.quantize_shapes import CalibrationShape
from forge.recipes.quantize_types import (
    DEFAULT_SAMPLES,
    DEFAULT_TOKENS,
    KEYS_OF_SOURCE,
    CalibrationRecipe,
)
from forge.recipes.shapes import fit

SOURCES: Final = tuple(KEYS_OF_SOURCE)
MIN_NUM_TOKENS: Final = 256
"""Fewer tokens than this say next to nothing about a group of 128 channels."""
_PATH: Final[KeyPath] = ("calibration",)
_BY_SUFFIX: Final = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".npy": "tokens",
}


def read_calibration(value: object, seed: int, findings: Findings) -> CalibrationRecipe | None:
    """Read ``calibration``.

    Args:
        value: ``self``, ``self:FILE`` (of prompts), a file whose suffix says what it is,
            ``hub:NAME``, a mapping, or ``None`` when absent.
        seed: The recipe's seed.
        findings: Receives every problem.

    Returns:
        The calibration set's recipe, or ``None`` when a problem was found.
    """
    before = len(findings.problems)
    written = _expanded(value, findings)
    if written is None:
        return None
    shape = fit(CalibrationShape, written, _PATH, findings)
    source = shape.source or "self"
    if source not in SOURCES:
        guess = did_you_mean(source, SOURCES)
        findings.add((*_PATH, "source"), f"{shown(source)} is none of {', '.join(SOURCES)}.{guess}")
    else:
        _check_source(source, shape, written, findings)
    samples = DEFAULT_SAMPLES if shape.samples is None else shape.samples
    tokens = DEFAULT_TOKENS if shape.tokens is None else shape.tokens
    if source != "tokens" and samples * tokens < MIN_NUM_TOKENS:
        findings.add(
            _PATH,
            f"{samples} × {tokens} are {samples * tokens} tokens, too few to calibrate on. Ask for "
            f"at least {MIN_NUM_TOKENS}; {DEFAULT_SAMPLES} × {DEFAULT_TOKENS} is usual.",
        )
    if len(findings.problems) > before:
        return None
    return CalibrationRecipe(
        source,
        path=shape.path,
        field=shape.field,
        split=shape.split,
        samples=samples,
        tokens=tokens,
        chat_template=shape.chat_template,
        prompts=tuple(shape.prompts or ()),
        seed=seed,
    )


def short_form(text: str) -> dict[str, object] | None:
    """Read the short form of a calibration set.

    Args:
        text: ``self``, ``self:FILE``, ``FILE.txt``, ``FILE.jsonl``, ``hub:NAME``, or the stored
            tokens of an earlier run.

    Returns:
        What the mapping would hold, or ``None`` when the text is none of them.
    """
    kind, colon, rest = text.partition(":")
    if text == "self":
        return {"source": "self"}
    if colon and kind in ("self", "hub") and rest.strip():
        return {"source": kind, "path": rest.strip()}
    source = _BY_SUFFIX.get(PurePath(text).suffix.lower())
    return None if source is None else {"source": source, "path": text}


def _expanded(value: object, findings: Findings) -> Mapping[str, object] | None:
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    text = str(value)
    short = short_form(text)
    if short is None:
        guess = did_you_mean(text, ("self", "hub:"))
        findings.add(
            _PATH,
            f"{shown(text)} is no calibration set.{guess} Write 'self' (the model writes it), a "
            "file (.txt, .jsonl, or the calibration_tokens.npy of an earlier run), or "
            "'hub:org/name'.",
        )
    return short


def _check_source(
    source: str, shape: CalibrationShape, written: Mapping[str, object], findings: Findings
) -> None:
    """Report keys that the source needs, and keys that it does not have."""
    if source in ("text", "jsonl", "tokens", "hub") and shape.path is None:
        what = "the data set, such as 'org/name'" if source == "hub" else "the file"
        findings.missing(
            (*_PATH, "path"), f"A calibration set from '{source}' needs {what}.", at=_PATH
        )
    permitted = KEYS_OF_SOURCE[source]
    for key in written:
        if key in CalibrationShape.model_fields and key not in ("source", *permitted):
            # A false switch and an absent key say the same.
            if written[key] in (None, False):
                continue
            reason = (
                "Stored tokens are taken as they are."
                if source == "tokens"
                else f"It belongs to {_owners(key)}."
            )
            findings.add((*_PATH, key), f"'{key}' does not go with '{source}'. {reason} Remove it.")
    if source == "self" and shape.prompts and shape.path is not None:
        findings.add(
            (*_PATH, "prompts"), "'prompts' and a file of prompts exclude each other. Keep one."
        )


def _owners(key: str) -> str:
    owners = {
        "chat_template": "jsonl, hub and self",
        "field": "jsonl and hub",
        "split": "hub",
        "prompts": "self",
    }
    return owners.get(key, "text, jsonl and hub")
