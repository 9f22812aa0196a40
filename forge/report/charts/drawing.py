"""A drawing, its parts, and the two ways to write it: in a page, and as a file of its own.

A drawing is plain SVG: no script, no style sheet, no font, no link. Each mark that stands for a
figure carries a ``<title>``, which viewers show when one points at it; the whole has a title and
a description for those who listen. In a page the heading is the page's; a file of its own has the
title drawn above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.letters import FONT, shorten
from forge.report.charts.palette import paint, series_role
from forge.report.markup import EMPTY, Markup, Value, element, join, number

WIDTH: Final = 840.0
NARROW: Final = 360.0
"""Width of the charts that are drawn once more for phones."""
SMALL: Final = 12.0
BODY: Final = 13.0
_HEADER: Final = 44.0
_MARGIN: Final = 16.0
_DASHES: Final = (None, "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2", "6 2 2 2 2 2")


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart.

    Attributes:
        name: Name of its files without suffix; lower-case letters, digits and ``-``.
        title: Its heading.
        description: What it shows, for those who do not see it.
        width: In pixels.
        height: In pixels.
        body: Its marks.
        narrow: Whether it is drawn for a phone, beside the same for wider screens.
    """

    name: str
    title: str
    description: str
    width: float
    height: float
    body: Markup
    narrow: bool = False

    def inline(self) -> Markup:
        """Return it as an element of a page, which gives it a heading and a background."""
        return self._svg(self.width, self.height, self.body, own={})

    def standalone(self) -> str:
        """Return the text of a file: the title above, on the light background."""
        width, height = self.width + 2 * _MARGIN, self.height + _HEADER + _MARGIN
        title = shorten(self.title, self.width, 16, bold=True)
        body = join((
            element("rect", {"width": width, "height": height, **paint(fill="paper")}),
            text(_MARGIN + 4, 30, title, size=16, bold=True),
            element(
                "g", {"transform": f"translate({number(_MARGIN)} {number(_HEADER)})"}, self.body
            ),
        ))  # fmt: skip
        own = {"xmlns": "http://www.w3.org/2000/svg"}
        return self._svg(width, height, body, own=own) + "\n"

    def _svg(
        self, width: float, height: float, body: Markup, *, own: Mapping[str, Value]
    ) -> Markup:
        title_id, description_id = f"{self.name}-title", f"{self.name}-description"
        return element(
            "svg",
            {
                **own,
                "class": "chart narrow" if self.narrow else "chart",
                "role": "img",
                "aria-labelledby": f"{title_id} {description_id}",
                "width": width,
                "height": height,
                "viewBox": f"0 0 {number(width)} {number(height)}",
                "font-family": FONT,
                "font-size": BODY,
            },
            element("title", {"id": title_id}, self.title),
            element("desc", {"id": description_id}, self.description),
            body,
        )


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: float = BODY,
    role: str = "ink",
    anchor: str = "start",
    bold: bool = False,
    turned: bool = False,
    outlined: bool = False,
    tip: str | None = None,
) -> Markup:
    """Draw a line of text.

    Args:
        x: Where it begins, has its middle, or ends, by ``anchor``.
        y: Its base line.
        content: The text.
        size: Size of its letters.
        role: Role of its colour.
        anchor: ``start``, ``middle`` or ``end``.
        bold: Whether it is bold.
        turned: Whether it reads from the bottom to the top.
        outlined: Whether the background shines around its letters, to be read on lines.
        tip: What viewers show when one points at it, such as a name that was shortened.
    """
    attributes: dict[str, Value] = {"x": x, "y": y}
    attributes |= paint(fill=role, stroke="paper" if outlined else None)
    if outlined:
        attributes |= {"stroke-width": 4, "stroke-linejoin": "round", "paint-order": "stroke"}
    if size != BODY:
        attributes["font-size"] = size
    if anchor != "start":
        attributes["text-anchor"] = anchor
    if bold:
        attributes["font-weight"] = 700
    if turned:
        attributes["transform"] = f"rotate(-90 {number(x)} {number(y)})"
    inner = (content,) if tip is None else (element("title", None, tip), content)
    return element("text", attributes, *inner)


def fitted(
    x: float,
    y: float,
    content: str,
    room: float,
    *,
    size: float = BODY,
    role: str = "ink",
    anchor: str = "start",
    bold: bool = False,
    outlined: bool = False,
) -> Markup:
    """Draw a line of text in a given room; what was cut off is shown when one points at it."""
    short = shorten(content, room, size, bold=bold)
    tip = None if short == content else content
    return text(
        x, y, short, size=size, role=role, anchor=anchor, bold=bold, outlined=outlined, tip=tip
    )


