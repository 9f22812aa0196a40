"""The models' tokenizers side by side, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from forge.cli.tables import table

if TYPE_CHECKING:
    from forge.merge.check.tokenizer_facts import TokenizerTable, Value

_WIDEST: Final = 44
_ABSENT: Final = "-"


def tokenizers_text(found: TokenizerTable, *, is_whole: bool, width: int | None) -> str:
    """Return a table of properties, one column a model.

    Args:
        found: The tokenizers.
        is_whole: Whether to list what all models share, too.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        Several lines; nothing when there is nothing to list.
    """
    if not found.models:
        return ""
    differing = frozenset(found.differing)
    labels = _labels([facts.model for facts in found.models])
    keys = [key for key in found.models[0].values if is_whole or key in differing]
    cells = [
        (
            key.replace("_", " ") + (" *" if is_whole and key in differing else ""),
            *(_cell(facts.values[key]) for facts in found.models),
        )
        for key in keys
    ]
    only = [", ".join(map(repr, facts.only)) for facts in found.models]
    if any(only):
        cells.append(("added here alone", *(_cut(text) for text in only)))
    if not cells:
        return ""
    lines = [table(("TOKENIZERS", *labels), cells, width=width)]
    for item in found.templates:
        label = labels[[facts.model for facts in found.models].index(item.model)]
        lines.append(
            f"chat template of {label}: as that of {labels[0]} for {item.position:,} characters, "
            f"then {item.found!r} instead of {item.expected!r}"
        )
    return "\n".join(lines)


def _labels(models: list[str]) -> list[str]:
    """Return the last parts of the models' names, or numbers where those are alike."""
    parts = [model.rstrip("/").rpartition("/")[2] for model in models]
    if len(set(parts)) == len(parts):
        return parts
    return [f"model {number}" for number in range(1, len(models) + 1)]


def _cell(value: Value) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:,}" if isinstance(value, int) else _cut(value)


def _cut(text: str) -> str:
    # A token may hold a line break, which would tear the table.
    text = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."
