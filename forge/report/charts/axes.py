"""The frame of a plot: its area, grid, ticks and names of the axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forge.report.charts.drawing import SMALL, line, text
from forge.report.charts.letters import shorten
from forge.report.charts.scales import Scale
from forge.report.markup import Markup, join


@dataclass(frozen=True, slots=True)
class Area:
    """Where a plot is drawn; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From top to bottom."""
        return self.bottom - self.top


def bottom_axis(
    area: Area, scale: Scale, name: str, *, labels: Sequence[str] | None = None, grid: bool = True
) -> Markup:
    """Draw an axis below a plot, with its grid.

    Args:
        area: The plot.
        scale: Values to coordinates.
        name: What is on it, with its unit.
        labels: Text of each tick, where the scale's own does not say it.
        grid: Whether lines go up through the plot.
    """
    parts: list[Markup] = []
    for value, label in zip(scale.ticks, labels or scale.labels(), strict=True):
        x = scale(value)
        if grid:
            parts.append(line((x, area.top), (x, area.bottom)))
        parts.append(line((x, area.bottom), (x, area.bottom + 4), role="axis"))
        parts.append(text(x, area.bottom + 18, label, size=SMALL, role="mute", anchor="middle"))
    parts.append(line((area.left, area.bottom), (area.right, area.bottom), role="axis"))
    middle = (area.left + area.right) / 2
    if name:
        parts.append(text(middle, area.bottom + 38, name, size=SMALL, anchor="middle"))
    return join(parts)


def left_axis(
    area: Area, scale: Scale, name: str, *, labels: Sequence[str] | None = None
) -> Markup:
    """Draw an axis at the left of a plot, with its grid. Arguments are those of ``bottom_axis``."""
    parts: list[Markup] = []
    for value, label in zip(scale.ticks, labels or scale.labels(), strict=True):
        y = scale(value)
        parts.append(line((area.left, y), (area.right, y)))
        parts.append(text(area.left - 8, y + 4, label, size=SMALL, role="mute", anchor="end"))
    if name:
        # Turned text in the middle of the axis; its base line stays clear of the longest tick.
        short = shorten(name, area.height + 40, SMALL)
        middle = (area.top + area.bottom) / 2
        parts.append(text(14, middle, short, size=SMALL, anchor="middle", turned=True))
    return join(parts)
