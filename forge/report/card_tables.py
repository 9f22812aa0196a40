"""Find the tables of a model card: Markdown's pipe tables, and HTML tables between them.

Both become rows of cells under one row of heads. Sizes are bounded, because a card is a stranger's
file; a table beyond the bounds is an error and not cut short.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from forge.core.errors import EvaluationError
from forge.report.card_cells import Cell, RawCell, read_cell, uses_decimal_comma
from forge.report.card_text import CardText

MAX_TABLES: Final = 400
MAX_ROWS: Final = 2000
MAX_COLUMNS: Final = 200
_ALIGNMENT: Final = re.compile(r"\s*:?-+:?\s*")
_OPENS: Final = re.compile(r"<table\b", re.IGNORECASE)
_TAG: Final = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]{0,20})\b([^<>]{0,2000})>")
_ATTRIBUTE: Final = re.compile(r"([a-zA-Z]{1,20})\s{0,5}=\s{0,5}(\"[^\"]*\"|'[^']*'|[^\s\"'<>]+)")
_CLOSES: Final = re.compile(r"</table\s{0,10}>", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CardTable:
    """A table.

    Attributes:
        line: Where it begins in the file, counted from 1.
        heads: Cells of its head; as many as there are columns.
        rows: Rows of its body, each as long as ``heads``. Rows without any text separate groups.
        ragged: Rows of another length than the head, as line and number of cells.
    """

    line: int
    heads: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    ragged: tuple[tuple[int, int], ...] = ()

    @property
    def last_line(self) -> int:
        """Where it ends."""
        return max(cell.line for row in (self.heads, *self.rows) for cell in row)


def tables_of(card: CardText) -> tuple[CardTable, ...]:
    """Return the tables of a card in the order of their lines.

    Args:
        card: Its lines.

    Returns:
        All tables that have a head and a row.

    Raises:
        EvaluationError: There are more tables, rows or columns than a card has.
    """
    raw = sorted([*_pipe_tables(card.lines), *_html_tables(card.lines)], key=lambda each: each[0])
    if len(raw) > MAX_TABLES:
        raise EvaluationError(f"The card has {len(raw)} tables; {MAX_TABLES} are read at most.")
    return tuple(_table(line, heads, rows) for line, heads, rows in raw if heads and rows)


Raw = tuple[int, list[RawCell], list[list[RawCell]]]


def _table(line: int, heads: list[RawCell], rows: list[list[RawCell]]) -> CardTable:
    width = len(heads)
    if width > MAX_COLUMNS or len(rows) > MAX_ROWS:
        raise EvaluationError(
            f"The table at line {line} has {len(rows)} rows of {width} cells; {MAX_ROWS} rows of "
            f"{MAX_COLUMNS} are read at most."
        )
    cells = [cell for row in rows for cell in row]
    has_comma = uses_decimal_comma(cells)
    underscores = any(cell.has_bold for cell in cells)

    def read(row: Sequence[RawCell], at: int) -> tuple[Cell, ...]:
        padded = [*row[:width], *[RawCell("", at)] * (width - len(row))]
        return tuple(
            read_cell(cell, decimal_comma=has_comma, underscores_underline=underscores)
            for cell in padded
        )

    return CardTable(
        line=line,
        heads=read(heads, line),
        rows=tuple(read(row, row[0].line if row else line) for row in rows),
        ragged=tuple((row[0].line, len(row)) for row in rows if row and len(row) != width),
    )


def _pipe_tables(lines: Sequence[str]) -> Iterator[Raw]:
    at = 1
    while at < len(lines):
        if not _is_alignment(lines[at]) or "|" not in lines[at - 1]:
            at += 1
            continue
        heads = _split(lines[at - 1], at)
        end = at + 1
        while end < len(lines) and "|" in lines[end] and not _OPENS.search(lines[end]):
            end += 1
        yield at, heads, [_split(lines[row], row + 1) for row in range(at + 1, end)]
        at = end + 1


def _is_alignment(line: str) -> bool:
    text = line.strip(" >\t")
    if "-" not in text or "|" not in text or text.strip("|:- \t"):
        return False
    return all(_ALIGNMENT.fullmatch(cell) for cell in text.strip("|").split("|"))


def _split(line: str, number: int) -> list[RawCell]:
    text = line.strip(" >\t")
    text = text.removeprefix("|")
    if text.endswith("|") and not text.endswith("\\|"):
        text = text[:-1]
    # A pipe behind a backslash is text; no other escape concerns the cells' borders.
    parts = text.replace("\\|", "\0").split("|")
    return [RawCell(part.replace("\0", "|").strip(), number) for part in parts]


def _html_tables(lines: Sequence[str]) -> Iterator[Raw]:
    at = 0
    while at < len(lines):
        opened = _OPENS.search(lines[at])
        if opened is None:
            at += 1
            continue
        last = next((n for n in range(at, len(lines)) if _CLOSES.search(lines[n])), len(lines) - 1)
        reader = _TableReader(at + 1)
        reader.feed("\n".join([lines[at][opened.start() :], *lines[at + 1 : last + 1]]))
        yield at + 1, *reader.finished()
        at = last + 1


class _TableReader:
    """Collects the cells of one HTML table as Markdown with inline HTML, and where they stand.

    The standard library's parser takes quadratic time for tags that are never closed. A table needs
    little of HTML: what opens and closes rows and cells, and how many of them a cell spans.
    """

    def __init__(self, first_line: int) -> None:
        self._first_line = first_line
        self._rows: list[list[RawCell]] = []
        self._num_heads = 0
        self._row: list[RawCell] | None = None
        self._row_is_head = True
        self._cell: list[str] | None = None
        self._cell_line = first_line
        self._span = (1, 1)
        self._below: dict[int, tuple[int, RawCell]] = {}

    def feed(self, text: str) -> None:
        """Read all of a table, from its opening tag on."""
        at, line = 0, self._first_line
        for tag in _TAG.finditer(text):
            self._add(text[at : tag.start()])
            line += text.count("\n", at, tag.start())
            at = tag.end()
            self._follow(tag, line)
            line += tag[0].count("\n")
        self._add(text[at:])

    def _follow(self, tag: re.Match[str], line: int) -> None:
        name, closes = tag[2].lower(), bool(tag[1])
        if name in ("tr", "table"):
            self._end_row()
            if not closes and name == "tr":
                self._row, self._row_is_head = [], True
        elif name in ("td", "th"):
            self._end_cell()
            if not closes:
                self._begin_cell(name, tag[3], line)
        else:
            self._add(tag[0])

    def _begin_cell(self, name: str, attributes: str, line: int) -> None:
        if self._row is None:
            self._row, self._row_is_head = [], True
        self._row_is_head = self._row_is_head and name == "th"
        found = {
            match[1].lower(): match[2].strip("\"'") for match in _ATTRIBUTE.finditer(attributes)
        }
        self._span = _span(found.get("colspan"), 200), _span(found.get("rowspan"), 500)
        style = found.get("style", "").lower().replace(" ", "")
        self._cell, self._cell_line = [], line
        if "font-weight:bold" in style or "font-weight:700" in style:
            self._cell.append("<b>")
        if "text-decoration:underline" in style:
            self._cell.append("<u>")

    def _add(self, text: str) -> None:
        if self._cell is not None:
            self._cell.append(text)

    def finished(self) -> tuple[list[RawCell], list[list[RawCell]]]:
        """Return the head, several rows of which are joined, and the rows."""
        self._end_row()
        if not self._rows:
            return [], []
        count = max(1, min(self._num_heads, len(self._rows) - 1))
        width = max(len(row) for row in self._rows)
        heads = []
        for column in range(width):
            named = dict.fromkeys(
                row[column].source for row in self._rows[:count] if column < len(row)
            )
            heads.append(RawCell(" ".join(filter(None, named)), self._rows[0][0].line))
        return heads, self._rows[count:]

    def _end_cell(self) -> None:
        if self._cell is None or self._row is None:
            return
        cell = RawCell(" ".join("".join(self._cell).split()), self._cell_line)
        columns, rows = self._span
        self._take_spanned()
        for _ in range(columns):
            if rows > 1:
                self._below[len(self._row)] = (rows - 1, cell)
            self._row.append(cell)
        self._cell = None

    def _take_spanned(self) -> None:
        """Put in the cells that reach down from rows above."""
        assert self._row is not None
        while (column := len(self._row)) in self._below and len(self._row) <= MAX_COLUMNS:
            left, cell = self._below.pop(column)
            if left > 1:
                self._below[column] = (left - 1, cell)
            self._row.append(cell)

    def _end_row(self) -> None:
        self._end_cell()
        if not self._row:
            return
        self._take_spanned()
        if self._row_is_head and self._num_heads == len(self._rows):
            self._num_heads += 1
        self._rows.append(self._row)
        self._row = None
        if len(self._rows) > MAX_ROWS + 1:
            raise EvaluationError(
                f"The table at line {self._first_line} has more than {MAX_ROWS} rows."
            )


def _span(text: str | None, most: int) -> int:
    return min(int(text), most) if text and text.isascii() and text.isdigit() and text != "0" else 1
