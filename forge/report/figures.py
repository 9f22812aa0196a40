"""Figures as words: how a report prints shares, points, sizes, times and ratios.

One place, so that a number in a sentence, a table and a chart's label reads alike. A minus is the
character of that name, and a missing figure is a dash.
"""

from __future__ import annotations

from typing import Final

from forge.report.comparison import Interval, TimeRatio

MISSING: Final = "–"
_MINUS: Final = "\N{MINUS SIGN}"
_SIZES: Final = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in percent, without the sign: ``62.5``."""
    return MISSING if share is None else f"{100 * share:.{digits}f}"


def points(difference: float | None, digits: int = 1) -> str:
    """Return a difference of shares in points, with its sign: ``+1.2``, ``0.0``."""
    if difference is None:
        return MISSING
    text = f"{100 * abs(difference):.{digits}f}"
    if not float(text):
        return text
    return ("+" if difference > 0 else _MINUS) + text


def points_interval(interval: Interval) -> str:
    """Return an interval of differences: ``−1.0 to +1.2``."""
    return f"{points(interval.low)} to {points(interval.high)}"


def size(num_bytes: float | None) -> str:
    """Return a size in decimal units: ``269 MB``."""
    if num_bytes is None:
        return MISSING
    for unit, scale in _SIZES:
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}" if num_bytes < 999.5 * scale else (
                f"{num_bytes / scale:.0f} {unit}"
            )  # fmt: skip
    return f"{num_bytes:.0f} B"


def rate(per_second: float | None) -> str:
    """Return tokens a second: ``11.0``, ``1234``."""
    if per_second is None:
        return MISSING
    return f"{per_second:.0f}" if per_second >= 100 else f"{per_second:.3g}"


def ratio(value: float | None) -> str:
    """Return a ratio: ``0.52``."""
    return MISSING if value is None else f"{value:.2f}"


def time_ratio(found: TimeRatio | None) -> str:
    """Return a ratio with its interval, behind ``≈`` where noise covers it."""
    if found is None:
        return MISSING
    sign = "≈ " if found.covered else ""
    return f"{sign}{found.ratio:.2f} ({found.interval.low:.2f}-{found.interval.high:.2f})"


def milliseconds(seconds: float | None) -> str:
    """Return a time in milliseconds: ``12.3``."""
    return MISSING if seconds is None else f"{1000 * seconds:.3g}"


def p_value(value: float) -> str:
    """Return a p-value: ``0.031``, ``<0.001``."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def nats(value: float | None) -> str:
    """Return a divergence: ``0.0042``."""
    return MISSING if value is None else f"{value:.2g}" if value < 1 else f"{value:.2f}"


def plural(count: int, noun: str) -> str:
    """Return ``1 item`` or ``1,200 items``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def listed(names: tuple[str, ...] | list[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
