"""How answers changed: a row for each pair, a column for each way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.drawing import (
    SMALL,
    WIDTH,
    Drawing,
    box,
    fitted,
    pointed,
    text,
)
from forge.report.charts.palette import step_role
from forge.report.markup import Markup, join

_COLUMNS: Final = (
    ("right", "right"),
    ("right", "wrong"),
    ("wrong", "right"),
    ("wrong", "other wrong"),
    ("wrong", "same wrong"),
)
_CHANGED: Final = (1, 2, 3)
"""Columns of answers that are not the same any more."""
_CELL: Final = 40.0
_HEAD: Final = 52.0


@dataclass(frozen=True, slots=True)
class FlipRow:
    """A variant against its baseline.

    Attributes:
        label: The variant.
        against: The baseline.
        counts: Answers that were and are right, right then wrong, wrong then right, wrong then
            wrong in another way, and wrong in the same way.
    """

    label: str
    against: str
    counts: tuple[int, int, int, int, int]


def flip_matrix(rows: Sequence[FlipRow], *, width: float = WIDTH) -> Drawing:
    """Draw counts and shares; darker is a larger share of the pair's answers.

    Args:
        rows: At least one.
        width: In pixels.
    """
    layout = _Layout.of(width)
    parts = [_head(layout)]
    highest = max((_shares(row)[column] for row in rows for column in _CHANGED), default=0.0)
    for index, row in enumerate(rows):
        parts.append(_row(row, _HEAD + index * layout.row, layout, highest))
    described = "; ".join(
        f"{row.label}: {row.counts[1]} lost, {row.counts[2]} gained, {row.counts[3]} moved"
        for row in rows
    )
    return Drawing(
        "flips",
        "Changed answers",
        f"Answers of each variant against its baseline's. {described}.",
        width,
        _HEAD + layout.row * len(rows) + 4,
        join(parts),
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where cells are: beside the names, or below them where there is no room.

    Attributes:
        left: Where the first cell begins.
        cell: Width of a cell.
        names: Room for a name.
        above: Height that a name takes above its cells.
        right: Where the last figure ends.
    """

    left: float
    cell: float
    names: float
    above: float
    right: float

    @classmethod
    def of(cls, width: float) -> _Layout:
        if width >= 600:
            return cls(230, (width - 330) / len(_COLUMNS), 216, 0, width - 4)
        return cls(2, (width - 58) / len(_COLUMNS), width - 8, 22, width - 2)

    @property
    def row(self) -> float:
        """Height of a row."""
        return _CELL + self.above


def _head(layout: _Layout) -> Markup:
    stacked = layout.above > 0
    size = SMALL - 1 if stacked else SMALL
    parts = []
    if not stacked:
        parts.append(text(4, 18, "baseline's answer", size=size, role="mute"))
        parts.append(text(4, 36, "variant's answer", size=size, role="mute"))
    for column, (before, after) in enumerate(_COLUMNS):
        middle = layout.left + layout.cell * (column + 0.5)
        short = after.split()[0] if stacked else after
        parts.append(text(middle, 18, before, size=size, role="mute", anchor="middle"))
        parts.append(text(middle, 36, f"→ {short}", size=size, anchor="middle", bold=True))
    parts.append(text(layout.right, 36, "changed", size=size, anchor="end", bold=True))
    return join(parts)


def _shares(row: FlipRow) -> tuple[float, ...]:
    total = sum(row.counts)
    return tuple(count / total if total else 0.0 for count in row.counts)


def _row(row: FlipRow, top: float, layout: _Layout, highest: float) -> Markup:
    if layout.above:
        name = f"{row.label} against {row.against}"
        parts = [fitted(2, top + 16, name, layout.names, size=SMALL)]
    else:
        against = f"against {row.against}"
        parts = [
            fitted(4, top + 17, row.label, layout.names),
            fitted(4, top + 32, against, layout.names, size=SMALL - 1, role="mute"),
        ]
    top += layout.above
    shares = _shares(row)
    for column, share in enumerate(shares):
        x = layout.left + layout.cell * column
        parts.append(_cell(row, column, x, top, layout.cell, share / highest if highest else 0.0))
    changed = f"{100 * sum(shares[column] for column in _CHANGED):.1f} %"
    parts.append(text(layout.right, top + 25, changed, anchor="end", bold=True))
    return join(parts)


def _cell(row: FlipRow, column: int, x: float, top: float, width: float, depth: float) -> Markup:
    count, share = row.counts[column], _shares(row)[column]
    changed = column in _CHANGED
    role = step_role(depth) if changed else "raised"
    ink = f"on-{role}" if changed else "mute"
    middle = x + width / 2
    tip = f"{row.label}: {' → '.join(_COLUMNS[column])}, {count:,} answers, {100 * share:.1f} %"
    return pointed(
        tip,
        box(x + 1, top + 1, width - 2, _CELL - 2, fill=role, corner=3),
        text(middle, top + 18, f"{count:,}", role=ink, anchor="middle", bold=changed),
        text(middle, top + 33, f"{100 * share:.1f} %", size=SMALL - 1, role=ink, anchor="middle"),
    )
