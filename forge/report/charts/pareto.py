"""Accuracy against memory, with the speed of decoding as size: where one starts to decide.

A filled mark is on the front: no other model is at least as good in all three, and better in one.
The dashed line is the best accuracy that a memory buys. It has steps, because nothing was measured
between its models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from forge.report.charts.axes import Area, bottom_axis, left_axis
from forge.report.charts.drawing import SMALL, WIDTH, Drawing, curve, text
from forge.report.charts.placement import Box
from forge.report.charts.scales import linear
from forge.report.charts.scatter import Point, bytes_scale, draw_points, key_of
from forge.report.markup import Markup, element, join
from forge.report.words import size_text

_HEIGHT = 470.0
_SMALLEST, _LARGEST, _USUAL = 5.0, 17.0, 7.0


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """A model, measured.

    Attributes:
        label: Its name.
        series: Its place in the table of models, from 0.
        memory_bytes: What it needs; above 0.
        accuracy: In percent.
        low: Lower end of its whisker, or ``None``; see ``interval_name``.
        high: Upper end, or ``None``.
        speed: Decoded tokens/s, or ``None`` if that was not measured.
        on_front: Whether no other model is at least as good in all three, and better in one.
    """

    label: str
    series: int
    memory_bytes: float
    accuracy: float
    low: float | None
    high: float | None
    speed: float | None
    on_front: bool


def pareto(
    points: Sequence[ParetoPoint],
    *,
    memory_name: str,
    accuracy_name: str,
    interval_name: str = "interval",
    width: float = WIDTH,
) -> Drawing:
    """Draw accuracy against memory.

    Args:
        points: At least one.
        memory_name: Which memory it is, such as ``Peak resident set``.
        accuracy_name: Which accuracy it is, such as ``Macro-averaged accuracy``.
        interval_name: What the whiskers are.
        width: In pixels.
    """
    is_wide = width >= 600
    height = _HEIGHT if is_wide else _HEIGHT + 34
    area = Area(58, 18, width - 14, _HEIGHT - 92)
    x_scale, unit, size = bytes_scale(
        [point.memory_bytes for point in points], area.left, area.right
    )
    reached = [
        value
        for point in points
        for value in (point.accuracy, point.low, point.high)
        if value is not None
    ]
    room = 0.06 * (max(reached) - min(reached) or 1.0)
    y_scale = linear([min(reached) - room, max(reached) + room], area.bottom, area.top, tight=True)
    fastest = max((point.speed or 0.0 for point in points), default=0.0)
    drawn = [
        Point(
            point.label,
            point.series,
            x_scale(point.memory_bytes / size),
            y_scale(point.accuracy),
            _radius(point.speed, fastest),
            None if point.low is None else y_scale(point.low),
            None if point.high is None else y_scale(point.high),
            _tip(point, interval_name),
            hollow=not point.on_front,
        )
        for point in points
    ]
    front = _front(drawn, area)
    marks, left_over = draw_points(drawn, area, lines=_taken(front))
    names, names_height = key_of(left_over, top=height, width=width)
    body = join(
        (
            left_axis(area, y_scale, f"{accuracy_name} (%)"),
            bottom_axis(area, x_scale, f"{memory_name} ({unit})"),
            curve(front, role="mute", weight=1.5, dash="5 4"),
            marks,
            _key([point.speed for point in points], fastest, area.left if is_wide else 8, width),
            names,
        )
    )
    best = ", ".join(point.label for point in points if point.on_front)
    return Drawing(
        "pareto",
        "Accuracy against memory",
        f"{accuracy_name} of {len(points)} models against {memory_name}. On the front: {best}.",
        width,
        height + names_height,
        body,
    )


def _radius(speed: float | None, fastest: float) -> float:
    if speed is None or fastest <= 0:
        return _USUAL
    return max(_SMALLEST, _LARGEST * math.sqrt(speed / fastest))


def _front(points: Sequence[Point], area: Area) -> list[tuple[float, float]]:
    """Return the corners of the steps: up wherever more memory buys more accuracy."""
    path: list[tuple[float, float]] = []
    for x, y in sorted((point.x, point.y) for point in points):
        height = path[-1][1] if path else area.bottom
        if y < height:
            path += [(x, height), (x, y)]
    return [*path, (area.right, path[-1][1])]


def _taken(path: Sequence[tuple[float, float]]) -> list[Box]:
    return [
        Box(min(x, to_x) - 2, min(y, to_y) - 2, max(x, to_x) + 2, max(y, to_y) + 2)
        for (x, y), (to_x, to_y) in itertools.pairwise(path)
    ]


def _tip(point: ParetoPoint, interval_name: str) -> str:
    tip = f"{point.label}: {point.accuracy:.1f} %"
    if point.low is not None and point.high is not None:
        tip += f" ({interval_name} {point.low:.1f} to {point.high:.1f})"
    tip += f", {size_text(point.memory_bytes)}"
    return tip if point.speed is None else f"{tip}, {point.speed:.1f} tokens/s"


def _key(speeds: Sequence[float | None], fastest: float, left: float, width: float) -> Markup:
    """Explain the dashed line, filled and hollow marks, and how large a speed is drawn."""
    y = _HEIGHT - 22
    filled = {"class": "f-mute s-paper", "fill": "#59626f", "stroke": "#ffffff"}
    hollow = {"class": "f-paper s-mute", "fill": "#ffffff", "stroke": "#59626f"}
    parts = [
        curve([(left, y - 4), (left + 26, y - 4)], role="mute", weight=1.5, dash="5 4"),
        text(left + 33, y, "best for its memory", size=SMALL, role="mute"),
        element("circle", {"cx": left + 164, "cy": y - 4, "r": 5, **filled}),
        text(left + 174, y, "on the front", size=SMALL, role="mute"),
        element("circle", {"cx": left + 262, "cy": y - 4, "r": 5, **hollow, "stroke-width": 2}),
        text(left + 272, y, "not on it", size=SMALL, role="mute"),
    ]
    if fastest <= 0:
        return join(parts)
    known = [speed for speed in speeds if speed is not None]
    shown = sorted({float(f"{speed:.2g}") for speed in (min(known), fastest)})
    x = left + 366
    if width < 600:
        x, y = left, y + 34
    parts.append(text(x, y, "decoded tokens/s:", size=SMALL, role="mute"))
    x += 112
    for speed in shown:
        radius = _radius(speed, fastest)
        x += radius
        parts.append(element("circle", {"cx": x, "cy": y - 4, "r": radius, **filled}))
        x += radius + 6
        label = f"{speed:.12g}"
        parts.append(text(x, y, label, size=SMALL, role="mute"))
        x += 8 * len(label) + 14
    if any(speed is None for speed in speeds):
        note = "small: not measured"
        parts.append(text(x, y, note, size=SMALL, role="mute"))
    return join(parts)
