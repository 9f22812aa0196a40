"""Figures as the cells of tables and the words of sentences print them; a missing one is a dash.

How each kind of figure is written is decided in ``forge.report.words``; here is what may be missing
and what has several parts.
"""

from __future__ import annotations

from typing import Final

from forge.report import words
from forge.report.comparison.differences import Interval
from forge.report.comparison.profiles import TimeRatio

MISSING: Final = "–"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in percent, without the sign: ``62.5``."""
    return MISSING if share is None else words.percent(share, digits)


def points(difference: float | None) -> str:
    """Return a difference of shares in points, with its sign: ``+1.2``, ``0.0``."""
    if difference is None:
        return MISSING
    text = words.points(difference)
    return "0.0" if text == "+0.0" else text


def points_interval(interval: Interval) -> str:
    """Return an interval of differences: ``−1.0 to +1.2``."""
    return f"{points(interval.low)} to {points(interval.high)}"


def size(num_bytes: float | None) -> str:
    """Return a size in decimal units: ``269 MB``."""
    return MISSING if num_bytes is None else words.size_text(num_bytes)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many significant digits: ``0.0042``, ``1,230``."""
    return MISSING if value is None else words.figures(value, digits)


def time_ratio(found: TimeRatio | None) -> str:
    """Return a ratio with its interval, behind ``≈`` where noise covers it."""
    if found is None:
        return MISSING
    sign = "≈ " if found.covered else ""
    return f"{sign}{found.ratio:.2f} ({found.interval.low:.2f} to {found.interval.high:.2f})"


def plural(count: int, noun: str) -> str:
    """Return ``1 item`` or ``1,200 items``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
