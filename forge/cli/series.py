"""What a merge measured, as curves over the layers; drawn as sparklines and as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from forge.merge.diagnose import LayerRow, pairs

_BARS: Final = "▁▂▃▄▅▆▇█"
_BOX: Final = "█"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a panel; ``None`` where nothing was measured."""

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share an axis.

    Attributes:
        title: What is drawn.
        curves: The lines, at least one.
        low: Lower end of the axis.
        high: Upper end, above ``low``.
    """

    title: str
    curves: tuple[Curve, ...]
    low: float
    high: float


def panels_of(rows: Sequence[LayerRow], *, norm_title: str) -> tuple[Panel, ...]:
    """Return everything that was measured over the layers.

    Args:
        rows: Rows of layers, in their order.
        norm_title: What the norms are of.

    Returns:
        The panels that have something to show.
    """
    num_models = max((len(row.norms) for row in rows), default=0)
    numbers = [str(number + 1) for number in range(num_models)]
    couples = [f"{b + 1}·{a + 1}" for a, b in pairs(num_models)]
    kept = max((len(row.kept_shares) for row in rows), default=0)
    found = (
        _panel(norm_title, rows, numbers, lambda row: row.norms, zero=True),
        _panel("cosine between them", rows, couples, lambda row: row.cosines),
        _panel(
            "share of positions where signs conflict",
            rows,
            [""],
            lambda row: () if row.conflict_share is None else (row.conflict_share,),
            zero=True,
        ),
        _panel(
            "share kept",
            rows,
            [str(number + 1) for number in range(kept)],
            lambda row: row.kept_shares,
            zero=True,
        ),
        _panel(
            "angle in degrees",
            rows,
            [""],
            lambda row: () if row.angle_degrees is None else (row.angle_degrees,),
            zero=True,
        ),
    )
    return tuple(panel for panel in found if panel is not None)


def _panel(
    title: str,
    rows: Sequence[LayerRow],
    labels: Sequence[str],
    pick: Callable[[LayerRow], tuple[float, ...]],
    *,
    zero: bool = False,
) -> Panel | None:
    curves = tuple(
        Curve(label, tuple(_at(pick(row), number) for row in rows))
        for number, label in enumerate(labels)
    )
    present = [value for curve in curves for value in curve.values if value is not None]
    if not present:
        return None
    low = min(0.0, *present) if zero else min(present)
    high = max(present)
    return Panel(title, curves, low, high if high > low else low + 1.0)


def _at(values: tuple[float, ...], number: int) -> float | None:
    return values[number] if number < len(values) else None


def sparkline(curve: Curve, *, low: float, high: float) -> str:
    """Return a curve as one character per layer.

    Args:
        curve: The curve.
        low: Value of the lowest character.
        high: Value of the highest one, above ``low``.

    Returns:
        As many characters as values; a dot where nothing was measured.
    """
    top = len(_BARS) - 1
    return "".join(
        "·" if value is None else _BARS[round(min(max((value - low) / (high - low), 0), 1) * top)]
        for value in curve.values
    )


def bar(share: float, size: int) -> str:
    """Return a horizontal bar.

    Args:
        share: Length, from 0 to 1.
        size: Characters of a full bar.

    Returns:
        At most ``size`` characters.
    """
    eighths = round(min(max(share, 0.0), 1.0) * size * 8)
    full, rest = divmod(eighths, 8)
    return _BOX * full + (_EIGHTHS[rest] if rest else "")
