"""Write the chapter of docs/merging.md that describes each merge method.

    python docs/make_methods.py

Titles, parameters, defaults and references come from the catalog, formulas from the docstring of
each method's module, so that the chapter cannot say anything else than the code. A test
compares the committed file with what this script would write.
"""

from __future__ import annotations

import ast
from pathlib import Path

from forge.merge.catalog import METHODS
from forge.recipes.parameters import MethodRow, ParameterRow

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = ROOT / "docs" / "merging.md"
MODULES = ROOT / "forge" / "merge" / "methods"
BEGIN = "<!-- methods: written by docs/make_methods.py -->"
END = "<!-- /methods -->"


def with_methods(text: str) -> str:
    """Return the chapter's text with the part between the marks made anew.

    Raises:
        ValueError: A mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{CHAPTER} lacks '{BEGIN}' or '{END}'")
    return f"{before}{BEGIN}\n\n{methods_text()}\n{END}{after}"


def methods_text() -> str:
    """Return the overview and one section for each method."""
    rows = list(METHODS)
    lines = ["| method | what it is | models | base | seed |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| [`{row.name}`](#{row.name}) | {row.title} | {_count(row)} | {_base(row)} | "
        f"{'yes' if row.random else '–'} |"
        for row in rows
    ]
    return "\n".join([*lines, "", *(_section(row) for row in rows)])


def _section(row: MethodRow) -> str:
    body, departure = _docstring(row.name)
    if "```" not in body:
        body = f"```\n{row.formula}\n```\n\n{body}".rstrip()
    lines = [f"### {row.name}", "", f"{row.title}.", "", body, ""]
    if not row.symmetric:
        lines += ["The order of the models matters: the base is the one end.", ""]
    lines += [f"Reference: {row.reference}.", ""]
    if row.statistics:
        needs = f"Needs `statistics` of kind `{row.statistics}` of each model"
        lines += [f"{needs}: see [merge_statistics.md](merge_statistics.md).", ""]
    differs = [text for text in (row.differs, departure) if text]
    if differs:
        lines += ["Differs:", "", *(f"- {text}" for text in differs), ""]
    if not row.parameters:
        return "\n".join([*lines, "No parameters.", ""])
    lines += [
        "| parameter | for | default | values | gradient | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{item.name}` | {'each model' if item.scope == 'model' else 'the merge'} "
        f"| {_default(item)} | {_values(item)} | {'yes' if item.gradient else 'no'} "
        f"| {item.meaning} |"
        for item in row.parameters
    ]
    return "\n".join([*lines, ""])


def _docstring(name: str) -> tuple[str, str]:
    """Return what a method's docstring says, formulas fenced, and after that where it differs.

    Its first line, the title, and its reference are left to the catalog.
    """
    docstring = ast.get_docstring(ast.parse((MODULES / f"{name}.py").read_text("utf-8"))) or ""
    paragraphs = docstring.replace("``", "`").split("\n\n")[1:]
    differs = "".join(text.partition("Differs: ")[2] for text in paragraphs)
    kept = [text for text in paragraphs if not text.startswith(("Reference:", "Differs:"))]
    # A formula is indented in a docstring; a fence keeps its line breaks in Markdown.
    fenced = [f"```\n{_dedent(text)}\n```" if text.startswith("    ") else text for text in kept]
    return "\n\n".join(fenced), " ".join(differs.split())


def _dedent(text: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in text.split("\n"))


def _count(row: MethodRow) -> str:
    if row.max_models is None:
        return f"{row.min_models} or more"
    if row.max_models == row.min_models:
        return str(row.min_models)
    return f"{row.min_models} to {row.max_models}"


def _base(row: MethodRow) -> str:
    return f"{row.base}, merged like the others" if row.base_is_merged else row.base


def _default(item: ParameterRow) -> str:
    if item.required:
        return "required"
    return "–" if item.default is None else f"`{_word(item.default)}`"


def _values(item: ParameterRow) -> str:
    if item.kind == "choice":
        return ", ".join(f"`{word}`" for word in item.choices)
    if item.kind == "boolean":
        return "`true`, `false`"
    kind = "whole number" if item.kind == "integer" else "number"
    if item.low is not None and item.high is not None:
        return f"{kind} in [{item.low:g}, {item.high:g}]"
    if item.low is not None:
        return f"{kind}, at least {item.low:g}"
    return kind if item.high is None else f"{kind}, at most {item.high:g}"


def _word(value: float | bool | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value:g}"


if __name__ == "__main__":
    CHAPTER.write_text(with_methods(CHAPTER.read_text("utf-8")), "utf-8")
