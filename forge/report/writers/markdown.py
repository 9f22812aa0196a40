"""A comparison as Markdown, for a model card: verdicts, tables, lineage.

Names and questions are text of others: whatever could be markup is escaped, so that a task named
``a|b`` is a cell and not two. Best and second are ``**bold**`` and ``<u>underlined</u>``, as cards
on the Hub have them. Every row of a table is a model that takes part in that: Markdown has no foot,
so what is there for reference is said below, or a reader would hold it against the bold values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from forge.report.comparison import Comparison
from forge.report.comparison.origin import Lineage
from forge.report.figures import MISSING
from forge.report.tables import Cell, Grid, grids

_MARKUP: Final = re.compile(r"([\\`*\[\]|~#])|(?<![^\W_])_|_(?![^\W_])")
_LINE_BREAKS: Final = re.compile(r"\s*[\r\n\u2028\u2029]+\s*")


def render_markdown(comparison: Comparison) -> str:
    """Return a comparison as Markdown.

    Args:
        comparison: What to show.
    """
    advice = comparison.recommendation
    parts = [
        f"# {escape(comparison.title)}",
        f"**{escape(advice.headline)}.**",
        _bullets(advice.reasons),
    ]
    for verdict in comparison.verdicts:
        parts.append(f"## {escape(verdict.model)}: {escape(verdict.headline)}")
        parts.append(_bullets(verdict.reasons))
        if verdict.against:
            parts += ["Against it:", _bullets(verdict.against)]
    for grid in grids(comparison):
        parts += [f"## {escape(grid.caption)}", _table(grid)]
        parts += [_bullets([*(_reference(grid, row) for row in grid.foot), *grid.notes])]
    parts += ["## Lineage", *(_lineage(entry) for entry in comparison.lineage)]
    if comparison.environments:
        parts.append("## Where it was measured")
        for environment in comparison.environments:
            facts = [f"{name}: {value}" for name, value in environment.facts]
            parts += [f"Environment {environment.name}", _bullets(facts)]
    if comparison.commands:
        parts += ["## Commands", _code("\n".join(comparison.commands), "sh")]
    if comparison.notices:
        parts += ["## Notices", _bullets(comparison.notices)]
    parts.append(
        f"Written by forge {comparison.forge_version} from `{_code_text(comparison.results_file)}`."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, on one line.

    Args:
        text: Any text.
    """
    one_line = _LINE_BREAKS.sub(" ", text)
    entities = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(lambda match: "\\" + match[0], entities)


def _table(grid: Grid) -> str:
    lines = [
        _line([escape(column.title) for column in grid.columns]),
        _line(["---:" if column.numeric else ":---" for column in grid.columns]),
        *(_line([_cell(cell) for cell in row]) for row in grid.rows),
    ]
    return "\n".join(lines)


def _reference(grid: Grid, row: Sequence[Cell]) -> str:
    """Say what a row of the foot holds."""
    figures = [
        f"{column.title} {cell.text}"
        for column, cell in zip(grid.columns[1:], row[1:], strict=True)
        if cell.text != MISSING
    ]
    return f"For reference, {row[0].text}: {', '.join(figures)}."


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.standing == "best":
        return f"**{text}**"
    return f"<u>{text}</u>" if cell.standing == "second" else text


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {escape(sentence)}" for sentence in sentences)


def _lineage(entry: Lineage) -> str:
    made = entry.made_by or "not made by forge, or its manifest was lost"
    facts = [f"made by: {made}", f"licence: {entry.licence or MISSING}"]
    for parent in entry.parents:
        revision = f" at {parent.revision}" if parent.revision else ""
        facts.append(f"{parent.role}: {parent.name}{revision}")
        facts += [f"{file.name} of {parent.name}: {file.digest}" for file in parent.files]
    if entry.content_digest is not None:
        facts.append(f"content: {entry.content_digest}")
    facts += [f"notice: {notice}" for notice in entry.notices]
    parts = [f"### {escape(entry.model)}", _bullets(facts)]
    if entry.recipe is not None:
        parts.append(_code(entry.recipe.rstrip("\n"), "yaml"))
    if entry.commands:
        parts.append(_code("\n".join(entry.commands), "sh"))
    return "\n\n".join(parts)


def _code(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _code_text(text: str) -> str:
    return _LINE_BREAKS.sub(" ", text).replace("`", "'")
