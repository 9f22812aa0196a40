"""Paired differences with their intervals beside the margin: who is not worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.axes import Area, bottom_axis
from forge.report.charts.drawing import (
    SMALL,
    WIDTH,
    Drawing,
    box,
    fitted,
    line,
    marker,
    pointed,
    text,
)  # fmt: skip
from forge.report.charts.scales import linear
from forge.report.markup import Markup, join
from forge.report.words import signed

_ROW: Final = 30.0
_STATUS_ROLES: Final = {"good": "good", "warn": "warn", "bad": "bad", "neutral": "mute"}


@dataclass(frozen=True, slots=True)
class ForestRow:
    """A pair of models on the same items.

    Attributes:
        label: The variant.
        against: What it is compared with.
        series: The variant's place in the table of models, from 0.
        difference: Variant minus baseline, in points.
        low: Lower end of its interval.
        high: Upper end.
        verdict: In words, such as ``not worse``.
        status: ``good``, ``warn``, ``bad`` or ``neutral``.
    """

    label: str
    against: str
    series: int
    difference: float
    low: float
    high: float
    verdict: str
    status: str


def forest(rows: Sequence[ForestRow], *, margin: float, width: float = WIDTH) -> Drawing:
    """Draw a row for each pair, grouped by what it is compared with.

    Args:
        rows: At least one.
        margin: Points by which a variant may be worse; at least 0.
        width: In pixels.
    """
    wide = width >= 700
    names, figures = (220.0, 250.0) if wide else (118.0, 0.0)
    groups = list(dict.fromkeys(row.against for row in rows))
    bottom = 34 + _ROW * len(rows) + 26 * len(groups)
    area = Area(names, 26, width - figures - 18, bottom)
    reached = [end for row in rows for end in (row.low, row.high)]
    scale = linear([*reached, 0.0, -1.4 * margin, 0.4 * margin], area.left, area.right)
    parts = [_ground(area, scale(0.0), scale(-margin))]
    parts.append(bottom_axis(area, scale, "Difference in accuracy (percentage points)"))
    parts.append(line((scale(0), area.top), (scale(0), area.bottom), role="ink", weight=1.2))
    edge = scale(-margin)
    parts.append(line((edge, area.top), (edge, area.bottom), role="bad", weight=1.2, dash="4 3"))
    parts.append(
        text(edge, 16, f"margin {signed(f'{-margin:g}')}", size=SMALL, role="bad", anchor="end")
    )
    parts.append(text(area.right, 16, "better →", size=SMALL, role="mute", anchor="end"))
    y = area.top + 4
    for against in groups:
        parts.append(fitted(4, y + 17, f"against {against}", names - 12, size=SMALL, role="mute"))
        y += 26
        for row in (row for row in rows if row.against == against):
            parts.append(_row(row, y + _ROW / 2, scale(row.low), scale(row.high), wide=wide,
                              middle=scale(row.difference), area=area, width=width))  # fmt: skip
            y += _ROW
    described = "; ".join(
        f"{row.label} against {row.against} {_figures(row)}, {row.verdict}" for row in rows
    )
    return Drawing(
        "paired-differences",
        "Paired differences, 95 % intervals",
        f"Margin {margin:g} points. {described}.",
        width,
        bottom + 50,
        join(parts),
    )


def _ground(area: Area, zero: float, edge: float) -> Markup:
    return join((
        box(area.left, area.top, edge - area.left, area.height, fill="bad-wash"),
        box(edge, area.top, zero - edge, area.height, fill="warn-wash"),
    ))  # fmt: skip


def _row(
    row: ForestRow,
    y: float,
    low: float,
    high: float,
    *,
    wide: bool,
    middle: float,
    area: Area,
    width: float,
) -> Markup:
    role = f"c{row.series % 8}"
    parts = [
        fitted(16, y + 4, row.label, area.left - 28),
        line((low, y), (high, y), role=role, weight=2),
        line((low, y - 5), (low, y + 5), role=role, weight=2),
        line((high, y - 5), (high, y + 5), role=role, weight=2),
        marker(row.series, middle, y, 6),
    ]
    if wide:
        start = area.right + 16
        parts.append(text(start, y + 4, _figures(row), size=SMALL))
        room = width - start - 132
        colour = _STATUS_ROLES[row.status]
        parts.append(fitted(start + 128, y + 4, row.verdict, room, size=SMALL, role=colour,
                            bold=True))  # fmt: skip
    tip = f"{row.label} − {row.against}: {_figures(row)}, {row.verdict}"
    return pointed(tip, *parts)


def _figures(row: ForestRow) -> str:
    ends = (signed(f"{end:+.1f}") for end in (row.low, row.high))
    return f"{signed(f'{row.difference:+.1f}')} [{', '.join(ends)}]"