def line(
    start: tuple[float, float],
    stop: tuple[float, float],
    *,
    role: str = "grid",
    weight: float = 1,
    dash: str | None = None,
) -> Markup:
    """Draw a straight line."""
    return element(
        "line",
        {
            "x1": start[0], "y1": start[1], "x2": stop[0], "y2": stop[1], **paint(stroke=role),
            "stroke-width": weight, "stroke-dasharray": dash,
        },
    )  # fmt: skip


def curve(
    points: Sequence[tuple[float, float]],
    *,
    role: str,
    weight: float = 2,
    dash: str | None = None,
    tip: str | None = None,
) -> Markup:
    """Draw lines from point to point."""
    places = " ".join(f"{number(x)},{number(y)}" for x, y in points)
    shape = element(
        "polyline",
        {
            "points": places, **paint(stroke=role), "stroke-width": weight,
            "stroke-dasharray": dash, "stroke-linejoin": "round", "stroke-linecap": "round",
        },
    )  # fmt: skip
    return shape if tip is None else pointed(tip, shape)


def box(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    fill: str | None = None,
    stroke: str | None = None,
    corner: float = 0,
) -> Markup:
    """Draw a rectangle."""
    return element(
        "rect",
        {
            "x": x, "y": y, "width": max(0.0, width), "height": max(0.0, height),
            "rx": corner or None, **paint(fill=fill, stroke=stroke),
        },
    )  # fmt: skip


def pointed(tip: str, *parts: Markup) -> Markup:
    """Group marks under a text that viewers show when one points at them."""
    return element("g", None, element("title", None, tip), *parts)


def dash_of(index: int) -> str | None:
    """Return the dashes of a series' line; ``None`` for a solid one."""
    return _DASHES[index % len(_DASHES)]


def marker(index: int, x: float, y: float, radius: float, *, hollow: bool = False) -> Markup:
    """Draw the shape of a series: circle, square, triangle and so on, of equal areas.

    Args:
        index: Number of the series, from 0.
        x: Its middle.
        y: Its middle.
        radius: Radius of the circle that has its area.
        hollow: Draw only its outline, on the background.
    """
    role = series_role(index)
    attributes: dict[str, Value] = {
        **paint(fill="paper" if hollow else role, stroke=role if hollow else "paper"),
        "stroke-width": 2 if hollow else 1.2,
    }
    # Another round of the colours starts at another shape, so that no two of 56 are the same.
    shape = (index + index // 8) % 7
    if shape == 0:
        return element("circle", {"cx": x, "cy": y, "r": radius, **attributes})
    sides, turn = ((4, 45), (3, -90), (4, 0), (3, 90), (5, -90), (6, 0))[shape - 1]
    # The area of a regular polygon is half of n r² sin(2π/n).
    reach = radius * math.sqrt(2 * math.pi / (sides * math.sin(2 * math.pi / sides)))
    corners = [math.radians(turn + 360 * side / sides) for side in range(sides)]
    points = " ".join(
        f"{number(x + reach * math.cos(angle))},{number(y + reach * math.sin(angle))}"
        for angle in corners
    )
    return element("polygon", {"points": points, **attributes})


def legend(
    names: Sequence[str],
    *,
    top: float,
    left: float,
    width: float,
    numbers: Sequence[int],
    lines: bool = True,
) -> tuple[Markup, float]:
    """Draw the series' names beside their line and shape, in as many lines as they need.

    Args:
        names: Of the series.
        top: Where it begins.
        left: Where it begins.
        width: Room for a line.
        numbers: Of the series, which give colours, shapes and dashes.
        lines: Whether series are lines, or points only.

    Returns:
        The marks, and the height that they take.
    """
    columns = max(1, min(4, len(names), int(width // 150)))
    cell, indent = width / columns, 34 if lines else 14
    parts: list[Markup] = []
    for place, (index, name) in enumerate(zip(numbers, names, strict=True)):
        x = left + cell * (place % columns)
        y = top + 20 * (place // columns) + 12
        if lines:
            ends = [(x, y - 4), (x + 28, y - 4)]
            parts.append(curve(ends, role=series_role(index), dash=dash_of(index)))
        parts.append(marker(index, x + (14 if lines else 5), y - 4, 4))
        parts.append(fitted(x + indent, y, name, cell - indent - 10, size=SMALL))
    rows = -(-len(names) // columns)
    return (join(parts), 20.0 * rows + 8) if names else (EMPTY, 0.0)
