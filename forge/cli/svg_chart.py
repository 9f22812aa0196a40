"""Draw panels as one SVG file that needs no script, no font and no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from forge.cli.series import Curve, Panel

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS: Final = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442",
)  # fmt: skip
_WIDTH: Final = 760
_LEFT: Final = 70
_RIGHT: Final = 20
_PANEL: Final = 190
_PLOT: Final = 120
_TOP: Final = 34


def svg(
    title: str, panels: Sequence[Panel], *, layers: Sequence[int], legend: Sequence[str]
) -> str:
    """Draw panels one below the other.

    Args:
        title: Heading.
        panels: What to draw.
        layers: Number of the layer of each value.
        legend: Lines to print at the end, such as the names of the models.

    Returns:
        The file's text.
    """
    height = 40 + _PANEL * len(panels) + 18 * len(legend) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f"<title>{_text(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="24" font-size="15" font-weight="bold">{_text(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += _draw(panel, 40 + _PANEL * number, layers)
    base = 40 + _PANEL * len(panels) + 14
    parts += [
        f'<text x="16" y="{base + 18 * number}">{_text(line)}</text>'
        for number, line in enumerate(legend)
    ]
    return "\n".join([*parts, "</svg>", ""])


def _draw(panel: Panel, top: int, layers: Sequence[int]) -> list[str]:
    plot = top + _TOP
    bottom, right = plot + _PLOT, _WIDTH - _RIGHT
    parts = [f'<text x="{_LEFT}" y="{top + 14}" font-weight="bold">{_text(panel.title)}</text>']
    for step in range(5):
        y = bottom - _PLOT * step / 4
        value = panel.low + (panel.high - panel.low) * step / 4
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#dddddd"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555555">'
            f"{value:.3g}</text>"
        )
    every = max(1, -(-len(layers) // 16))
    parts += [
        f'<text x="{_x(number, len(layers)):.1f}" y="{bottom + 16}" text-anchor="middle" '
        f'fill="#555555">{layer}</text>'
        for number, layer in enumerate(layers)
        if number % every == 0
    ]
    for number, curve in enumerate(panel.curves):
        colour = _COLOURS[number % len(_COLOURS)]
        parts += _line(curve, panel, bottom, colour)
        if curve.label:
            x = right - 52 * (len(panel.curves) - number)
            parts.append(f'<rect x="{x}" y="{top + 5}" width="12" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{x + 16}" y="{top + 14}">{_text(curve.label)}</text>')
    return parts


def _line(curve: Curve, panel: Panel, bottom: int, colour: str) -> list[str]:
    runs: list[list[tuple[float, float]]] = [[]]
    for number, value in enumerate(curve.values):
        if value is None:
            runs.append([])
        else:
            y = bottom - _PLOT * (value - panel.low) / (panel.high - panel.low)
            runs[-1].append((_x(number, len(curve.values)), y))
    parts: list[str] = []
    for run in filter(None, runs):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colour}"/>' for x, y in run]
    return parts


def _x(number: int, count: int) -> float:
    width = _WIDTH - _LEFT - _RIGHT - 16
    return _LEFT + 8 + (width / 2 if count < 2 else width * number / (count - 1))


def _text(text: str) -> str:
    # XML forbids most control characters, even escaped; a tensor's name could hold one.
    return escape("".join(character for character in text if character.isprintable()))
