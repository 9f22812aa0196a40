"""Put names beside points so that none covers another, a point or the edge.

Each name tries places around its point, near ones first, and takes the cheapest that is free; a
name that had to go far gets a line back to its point. Points whose neighbourhood is crowded choose
first. It is greedy, quick, and always the same for the same input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.axes import Area

_ANGLES: Final = (0, 180, 270, 90, 315, 45, 225, 135, 337, 22, 202, 157)
"""Degrees, clockwise from the right, in the order in which a reader expects a name."""
_RINGS: Final = (0.0, 8.0, 18.0, 30.0, 45.0, 62.0, 82.0, 105.0, 130.0, 160.0)
_PLACE_COST: Final = 1.5
_CROSSING_COST: Final = 30.0


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle that is taken."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: Box) -> bool:
        """Return whether the two share more than an edge."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


@dataclass(frozen=True, slots=True)
class Anchor:
    """A point that wants a name.

    Attributes:
        x: Its middle.
        y: Its middle.
        radius: How far its mark reaches.
        width: Room that the name needs.
        height: Room that the name needs.
    """

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def box(self) -> Box:
        """What its mark takes."""
        reach = self.radius
        return Box(self.x - reach, self.y - reach, self.x + reach, self.y + reach)


def place(anchors: Sequence[Anchor], area: Area, obstacles: Sequence[Box]) -> list[Box | None]:
    """Return where each name goes; ``None`` where no place is free.

    Args:
        anchors: The points.
        area: Names stay inside of it.
        obstacles: What names should not lie on if they can help it, such as error bars.
    """
    marks = [anchor.box for anchor in anchors]
    placed: list[Box | None] = [None] * len(anchors)
    for index in sorted(range(len(anchors)), key=lambda index: (-_crowd(anchors, index), index)):
        taken = [*marks, *(found for found in placed if found is not None)]
        placed[index] = _cheapest(anchors[index], area, taken, obstacles)
    return placed


def _cheapest(
    anchor: Anchor, area: Area, taken: Sequence[Box], obstacles: Sequence[Box]
) -> Box | None:
    best: tuple[float, Box] | None = None
    for ring in _RINGS:
        if best is not None and best[0] <= ring:
            break
        for preference, angle in enumerate(_ANGLES):
            found = _moved_in(_beside(anchor, anchor.radius + 4 + ring, math.radians(angle)), area)
            inside = (
                found.left >= area.left
                and found.right <= area.right
                and found.top >= area.top
                and found.bottom <= area.bottom
            )
            if not inside or any(found.covers(other) for other in taken):
                continue
            crossings = sum(found.covers(other) for other in obstacles)
            cost = ring + _PLACE_COST * preference + _CROSSING_COST * crossings
            if best is None or cost < best[0]:
                best = (cost, found)
    return None if best is None else best[1]


def _beside(anchor: Anchor, distance: float, angle: float) -> Box:
    """Return the name's box whose nearest edge or corner is so far from the point."""
    toward_x, toward_y = math.cos(angle), math.sin(angle)
    middle_x = anchor.x + toward_x * distance + _snap(toward_x) * anchor.width / 2
    middle_y = anchor.y + toward_y * distance + _snap(toward_y) * anchor.height / 2
    return Box(
        middle_x - anchor.width / 2,
        middle_y - anchor.height / 2,
        middle_x + anchor.width / 2,
        middle_y + anchor.height / 2,
    )


def _moved_in(box: Box, area: Area) -> Box:
    """Return a box that sticks out at a side of the area, moved along its line until it does not.

    It is moved by less than half of its width, so that it stays on its side of the point.
    """
    shift = max(0.0, area.left - box.left) - max(0.0, box.right - area.right)
    if abs(shift) >= (box.right - box.left) / 2:
        return box
    return Box(box.left + shift, box.top, box.right + shift, box.bottom)


def _snap(direction: float) -> float:
    return 0.0 if abs(direction) < 0.1 else math.copysign(min(1.0, abs(direction) * 1.5), direction)


def _crowd(anchors: Sequence[Anchor], index: int) -> int:
    own = anchors[index]
    return sum(
        abs(other.x - own.x) < own.width + other.width and abs(other.y - own.y) < 3 * own.height
        for other in anchors
    )
