"""Paired differences with their intervals beside the margin: who is not worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
)
from forge.report.charts.letters import width as width_of
from forge.report.charts.palette import series_role
from forge.report.charts.scales import Scale, linear
from forge.report.markup import Markup, join
from forge.report.words import Status, signed

_ROW: Final = 30.0
_STACKED_ROW: Final = 48.0
_GROUP: Final = 26.0
_STATUS_ROLES: Final[Mapping[Status, str]] = {
    "good": "good",
    "warn": "warn",
    "bad": "bad",
    "neutral": "mute",
}


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
    status: Status


def forest(
    rows: Sequence[ForestRow], *, margin: float, confidence: float = 0.95, width: float = WIDTH
) -> Drawing:
    """Draw a row for each pair, grouped by what it is compared with.

    Args:
        rows: At least one.
        margin: Points by which a variant may be worse; at least 0.
        confidence: Of the intervals.
        width: In pixels.
    """
    wide = width >= 600
    names, figures, row_height = (220.0, 250.0, _ROW) if wide else (16.0, 0.0, _STACKED_ROW)
    groups = list(dict.fromkeys(row.against for row in rows))
    bottom = 34 + row_height * len(rows) + _GROUP * len(groups)
    area = Area(names, 26, width - figures - 18, bottom)
    reached = [end for row in rows for end in (row.low, row.high)]
    scale = linear([*reached, 0.0, -1.4 * margin, 0.4 * margin], area.left, area.right)
    parts = [_ground(area, scale, margin)]
    y = area.top + 4
    for against in groups:
        room, left = (names - 12, 4.0) if wide else (area.width - 8, names + 4)
        parts.append(
            fitted(
                left, y + 17, f"against {against}", room, size=SMALL, role="mute", outlined=not wide
            )
        )
        y += _GROUP
        for row in (row for row in rows if row.against == against):
            draw = _row if wide else _stacked_row
            parts.append(draw(row, y, scale, area, width))
            y += row_height
    described = "; ".join(
        f"{row.label} against {row.against} {_figures(row)}, {row.verdict}" for row in rows
    )
    return Drawing(
        "paired-differences",
        f"Paired differences, {100 * confidence:g} % intervals",
        f"Margin {margin:g} points. {described}.",
        width,
        bottom + 50,
        join(parts),
    )


def _ground(area: Area, scale: Scale, margin: float) -> Markup:
    """Shade losses, within the margin and beyond it, and draw the axis."""
    zero, edge = scale(0.0), scale(-margin)
    note = f"margin {signed(f'{-margin:g}')}"
    # The note stands left of its line unless it would run out of the plot.
    anchor = "end" if edge - width_of(note, SMALL) > 0 else "start"
    return join(
        (
            box(area.left, area.top, edge - area.left, area.height, fill="bad-wash"),
            box(edge, area.top, zero - edge, area.height, fill="warn-wash"),
            bottom_axis(area, scale, "Difference in accuracy (percentage points)"),
            line((zero, area.top), (zero, area.bottom), role="ink", weight=1.2),
            line((edge, area.top), (edge, area.bottom), role="bad", weight=1.2, dash="4 3"),
            text(edge, 16, note, size=SMALL, role="bad", anchor=anchor),
            text(area.right, 16, "better →", size=SMALL, role="mute", anchor="end"),
        )
    )


def _row(row: ForestRow, top: float, scale: Scale, area: Area, width: float) -> Markup:
    y = top + _ROW / 2
    start = area.right + 16
    return pointed(
        _tip(row),
        fitted(16, y + 4, row.label, area.left - 28),
        _interval(row, y, scale),
        text(start, y + 4, _figures(row), size=SMALL),
        _verdict(row, start + 128, y + 4, width - start - 132, anchor="start"),
    )


def _stacked_row(row: ForestRow, top: float, scale: Scale, area: Area, width: float) -> Markup:
    """Draw the name and the verdict above the interval, where there is no room beside it."""
    return pointed(
        _tip(row),
        fitted(area.left + 6, top + 14, row.label, width - 110, outlined=True),
        _verdict(row, area.right - 2, top + 14, 90, anchor="end"),
        _interval(row, top + 30, scale),
    )


def _interval(row: ForestRow, y: float, scale: Scale) -> Markup:
    role = series_role(row.series)
    low, high = scale(row.low), scale(row.high)
    return join(
        (
            line((low, y), (high, y), role=role, weight=2),
            line((low, y - 5), (low, y + 5), role=role, weight=2),
            line((high, y - 5), (high, y + 5), role=role, weight=2),
            marker(row.series, scale(row.difference), y, 6),
        )
    )


def _verdict(row: ForestRow, x: float, y: float, room: float, *, anchor: str) -> Markup:
    role = _STATUS_ROLES[row.status]
    return fitted(
        x, y, row.verdict, room, size=SMALL, role=role, anchor=anchor, bold=True, outlined=True
    )


def _tip(row: ForestRow) -> str:
    return f"{row.label} − {row.against}: {_figures(row)}, {row.verdict}"


def _figures(row: ForestRow) -> str:
    ends = (signed(f"{end:+.1f}") for end in (row.low, row.high))
    return f"{signed(f'{row.difference:+.1f}')} [{', '.join(ends)}]"
