"""Words that the page and its charts share, and the one way to write each kind of figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from forge.report.comparison import VerdictKind

Status = Literal["good", "warn", "bad", "neutral"]
"""How a state is coloured; it is always also a word."""

_UNITS: Final = (("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("bytes", 1.0))
VERDICT_STATUS: Final[Mapping[VerdictKind, Status]] = {
    "source": "neutral",
    "better": "good",
    "not worse": "good",
    "worse": "bad",
    "undecided": "warn",
    "unmeasured": "neutral",
}
MEMORY_NAMES: Final[Mapping[str, str]] = {
    "weights_on_disk": "Weights on disk",
    "weights_in_memory": "Weights in memory",
    "peak_allocated": "Peak allocated memory",
    "peak_reserved": "Peak reserved memory",
    "driver": "Memory of the process by the driver",
    "peak_resident": "Peak resident memory",
    "kv_per_token": "KV cache per token",
    "weight_bytes": "Size of the weights",
}
"""What each kind of memory is called, by its name in a profile."""


def signed(text: str) -> str:
    """Return a formatted number with a real minus sign, and none before zero."""
    if not text.startswith("-"):
        return text
    return "−" + text[1:] if any(character in "123456789" for character in text) else text[1:]


def unit_of(num_bytes: float) -> tuple[str, float]:
    """Return the largest decimal unit in which a size is at least 1, and its bytes."""
    return next(((unit, size) for unit, size in _UNITS if num_bytes >= size), _UNITS[-1])


def size_text(num_bytes: float) -> str:
    """Return a size in its decimal unit, three digits, such as ``272 MB``."""
    unit, size = unit_of(num_bytes)
    value = num_bytes / size
    digits = max(0, 3 - len(str(int(value)))) if size > 1 else 0
    return f"{signed(f'{value:.{digits}f}')} {unit}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent without its sign, such as ``45.2``."""
    return signed(f"{100 * share:.{digits}f}")


def points(difference: float) -> str:
    """Return a difference of shares in points, with its sign, such as ``+1.4``."""
    return signed(f"{100 * difference:+.1f}")


def figures(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits and thousands set apart."""
    if value == 0 or not math.isfinite(value):
        return signed(f"{value:g}")
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return (
        signed(f"{value:,.{places}f}") if abs(value) >= 1e-4 else signed(f"{value:.{digits - 1}e}")
    )


def seconds(value: float) -> str:
    """Return a time in the unit in which it reads best, such as ``32.1 ms``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{figures(value / size)} {unit}"
    return f"{figures(value / 1e-6)} µs"


def chance(p_value: float) -> str:
    """Return a p-value, such as ``0.031`` or ``< 0.001``."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
