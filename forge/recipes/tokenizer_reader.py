"""Read ``tokenizer`` and its older short form ``tokenizer_source``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from forge.recipes.findings import Findings
from forge.recipes.merge_entries import TokenEntry, TokenizerEntry
from forge.recipes.place import KeyPath
from forge.recipes.reference import ModelReference
from forge.recipes.shapes import TokenizerShape, TokenShape, TokenSourceShape, fit


def read_tokenizer(
    source: str | None, tokenizer: Mapping[str, object] | None, findings: Findings
) -> TokenizerEntry | None:
    """Read how the vocabulary is made.

    Args:
        source: Value of ``tokenizer_source``, or ``None``.
        tokenizer: Value of ``tokenizer``, or ``None``.
        findings: Receives every problem.

    Returns:
        The entry, or ``None`` when the recipe says nothing about it.
    """
    if source is not None and tokenizer is not None:
        findings.add(
            ("tokenizer_source",), "'tokenizer' says this already. Keep 'tokenizer' alone."
        )
    if tokenizer is None:
        if source is None:
            return None
        return TokenizerEntry(_source(source, ("tokenizer_source",), findings))
    path: KeyPath = ("tokenizer",)
    shape = fit(TokenizerShape, tokenizer, path, findings)
    tokens = tuple(
        _token(token, value, (*path, "tokens", token), findings)
        for token, value in (shape.tokens or {}).items()
    )
    chosen = _source(shape.source or "union", (*path, "source"), findings)
    return TokenizerEntry(chosen, tokens, shape.pad_to_multiple_of)


def _source(
    text: str, path: KeyPath, findings: Findings
) -> Literal["union", "base"] | ModelReference:
    if text == "union":
        return "union"
    if text == "base":
        return "base"
    return findings.reference(text, path) or "union"


def _token(token: str, value: object, path: KeyPath, findings: Findings) -> TokenEntry:
    shape = fit(TokenShape, value, path, findings)
    at = (*path, "source")
    if shape.source is None:
        return TokenEntry(token, force=shape.force)
    if isinstance(shape.source, str):
        model = findings.reference(shape.source, at)
        return TokenEntry(token, "model", model, force=shape.force)
    inner = fit(TokenSourceShape, shape.source, at, findings)
    if inner.kind == "zero":
        if len(shape.source) > 1:
            findings.add(at, "A zero embedding takes no other key. Keep 'kind: zero' alone.")
        return TokenEntry(token, "zero", force=shape.force)
    if shape.source.get("kind") is None:
        findings.add(at, "This has no 'kind'. Write 'kind: model_token' or 'kind: zero'.")
    if shape.source.get("model") is None:
        findings.add(at, "This has no 'model'. Name the model that has the other token.")
    if (inner.token is None) == (inner.token_id is None):
        findings.add(at, "Give either 'token' or 'token_id' of the other token.")
    model = findings.reference(inner.model, (*at, "model"))
    return TokenEntry(token, "model_token", model, inner.token, inner.token_id, shape.force)
