"""Figures layer by layer, one panel for each quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.axes import Area, bottom_axis, left_axis
from forge.report.charts.drawing import (
    WIDTH,
    Drawing,
    curve,
    dash_of,
    legend,
    marker,
    pointed,
    text,
)
from forge.report.charts.palette import series_role
from forge.report.charts.scales import Scale, linear
from forge.report.markup import Markup, join

_PLOT: Final = 150.0


@dataclass(frozen=True, slots=True)
class LayerSeries:
    """A line.

    Attributes:
        label: Its name in the legend.
        values: A value for each layer of the panel; ``None`` where there is none.
    """

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class LayerPanel:
    """A quantity.

    Attributes:
        title: What it is.
        unit: Of its values, or empty.
        layers: Numbers of the layers, rising.
        series: Its lines.
        zero: Whether its axis begins at 0.
        reach: Values that its axis holds besides its own, so that panels can be compared.
        numbers: Of its series in the table of models, which give colours and shapes; by default
            their order.
    """

    title: str
    unit: str
    layers: tuple[int, ...]
    series: tuple[LayerSeries, ...]
    zero: bool = True
    reach: tuple[float, ...] = ()
    numbers: tuple[int, ...] = ()


def layer_panels(
    panels: Sequence[LayerPanel],
    *,
    name: str,
    title: str,
    width: float = WIDTH,
) -> Drawing:
    """Draw panels one below the other.

    Args:
        panels: At least one; each with at least one value.
        name: Of its files.
        title: Heading.
        width: In pixels.
    """
    top = 6.0
    parts: list[Markup] = []
    for panel in panels:
        marks, height = _panel(panel, top, width)
        parts.append(marks)
        top += height
    described = "; ".join(f"{panel.title}: {_extremes(panel)}" for panel in panels)
    return Drawing(name, title, f"{described}.", width, top, join(parts))


def _panel(panel: LayerPanel, top: float, width: float) -> tuple[Markup, float]:
    numbers = panel.numbers or tuple(range(len(panel.series)))
    heading = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
    parts = [text(4, top + 14, heading, bold=True)]
    key, taken = (Markup(""), 0.0)
    if len(panel.series) > 1:
        key, taken = legend(
            [series.label for series in panel.series],
            top=top + 22,
            left=4,
            width=width - 8,
            numbers=numbers,
        )
    area = Area(56, top + 30 + taken, width - 18, top + 30 + taken + _PLOT)
    known = [*panel.reach]
    known += [value for series in panel.series for value in series.values if value is not None]
    y_scale = linear([*known, 0.0] if panel.zero else known, area.bottom, area.top, num_ticks=4)
    x_scale = _layer_scale(panel.layers, area)
    labels = tuple(str(round(tick)) for tick in x_scale.ticks)
    parts += [key, left_axis(area, y_scale, "")]
    parts.append(bottom_axis(area, x_scale, "layer", labels=labels, grid=False))
    for index, series in zip(numbers, panel.series, strict=True):
        parts.append(_line(panel, series, index, x_scale, y_scale))
    return join(parts), area.bottom - top + 60


def _layer_scale(layers: Sequence[int], area: Area) -> Scale:
    first, last = layers[0], layers[-1]
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100) if (last - first) / n <= 16 or n == 100)
    ticks = tuple(float(layer) for layer in range(-(-first // every) * every, last + 1, every))
    if first == last:
        return Scale(first - 1, last + 1, area.left, area.right, (float(first),))
    return Scale(first, last, area.left + 10, area.right - 10, ticks)


def _line(
    panel: LayerPanel, series: LayerSeries, index: int, x_scale: Scale, y_scale: Scale
) -> Markup:
    runs: list[list[tuple[float, float]]] = [[]]
    marks: list[Markup] = []
    for layer, value in zip(panel.layers, series.values, strict=True):
        if value is None:
            runs.append([])
            continue
        x, y = x_scale(layer), y_scale(value)
        runs[-1].append((x, y))
        tip = f"{series.label}, layer {layer}: {value:.4g} {panel.unit}"
        marks.append(pointed(tip, marker(index, x, y, 3)))
    role = series_role(index)
    lines = [curve(run, role=role, weight=1.6, dash=dash_of(index)) for run in runs if len(run) > 1]
    return join([*lines, *marks])


def _extremes(panel: LayerPanel) -> str:
    parts = []
    for series in panel.series:
        known = [
            (value, layer)
            for value, layer in zip(series.values, panel.layers, strict=True)
            if value is not None
        ]
        if known:
            value, layer = max(known)
            parts.append(f"{series.label} at most {value:.3g} at layer {layer}")
    return ", ".join(parts)
