"""Reliability: how often answers of a confidence are right, and how many there are of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.axes import Area
from forge.report.charts.drawing import (
    SMALL,
    WIDTH,
    Drawing,
    box,
    curve,
    fitted,
    line,
    marker,
    pointed,
    text,
)
from forge.report.charts.palette import series_role
from forge.report.markup import Markup, join

_SIDE: Final = 176.0
_COUNTS: Final = 46.0
_CELL_HEIGHT: Final = 330.0


@dataclass(frozen=True, slots=True)
class ReliabilityPlot:
    """A model.

    Attributes:
        label: Its name.
        series: Its place in the table of models, from 0.
        calibration_error: Expected calibration error, in [0, 1].
        bins: Low and high edge, number of answers, mean confidence and accuracy of each bin.
    """

    label: str
    series: int
    calibration_error: float
    bins: tuple[tuple[float, float, int, float, float], ...]


def reliability(plots: Sequence[ReliabilityPlot], *, width: float = WIDTH) -> Drawing:
    """Draw a small plot for each model; on the diagonal confidence is right.

    Args:
        plots: At least one.
        width: In pixels.
    """
    columns = max(1, min(4, int(width // 205)))
    cell = width / columns
    parts = []
    for index, plot in enumerate(plots):
        left, top = cell * (index % columns), _CELL_HEIGHT * (index // columns)
        parts.append(_plot(plot, left, top, cell))
    errors = "; ".join(f"{plot.label} {plot.calibration_error:.3f}" for plot in plots)
    return Drawing(
        "reliability",
        "Reliability",
        f"Accuracy of answers by their confidence. Expected calibration error: {errors}.",
        width,
        _CELL_HEIGHT * -(-len(plots) // columns),
        join(parts),
    )


def _plot(plot: ReliabilityPlot, left: float, top: float, cell: float) -> Markup:
    side = min(_SIDE, cell - 46)
    area = Area(left + 36, top + 44, left + 36 + side, top + 44 + side)
    parts = [
        fitted(left + 4, top + 16, plot.label, cell - 12, bold=True),
        text(
            left + 4,
            top + 33,
            f"calibration error {plot.calibration_error:.3f}",
            size=SMALL,
            role="mute",
        ),
    ]
    for share in (0.0, 0.5, 1.0):
        x, y = area.left + side * share, area.bottom - side * share
        parts += [line((area.left, y), (area.right, y)), line((x, area.top), (x, area.bottom))]
        parts.append(
            text(area.left - 6, y + 4, f"{share:g}", size=SMALL - 1, role="mute", anchor="end")
        )
    parts.append(line((area.left, area.bottom), (area.right, area.top), role="axis", dash="4 3"))
    role = series_role(plot.series)
    points = [
        (area.left + side * confidence, area.bottom - side * accuracy)
        for _, _, _, confidence, accuracy in plot.bins
    ]
    if len(points) > 1:
        parts.append(curve(points, role=role))
    for (x, y), found in zip(points, plot.bins, strict=True):
        parts.append(pointed(_tip(plot, found), marker(plot.series, x, y, 4.5)))
    parts.append(_counts(plot, area, role))
    return join(parts)


def _counts(plot: ReliabilityPlot, area: Area, role: str) -> Markup:
    """Draw how many answers each bin holds, below the plot."""
    top, bottom = area.bottom + 18, area.bottom + 18 + _COUNTS
    most = max((count for _, _, count, _, _ in plot.bins), default=1)
    parts = [line((area.left, bottom), (area.right, bottom), role="axis")]
    for found in plot.bins:
        low, high, count = found[:3]
        height = (_COUNTS - 2) * count / most
        x, wide = area.left + area.width * low, area.width * (high - low)
        bar = box(x + 1, bottom - height, wide - 2, height, fill=role)
        parts.append(pointed(_tip(plot, found), bar))
    parts.append(text(area.left - 6, top + 8, str(most), size=SMALL - 1, role="mute", anchor="end"))
    parts.append(text(area.left - 6, bottom, "0", size=SMALL - 1, role="mute", anchor="end"))
    for share in (0.0, 0.5, 1.0):
        x = area.left + area.width * share
        parts.append(
            text(x, bottom + 14, f"{share:g}", size=SMALL - 1, role="mute", anchor="middle")
        )
    middle = (area.left + area.right) / 2
    parts.append(
        text(middle, bottom + 30, "confidence", size=SMALL - 1, role="mute", anchor="middle")
    )
    return join(parts)


def _tip(plot: ReliabilityPlot, found: tuple[float, float, int, float, float]) -> str:
    low, high, count, confidence, accuracy = found
    return (
        f"{plot.label}, confidence {low:.2f} to {high:.2f}: {count} answers, mean confidence "
        f"{confidence:.3f}, {accuracy:.3f} right"
    )
