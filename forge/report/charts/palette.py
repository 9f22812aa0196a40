"""The colours of charts and page, by role, in light and dark.

A chart names roles, never colours. It writes each role twice: as a presentation attribute with the
light colour, which is all that a file on its own needs, and as a class, which the style sheet of
the page overrides with a variable. So one drawing is an image file, follows the page from light to
dark, and prints in light colours.

Series are Okabe and Ito's hues, which colour-blind readers tell apart, darkened or lightened until
each has a contrast of 4.5 against its background; a series also has a shape and a dash, because
colour alone is not enough.

Reference: Okabe and Ito, Color Universal Design, 2008; WCAG 2.2, success criteria 1.4.3, 1.4.11.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NUM_SERIES: Final = 8
NUM_STEPS: Final = 7

ROLES: Final[Mapping[str, tuple[str, str]]] = {
    "paper": ("#ffffff", "#12161d"),
    "raised": ("#f6f7f9", "#1a202a"),
    "ink": ("#1a2029", "#e8ebf0"),
    "mute": ("#59626f", "#a3adbb"),
    "axis": ("#868f9c", "#6d7888"),
    "grid": ("#e4e7ec", "#29313d"),
    "link": ("#0a5cad", "#7cb8ff"),
    "good": ("#0b7a4b", "#4ccb93"),
    "warn": ("#8a5a00", "#e7b34b"),
    "bad": ("#b3261e", "#ff8f86"),
    "good-wash": ("#e5f5ed", "#123024"),
    "warn-wash": ("#fdf3dc", "#33290f"),
    "bad-wash": ("#fcebe9", "#3a1c1b"),
    "link-wash": ("#e9f2fb", "#16283d"),
    "c0": ("#0072b2", "#56b4e9"),
    "c1": ("#c45500", "#ff9a52"),
    "c2": ("#00815e", "#35c79b"),
    "c3": ("#b0568a", "#e79cc6"),
    "c4": ("#8f6b00", "#e9bf3f"),
    "c5": ("#3d53c4", "#9db0ff"),
    "c6": ("#4a525e", "#c9d0da"),
    "c7": ("#8c3b2e", "#e5a091"),
    "h0": ("#eef4fa", "#18222e"),
    "h1": ("#d3e3f1", "#1b3246"),
    "h2": ("#aecde6", "#1d4765"),
    "h3": ("#7fb0d6", "#225f88"),
    "h4": ("#4a8fc2", "#3a83b5"),
    "h5": ("#1f6ba5", "#74b2dc"),
    "h6": ("#0b4a7c", "#bfe0f7"),
    "on-h0": ("#1a2029", "#e8ebf0"),
    "on-h1": ("#1a2029", "#e8ebf0"),
    "on-h2": ("#1a2029", "#e8ebf0"),
    "on-h3": ("#1a2029", "#e8ebf0"),
    "on-h4": ("#1a2029", "#0d1218"),
    "on-h5": ("#ffffff", "#0d1218"),
    "on-h6": ("#ffffff", "#0d1218"),
}
"""Colour of each role: light, dark. ``c0`` to ``c7`` are series, ``h0`` to ``h6`` the steps of a
heat map, and ``on-h0`` to ``on-h6`` text on them."""


def paint(*, fill: str | None = None, stroke: str | None = None) -> dict[str, str]:
    """Return the attributes that paint a shape.

    Args:
        fill: Role of its area; ``None`` for no area.
        stroke: Role of its outline; ``None`` for none.
    """
    classes = [f"f-{fill}"] if fill else []
    classes += [f"s-{stroke}"] if stroke else []
    attributes = {"class": " ".join(classes)} if classes else {}
    attributes["fill"] = ROLES[fill][0] if fill else "none"
    if stroke:
        attributes["stroke"] = ROLES[stroke][0]
    return attributes


def series_role(index: int) -> str:
    """Return the role of a series' colour; they repeat after eight."""
    return f"c{index % NUM_SERIES}"


def step_role(share: float) -> str:
    """Return the role of a heat map's step for a value's place between low (0) and high (1)."""
    return f"h{min(NUM_STEPS - 1, max(0, int(share * NUM_STEPS)))}"


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours, 1 to 21.

    Args:
        first: Such as ``#0072b2``.
        second: The other one.

    Reference: WCAG 2.2, relative luminance and contrast ratio.
    """
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def style_sheet() -> str:
    """Return the page's rules for all roles: variables in light and dark, and classes."""
    light = _variables(0)
    dark = _variables(1)
    rules = [
        f":root{{color-scheme:light;{light}}}",
        "@media (prefers-color-scheme:dark){:root:not([data-theme=light])"
        f"{{color-scheme:dark;{dark}}}}}",
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}",
        f"@media print{{:root:root:root{{color-scheme:light;{light}}}}}",
    ]
    rules += [f".f-{role}{{fill:var(--{role})}}.s-{role}{{stroke:var(--{role})}}" for role in ROLES]
    return "\n".join(rules)


def _variables(column: int) -> str:
    return "".join(f"--{role}:{colours[column]};" for role, colours in ROLES.items())


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
