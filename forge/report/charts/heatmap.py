"""Error by layer and projection: where a quantization hurts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.report.charts.drawing import SMALL, WIDTH, Drawing, box, fitted, pointed, text
from forge.report.charts.palette import NUM_STEPS, step_role
from forge.report.markup import Markup, element, join
from forge.report.words import signed

_ROW: Final = 20.0
_NAMES: Final = 150.0
_LOGARITHMIC_FROM: Final = 30.0
_MAGNITUDES: Final = 1e4
"""Ratio that equal ratios reach down to; below it everything is of the lowest step."""
"""Above this ratio of the largest to the smallest error, steps are equal ratios."""


@dataclass(frozen=True, slots=True)
class HeatBlock:
    """A variant.

    Attributes:
        label: Its name.
        layers: Numbers of its layers: columns.
        projections: Names: rows.
        values: A sequence for each projection with a value for each layer; ``None`` where there
            is none; at least 0.
    """

    label: str
    layers: tuple[int, ...]
    projections: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


def heat_map(
    blocks: Sequence[HeatBlock], *, name: str, measure: str, width: float = WIDTH
) -> Drawing:
    """Draw variants one below the other, all on one scale of colours.

    Args:
        blocks: At least one, with at least one value.
        name: Of its files.
        measure: What the values are, in words.
        width: In pixels.
    """
    steps = _Steps.over([v for b in blocks for row in b.values for v in row if v is not None])
    key, top = _key(steps, measure, width)
    parts = [key]
    for block in blocks:
        marks, height = _block(block, top, width, steps)
        parts.append(marks)
        top += height
    worst = "; ".join(f"{block.label}: {_worst(block)}" for block in blocks)
    return Drawing(
        name,
        "Error by layer and projection",
        f"{measure}. Largest: {worst}.",
        width,
        top,
        join(parts),
    )


@dataclass(frozen=True, slots=True)
class _Steps:
    low: float
    high: float
    logarithmic: bool
    is_cut: bool = False

    @classmethod
    def over(cls, values: Sequence[float]) -> _Steps:
        positive = [value for value in values if value > 0]
        if not positive:
            return cls(0.0, 1.0, logarithmic=False)
        low, high = min(positive), max(positive)
        if len(positive) == len(values) and high / low > _LOGARITHMIC_FROM:
            floor = max(low, high / _MAGNITUDES)
            return cls(floor, high, logarithmic=True, is_cut=floor > low)
        return cls(min(values) if min(values) < high else 0.0, high, logarithmic=False)

    def share(self, value: float) -> float:
        if self.logarithmic:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def edge(self, step: int) -> float:
        share = step / NUM_STEPS
        if self.logarithmic:
            return float(self.low * (self.high / self.low) ** share)
        return self.low + share * (self.high - self.low)


def _key(steps: _Steps, measure: str, width: float) -> tuple[Markup, float]:
    cell = min(64.0, (width - 20) / (NUM_STEPS + 1))
    left = 8.0
    parts = [fitted(left - 4, 16, measure, width - 16, size=SMALL, role="mute")]
    for step in range(NUM_STEPS):
        role = step_role((step + 0.5) / NUM_STEPS)
        parts.append(box(left + cell * step, 26, cell, 12, fill=role))
    for step in range(NUM_STEPS + 1):
        label = f"{'≤ ' if steps.is_cut and step == 0 else ''}{signed(f'{steps.edge(step):.2g}')}"
        anchor = "start" if step == 0 else "middle"
        x = left + cell * step - (4 if step == 0 else 0)
        parts.append(text(x, 52, label, size=SMALL - 1, role="mute", anchor=anchor))
    return join(parts), 66.0


def _block(block: HeatBlock, top: float, width: float, steps: _Steps) -> tuple[Markup, float]:
    names = _NAMES if width >= 700 else 96.0
    cell = min(30.0, (width - names - 8) / max(1, len(block.layers)))
    parts = [fitted(4, top + 14, block.label, width - 8, bold=True)]
    top += 22
    for index, projection in enumerate(block.projections):
        y = top + _ROW * index
        label = projection.rsplit(".", 1)[-1]
        parts.append(
            text(names - 8, y + 14, label, size=SMALL, role="mute", anchor="end", tip=projection)
        )
        for column, value in enumerate(block.values[index]):
            x = names + cell * column
            where = f"{block.label}, layer {block.layers[column]}, {projection}"
            gap = 1.0 if cell > 5 else 0.0
            if value is None:
                mark = box(x, y, cell - gap, _ROW - gap, fill="paper", stroke="grid")
                parts.append(pointed(f"{where}: not measured", mark))
            else:
                mark = box(x, y, cell - gap, _ROW - gap, fill=step_role(steps.share(value)))
                parts.append(pointed(f"{where}: {value:.4g}", mark))
    bottom = top + _ROW * len(block.projections)
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100) if n * cell >= 18 or n == 100)
    for column, layer in enumerate(block.layers):
        if layer % every == 0:
            x = names + cell * (column + 0.5)
            parts.append(
                text(x, bottom + 14, str(layer), size=SMALL - 1, role="mute", anchor="middle")
            )
    parts.append(text(names - 8, bottom + 14, "layer", size=SMALL - 1, role="mute", anchor="end"))
    return element("g", None, *parts), 22 + _ROW * len(block.projections) + 34


def _worst(block: HeatBlock) -> str:
    found = [
        (value, -block.layers[column], projection)
        for projection, row in zip(block.projections, block.values, strict=True)
        for column, value in enumerate(row)
        if value is not None
    ]
    if not found:
        return "nothing measured"
    value, layer, projection = max(found)
    return f"layer {-layer}, {projection}, {value:.3g}"
