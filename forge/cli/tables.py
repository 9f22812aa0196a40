"""Lay out tables as plain text: aligned columns, wrapped where a terminal is too narrow."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Final

_GAP: Final = "  "
_NARROWEST: Final = 20


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    width: int | None = None,
    can_drop_last: bool = False,
) -> str:
    """Lay out a table.

    Args:
        heads: One title per column.
        rows: Cells; each row is as long as ``heads``.
        right: Titles of columns of numbers, aligned to the right.
        width: Columns of the terminal; the last column is wrapped to fit. ``None`` wraps nothing.
        can_drop_last: Whether to leave the last column out instead, where it does not fit.

    Returns:
        The lines, without blanks at their ends.
    """
    widths = [
        max(display_width(cell) for cell in column)
        for column in zip(heads, *rows, strict=True)
    ]  # fmt: skip
    used = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    if width is not None and used + widths[-1] > width and can_drop_last:
        return table(heads[:-1], [row[:-1] for row in rows], right=right, width=width)
    if width is not None and used + widths[-1] > width and heads[-1] not in right:
        widths[-1] = max(_NARROWEST, width - used)
    lines: list[str] = []
    for row in (heads, ["─" * size for size in widths], *rows):
        folded = _fold(row[-1], widths[-1])
        lines.append(_line([*row[:-1], folded[0]], heads, widths, right))
        lines += [" " * used + more for more in folded[1:]]
    return "\n".join(lines)


def _fold(cell: str, size: int) -> list[str]:
    if display_width(cell) <= size:
        return [cell]
    return textwrap.wrap(cell, size) or [""]


def _line(
    row: Sequence[str], heads: Sequence[str], widths: Sequence[int], right: Sequence[str]
) -> str:
    cells = []
    for cell, head, size in zip(row, heads, widths, strict=True):
        padding = " " * (size - display_width(cell))
        cells.append(padding + cell if head in right else cell + padding)
    return _GAP.join(cells).rstrip()


def display_width(text: str) -> int:
    """Return how many terminal columns a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(character)
        else 2 if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )  # fmt: skip


def size_text(num_bytes: float) -> str:
    """Return a number of bytes in the unit that a reader expects."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def count_text(count: float) -> str:
    """Return a number of parameters as model names state it: ``135 M``, ``7.24 B``."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"


def duration_text(seconds: float) -> str:
    """Return a duration: ``8 s``, ``3 min 05 s``, ``2 h 10 min``."""
    whole = round(seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(count: int, noun: str) -> str:
    """Return ``1 tensor`` or ``2 tensors``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
