"""How wide a text is, so that labels can be placed without a browser.

Charts are set in Arial, or in Helvetica or Liberation Sans, whose letters are as wide. A viewer
that has none of them sets wider letters, so whatever must fit is given an eighth more room.

Reference: Adobe's font metrics of Helvetica (widths in thousandths of the size).
"""

from __future__ import annotations

from typing import Final

from forge.report.markup import visible

FONT: Final = "Arial, Helvetica, 'Liberation Sans', sans-serif"
_ROOM: Final = 1.125
_BOLD: Final = 1.08
_ASCII: Final = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278,
    556, 556, 556, 556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556,
    1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778,
    667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556,
    333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556,
    556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
)  # fmt: skip
_OTHER: Final = 610
_FULL: Final = 1000
_FIRST_WIDE: Final = 0x1100
"""From here on (Hangul, Han, emoji) a letter may be as wide as it is high."""


def width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the room that a line of text needs, in the unit of its size."""
    thousandths = sum(_letter(character) for character in visible(text))
    return thousandths / 1000 * size * (_BOLD if bold else 1.0) * _ROOM


def shorten(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """Return the text, or its beginning and end around an ellipsis, so that it fits.

    Names of models differ most at their ends, so an end is kept.

    Args:
        text: One line.
        room: Width that it may take.
        size: Size of its letters.
        bold: Whether it is set in bold.
    """
    text = " ".join(visible(text).split())
    if width(text, size, bold=bold) <= room:
        return text
    for kept in range(len(text) - 1, 1, -1):
        head = (kept + 1) // 2
        short = f"{text[:head]}…{text[len(text) - (kept - head) :]}"
        if width(short, size, bold=bold) <= room:
            return short
    return "…"


def _letter(character: str) -> int:
    place = ord(character) - 32
    if 0 <= place < len(_ASCII):
        return _ASCII[place]
    return _FULL if ord(character) >= _FIRST_WIDE else _OTHER
