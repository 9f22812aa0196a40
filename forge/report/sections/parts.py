"""What sections are made of: headings, tables, figures, folded parts, code.

Everything is whole without a script: a table is read as it stands, a folded part opens, a chart
shows its figures when one points at it. The script only adds to it, by these marks:

    th[data-first]        sortable, and in which direction first
    td[data-value]        what it sorts by, and what goes into a CSV file
    [data-csv]            a table that can be saved, under this name
    figure[data-name]     a chart that can be saved, under this name
    .code                 text that can be copied
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from forge.report.charts.drawing import Drawing, marker
from forge.report.charts.selection import Group
from forge.report.comparison import Comparison
from forge.report.markup import EMPTY, Markup, Value, element, join
from forge.report.words import Status

_SIGNS: dict[Status, str] = {"good": "✓", "warn": "?", "bad": "✕", "neutral": "–"}


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page.

    Attributes:
        name: Its id.
        title: Its heading, and its line in the contents.
        body: What stands below the heading.
    """

    name: str
    title: str
    body: Markup

    def rendered(self) -> Markup:
        """Return it with its heading."""
        heading = f"{self.name}-heading"
        return element(
            "section",
            {"id": self.name, "aria-labelledby": heading},
            element("h2", {"id": heading}, self.title),
            self.body,
        )


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        note: A second, smaller line, such as a unit.
        numeric: Whether its cells are figures.
        first: Direction in which it is sorted first; ``None`` if it is not sorted.
    """

    title: str
    note: str | None = None
    numeric: bool = True
    first: Literal["ascending", "descending"] | None = "descending"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        content: What it shows.
        value: What it is sorted by, and saved as; by default what it shows.
        role: Class, such as ``best``.
    """

    content: str
    value: float | str | None = None
    role: str | None = None


ABSENT = Cell("–", "")
"""There is no figure."""


def table(
    name: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str,
    picked: int | None = None,
    foot: Sequence[Sequence[Cell]] = (),
) -> Markup:
    """Lay out a table whose first column names its rows.

    Args:
        name: Of the file that it can be saved as, and of its caption's id.
        columns: As many as each row has cells.
        rows: Its rows; they can be sorted.
        caption: What it shows.
        picked: Number of the row that stands out.
        foot: Rows that stay at the end.
    """
    head = element("tr", None, *(_header(column) for column in columns))
    body = [_row(cells, columns, picked=place == picked) for place, cells in enumerate(rows)]
    caption_id = f"{name}-caption"
    parts = [element("thead", None, head), element("tbody", None, *body)]
    if foot:
        parts.append(element("tfoot", None, *(_row(cells, columns) for cells in foot)))
    grid = element("table", {"class": "sortable wide", "aria-labelledby": caption_id}, *parts)
    return element(
        "div",
        {"class": "board", "data-csv": name},
        _head(element("p", {"class": "caption", "id": caption_id}, caption)),
        _scroll(grid, caption_id),
    )


def figure(drawing: Drawing, caption: str, *, narrow: Drawing | None = None) -> Markup:
    """Lay out a chart under its title, and the same for narrow screens if there is one."""
    title_id = f"figure-{drawing.name}"
    return element(
        "figure",
        {
            "class": "both" if narrow else None,
            "data-name": drawing.name,
            "aria-labelledby": title_id,
        },
        _head(element("h3", {"id": title_id}, drawing.title)),
        _scroll(join((drawing.inline(), narrow.inline() if narrow else EMPTY)), title_id),
        element("figcaption", {"class": "caption"}, caption) if caption else EMPTY,
    )


def figures(group: Group, caption: str, *, title: str, narrow: Group = ()) -> Markup:
    """Lay out charts of one kind, or the sentence that says why there are none.

    Args:
        group: The charts.
        caption: What stands below the last one.
        title: Heading of the sentence.
        narrow: The same charts for narrow screens, or none.
    """
    if isinstance(group, str):
        sentence = element("p", {"class": "absent"}, group)
        return join((element("h3", None, title), sentence))
    others = [None] * len(group) if isinstance(narrow, str) or not narrow else narrow
    last = len(group) - 1
    return join(
        figure(drawing, caption if place == last else "", narrow=other)
        for place, (drawing, other) in enumerate(zip(group, others, strict=True))
    )


def fold(summary: str, *parts: str, identity: str | None = None) -> Markup:
    """Fold parts under a line that opens them."""
    attributes: dict[str, Value] = {"class": "fold", "id": identity}
    return element("details", attributes, element("summary", None, summary), *parts)


def code(text: str) -> Markup:
    """Lay out text that can be copied."""
    # A first line break inside <pre> would be swallowed; text from recipes may begin with one.
    body = element("pre", None, "\n" if text.startswith("\n") else "", text)
    return element("div", {"class": "code"}, body)


def pill(status: Status, word: str) -> Markup:
    """Lay out a state as a sign and a word in its colour."""
    sign = element("span", {"aria-hidden": "true"}, _SIGNS[status])
    return element("span", {"class": f"pill {status}"}, sign, word)


def bullets(sentences: Sequence[str], *, role: str | None = None) -> Markup:
    """Lay out sentences as a list; nothing for none."""
    if not sentences:
        return EMPTY
    return element("ul", {"class": role}, *(element("li", None, text) for text in sentences))


def paragraph(text: str, *, role: str | None = None) -> Markup:
    """Lay out a paragraph."""
    return element("p", {"class": role}, text)


def swatch(comparison: Comparison, label: str) -> Markup:
    """Draw the mark that a model has in all charts; nothing for a model that is not compared."""
    labels = [model.label for model in comparison.models]
    if label not in labels:
        return EMPTY
    mark = marker(labels.index(label), 7, 7, 5)
    return element("svg", {"class": "swatch", "viewBox": "0 0 14 14", "aria-hidden": "true"}, mark)


def named(comparison: Comparison, label: str, *tags: str) -> Cell:
    """Return the cell that names a model: its mark, its label, and tags such as ``API``."""
    marks = (element("span", {"class": "tag"}, tag) for tag in tags)
    name = element("span", None, label, *marks)
    return Cell(element("span", {"class": "named"}, swatch(comparison, label), name), label)


def _header(column: Column) -> Markup:
    attributes: dict[str, Value] = {
        "scope": "col",
        "class": "num" if column.numeric else None,
        "data-first": column.first,
    }
    note = element("small", None, column.note) if column.note else EMPTY
    label = element("span", {"class": "label"}, column.title)
    return element("th", attributes, label, " " if column.note else "", note)


def _row(cells: Sequence[Cell], columns: Sequence[Column], *, picked: bool = False) -> Markup:
    if len(cells) != len(columns):
        msg = f"A row has {len(cells)} cells for {len(columns)} columns."
        raise ValueError(msg)
    parts = []
    for place, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        classes = " ".join(filter(None, ("num" if column.numeric else None, cell.role)))
        value = f"{cell.value:.9g}" if isinstance(cell.value, float) else cell.value
        attributes: dict[str, Value] = {
            "scope": "row" if place == 0 else None,
            "class": classes or None,
            "data-value": None if value is None else str(value),
        }
        parts.append(element("th" if place == 0 else "td", attributes, cell.content))
    return element("tr", {"class": "picked" if picked else None}, *parts)


def _head(title: Markup) -> Markup:
    return element("div", {"class": "head"}, title, element("div", {"class": "actions"}))


def _scroll(content: Markup, label_id: str) -> Markup:
    # What may scroll must be reachable by keyboard, and say what it is.
    return element(
        "div",
        {"class": "scroll", "tabindex": 0, "role": "region", "aria-labelledby": label_id},
        content,
    )
