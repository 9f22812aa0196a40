"""Named points with intervals over a scale of bytes; what the Pareto picture and KL share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.axes import Area
from forge.report.charts.drawing import SMALL, legend, line, marker, pointed, text
from forge.report.charts.letters import shorten, width
from forge.report.charts.palette import series_role
from forge.report.charts.placement import Anchor, Box, place
from forge.report.charts.scales import Scale, linear
from forge.report.markup import Markup, join
from forge.report.words import unit_of

_LONGEST_NAME: Final = 210.0


@dataclass(frozen=True, slots=True)
class Point:
    """A model in a plot.

    Attributes:
        label: Its name.
        series: Its place in the table of models, which gives it colour and shape.
        x: Coordinate.
        y: Coordinate.
        radius: Of its mark.
        low: Coordinate of the lower end of its interval, or ``None``.
        high: Coordinate of the upper end, or ``None``.
        tip: What viewers show when one points at it.
        hollow: Draw it as an outline.
    """

    label: str
    series: int
    x: float
    y: float
    radius: float
    low: float | None
    high: float | None
    tip: str
    hollow: bool = False


def bytes_scale(values: Sequence[float], start: float, stop: float) -> tuple[Scale, str, float]:
    """Return a scale of bytes from 0 upwards, the unit of its ticks, and bytes in that unit."""
    unit, size = unit_of(max(values))
    scaled = [value / size for value in values]
    low, high = min(scaled), max(scaled)
    # A distance from zero shows what share of memory is saved, unless all are nearly the same.
    floor = 0.0 if low < 0.6 * high else low - 0.15 * (high - low or high)
    return linear([floor, high * 1.02], start, stop, num_ticks=6), unit, size


def draw_points(
    points: Sequence[Point], area: Area, *, lines: Sequence[Box] = ()
) -> tuple[Markup, tuple[Point, ...]]:
    """Draw points with their intervals, and names that cover nothing.

    Args:
        points: The points.
        area: The plot.
        lines: Where names should not lie if they can help it.

    Returns:
        The marks, and the points for whose names there is no room.
    """
    anchors = []
    obstacles = list(lines)
    shown = [shorten(point.label, _LONGEST_NAME, SMALL) for point in points]
    for point, label in zip(points, shown, strict=True):
        anchors.append(Anchor(point.x, point.y, point.radius + 1, width(label, SMALL), SMALL + 3))
        if point.low is not None and point.high is not None:
            obstacles.append(Box(point.x - 4, point.high, point.x + 4, point.low))
    places = place(anchors, area, obstacles)
    parts = [join(_interval(point) for point in points)]
    # Large marks first, so that small ones lie on them.
    for point in sorted(points, key=lambda point: (-point.radius, point.series)):
        mark = marker(point.series, point.x, point.y, point.radius, hollow=point.hollow)
        parts.append(pointed(point.tip, mark))
    for point, label, found in zip(points, shown, places, strict=True):
        if found is not None:
            parts.append(_name(point, label, found))
    left_over = (point for point, found in zip(points, places, strict=True) if found is None)
    return join(parts), tuple(left_over)


def key_of(points: Sequence[Point], *, top: float, width: float) -> tuple[Markup, float]:
    """Draw a key for the points for whose names there was no room.

    Returns:
        The marks, and the height that they take.
    """
    names = [point.label for point in points]
    numbers = [point.series for point in points]
    return legend(names, top=top, left=8, width=width - 16, numbers=numbers, lines=False)


def _interval(point: Point) -> Markup:
    if point.low is None or point.high is None:
        return Markup("")
    role = series_role(point.series)
    return join(
        (
            line((point.x, point.low), (point.x, point.high), role=role, weight=1.5),
            line((point.x - 4, point.low), (point.x + 4, point.low), role=role, weight=1.5),
            line((point.x - 4, point.high), (point.x + 4, point.high), role=role, weight=1.5),
        )
    )


def _name(point: Point, label: str, found: Box) -> Markup:
    middle = (found.left + found.right) / 2
    tip = point.label if label != point.label else None
    name = text(
        middle, found.bottom - 4, label, size=SMALL, anchor="middle", outlined=True, tip=tip
    )
    edge_x = min(found.right, max(found.left, point.x))
    edge_y = min(found.bottom, max(found.top, point.y))
    apart_x, apart_y = edge_x - point.x, edge_y - point.y
    distance = float(max(abs(apart_x), abs(apart_y)))
    if distance <= point.radius + 14:
        return name
    share = (point.radius + 2) / distance
    start = (point.x + apart_x * share, point.y + apart_y * share)
    return join((line(start, (edge_x, edge_y), role="axis", weight=0.8), name))
