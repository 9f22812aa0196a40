"""How far each variant's predictions are from its source's, against its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forge.report.charts.axes import Area, bottom_axis, left_axis
from forge.report.charts.drawing import WIDTH, Drawing
from forge.report.charts.scales import linear, logarithmic
from forge.report.charts.scatter import Point, bytes_scale, draw_points, key_of
from forge.report.markup import join
from forge.report.words import size_text

_HEIGHT = 386.0


@dataclass(frozen=True, slots=True)
class KlPoint:
    """A variant, compared with its source.

    Attributes:
        label: Its name.
        series: Its place in the table of models, from 0.
        weight_bytes: Size of its weights; above 0.
        mean: Mean KL divergence in nats; at least 0.
        median: Median, or ``None``.
        p99: 99th percentile, or ``None``.
        same_top_share: Share of tokens at which both put the same token first, or ``None``.
    """

    label: str
    series: int
    weight_bytes: float
    mean: float
    median: float | None
    p99: float | None
    same_top_share: float | None


def kl_bytes(points: Sequence[KlPoint], *, width: float = WIDTH) -> Drawing:
    """Draw mean KL divergence against weight bytes; whiskers reach from median to p99.

    Args:
        points: At least one. A logarithmic axis is used when all values are above 0.
        width: In pixels.
    """
    area = Area(74, 18, width - 18, _HEIGHT - 46)
    x_scale, unit, size = bytes_scale(
        [point.weight_bytes for point in points], area.left, area.right
    )
    reached = [
        value
        for point in points
        for value in (point.mean, point.median, point.p99)
        if value is not None
    ]
    scale = logarithmic if min(reached) > 0 else linear
    y_scale = scale(reached, area.bottom, area.top)
    drawn = [
        Point(
            point.label,
            point.series,
            x_scale(point.weight_bytes / size),
            y_scale(point.mean),
            6,
            None if point.median is None else y_scale(point.median),
            None if point.p99 is None else y_scale(point.p99),
            _tip(point),
        )
        for point in points
    ]
    marks, left_over = draw_points(drawn, area)
    names, names_height = key_of(left_over, top=_HEIGHT, width=width)
    body = join(
        (
            left_axis(area, y_scale, "KL divergence (nats)"),
            bottom_axis(area, x_scale, f"Size of the weights ({unit})"),
            marks,
            names,
        )
    )
    description = "; ".join(f"{point.label} {point.mean:.3g} nats" for point in points)
    return Drawing(
        "kl-against-bytes",
        "KL divergence from the source, against size",
        f"Mean with a whisker from the median to the 99th percentile. {description}.",
        width,
        _HEIGHT + names_height,
        body,
    )


def _tip(point: KlPoint) -> str:
    tip = f"{point.label}: mean {point.mean:.3g} nats"
    if point.median is not None:
        tip += f", median {point.median:.3g}"
    if point.p99 is not None:
        tip += f", 99th percentile {point.p99:.3g}"
    if point.same_top_share is not None:
        tip += f", same first token {100 * point.same_top_share:.1f} %"
    return f"{tip}, {size_text(point.weight_bytes)}"
