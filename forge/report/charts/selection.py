"""Draw the charts that a comparison allows, and say why the others are not there.

Charts take plain numbers; this is the one place that knows where in a comparison they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Final

from forge.report.charts.drawing import NARROW, WIDTH, Drawing
from forge.report.charts.flips import FlipRow, flip_matrix
from forge.report.charts.forest import ForestRow, forest
from forge.report.charts.heatmap import HeatBlock, heat_map
from forge.report.charts.kl_bytes import KlPoint, kl_bytes
from forge.report.charts.layers import LayerPanel, LayerSeries, layer_panels
from forge.report.charts.pareto import ParetoPoint, pareto
from forge.report.charts.reliability import ReliabilityPlot, reliability
from forge.report.comparison import Comparison
from forge.report.comparison.origin import Merge, QuantizationErrors
from forge.report.verdicts import verdict_kind
from forge.report.words import MEMORY_NAMES, VERDICT_STATUS

Group = tuple[Drawing, ...] | str
"""Charts of one kind, or why there are none."""

_LINES: Final = 8
"""Lines that a reader can tell apart in one panel."""


def groups(comparison: Comparison, *, width: float = WIDTH) -> dict[str, Group]:
    """Return the charts by kind, in the order in which one decides.

    Args:
        comparison: What to draw.
        width: Of each chart, in pixels.
    """
    kinds: Mapping[str, Callable[[Comparison, float], Group]] = {
        "pareto": _pareto,
        "differences": _forest,
        "flips": _flips,
        "kl": _kl,
        "errors": _errors,
        "layers": _layers,
        "reliability": _reliability,
        "merges": _merges,
    }
    return {name: draw(comparison, width) for name, draw in kinds.items()}


def narrow_groups(comparison: Comparison) -> dict[str, Group]:
    """Return those charts that have a form of their own for narrow screens."""
    found = groups(comparison, width=NARROW)
    return {
        name: group if isinstance(group, str) else tuple(_renamed(drawing) for drawing in group)
        for name, group in found.items()
        if name in {"pareto", "differences", "flips", "kl"}
    }


def _renamed(drawing: Drawing) -> Drawing:
    return dataclasses.replace(drawing, name=f"{drawing.name}-narrow", narrow=True)


def all_charts(comparison: Comparison) -> dict[str, str]:
    """Return every chart as the text of an SVG file, by the name of the file without suffix."""
    return {
        drawing.name: drawing.standalone()
        for group in groups(comparison).values()
        if not isinstance(group, str)
        for drawing in group
    }


def _places(comparison: Comparison) -> dict[str, int]:
    return {model.label: place for place, model in enumerate(comparison.models)}


def _pareto(comparison: Comparison, width: float) -> Group:
    found = comparison.pareto
    if found is None or not found.points:
        return "It needs two local models with an accuracy and a size of memory."
    places = _places(comparison)
    reach = {
        pair.variant: (
            pair.overall.interval.low - pair.overall.difference,
            pair.overall.interval.high - pair.overall.difference,
        )
        for pair in comparison.pairs
    }
    points = []
    for point in found.points:
        # What one weighs is a difference. The interval of an accuracy alone is several times as
        # wide, because it does not know that the questions are the same.
        low, high = reach.get(point.model, (None, None))
        points.append(
            ParetoPoint(
                point.model,
                places[point.model],
                point.memory_bytes,
                100 * point.accuracy,
                None if low is None else 100 * (point.accuracy + low),
                None if high is None else 100 * (point.accuracy + high),
                point.decode_tokens_per_s,
                point.on_front,
            )
        )
    return (
        pareto(
            points,
            memory_name=MEMORY_NAMES.get(found.memory_is, found.memory_is),
            accuracy_name="Micro-averaged accuracy",
            interval_name="paired with its baseline:",
            width=width,
        ),
    )


def _forest(comparison: Comparison, width: float) -> Group:
    if not comparison.pairs:
        return "No two models answered the same questions."
    places = _places(comparison)
    rows = []
    for pair in comparison.pairs:
        overall = pair.overall
        verdict = verdict_kind(overall, margin=comparison.settings.margin)
        ends = (100 * overall.interval.low, 100 * overall.interval.high)
        rows.append(
            ForestRow(
                pair.variant,
                pair.baseline,
                places[pair.variant],
                100 * overall.difference,
                *ends,
                verdict,
                VERDICT_STATUS[verdict],
            )
        )
    return (
        forest(
            rows,
            margin=100 * comparison.settings.margin,
            confidence=comparison.settings.confidence,
            width=width,
        ),
    )


def _flips(comparison: Comparison, width: float) -> Group:
    rows = [
        FlipRow(
            pair.variant,
            pair.baseline,
            (
                pair.flips.both_right,
                pair.flips.lost,
                pair.flips.gained,
                pair.flips.moved,
                pair.flips.both_wrong,
            ),
        )
        for pair in comparison.pairs
        if pair.flips.num_answers
    ]
    if not rows:
        return "No two models answered the same questions by choice."
    return (flip_matrix(rows, width=width),)


def _kl(comparison: Comparison, width: float) -> Group:
    places = _places(comparison)
    points = [
        KlPoint(
            found.variant,
            places[found.variant],
            found.weight_bytes,
            found.mean,
            found.median,
            found.p99,
            found.same_top_share,
        )
        for found in comparison.divergences
        if found.weight_bytes
    ]
    if not points:
        return "No divergence was measured; `forge divergence` does."
    return (kl_bytes(points, width=width),)


def _errors(comparison: Comparison, width: float) -> Group:
    by_measure: dict[str, list[HeatBlock]] = {}
    for found in comparison.quantization_errors:
        if any(value is not None for row in found.values for value in row):
            by_measure.setdefault(found.measure, []).append(_heat_block(found))
    if not by_measure:
        return "No model here was quantized by a method that measures the error of each projection."
    return tuple(
        heat_map(blocks, name=_numbered("quantization-error", number), measure=measure, width=width)
        for number, (measure, blocks) in enumerate(by_measure.items(), start=1)
    )


def _heat_block(found: QuantizationErrors) -> HeatBlock:
    columns = tuple(
        tuple(row[index] for row in found.values) for index in range(len(found.projections))
    )
    return HeatBlock(found.model, found.layers, found.projections, columns)


def _layers(comparison: Comparison, width: float) -> Group:
    measured = [found for found in comparison.divergences if found.layers]
    if not measured:
        return "No divergence was measured layer by layer; `forge divergence` does."
    numbers = tuple(sorted({layer for found in measured for layer, _ in found.layers}))
    series = []
    for found in measured:
        by_layer = dict(found.layers)
        series.append(LayerSeries(found.variant, tuple(by_layer.get(n) for n in numbers)))
    places = _places(comparison)
    title = "Relative error of each block's output"
    reach = (max(error for found in measured for _, error in found.layers),)
    panels = [
        LayerPanel(
            title if start == 0 else f"{title}, continued",
            "‖Δ‖ / ‖reference‖",
            numbers,
            tuple(series[start : start + _LINES]),
            reach=reach,
            numbers=tuple(places[line.label] for line in series[start : start + _LINES]),
        )
        for start in range(0, len(series), _LINES)
    ]
    drawing = layer_panels(
        panels, name="divergence-by-layer", title="Divergence by layer", width=width
    )
    return (drawing,)


def _reliability(comparison: Comparison, width: float) -> Group:
    places = _places(comparison)
    plots = [
        ReliabilityPlot(
            found.model,
            places[found.model],
            found.calibration_error,
            tuple((b.low, b.high, b.num_answers, b.confidence, b.accuracy) for b in found.bins),
        )
        for found in comparison.reliability
        if found.bins
    ]
    if not plots:
        return "No model answered by choice, so there is no confidence to compare with."
    return (reliability(plots, width=width),)


def _merges(comparison: Comparison, width: float) -> Group:
    drawings: list[Drawing] = []
    for found in comparison.merges:
        panels = merge_panels(found)
        if panels:
            drawings.append(
                layer_panels(
                    panels,
                    name=_numbered("merge", len(drawings) + 1),
                    title=f"{found.model}: how models met ({found.method})",
                    width=width,
                )
            )
    return tuple(drawings) or "No model here is a merge that recorded what it measured."


def merge_panels(merge: Merge) -> list[LayerPanel]:
    """Return what a merge measured over its layers: conflicts, angles, norms; what there is.

    Args:
        merge: Its diagnostics.
    """
    layers = [layer for layer in merge.layers if layer.layer is not None]
    numbers = tuple(layer.layer for layer in layers if layer.layer is not None)
    panels = []
    conflicts = tuple(
        None if layer.conflict_share is None else 100 * layer.conflict_share for layer in layers
    )
    if any(value is not None for value in conflicts):
        line = LayerSeries("conflicts", conflicts)
        panels.append(LayerPanel("Positions where signs disagree", "%", numbers, (line,)))
    angles = [
        LayerSeries(
            f"{merge.inputs[first]} – {merge.inputs[second]}",
            tuple(_degrees(layer.cosines, place) for layer in layers),
        )
        for place, (first, second) in enumerate(merge.pairs)
    ]
    if not angles and any(layer.angle_degrees is not None for layer in layers):
        angles = [LayerSeries("angle", tuple(layer.angle_degrees for layer in layers))]
    if any(value is not None for line in angles for value in line.values):
        panels.append(LayerPanel("Angle between inputs", "degrees", numbers, tuple(angles)))
    norms = [
        LayerSeries(
            name,
            tuple(layer.norms[place] if place < len(layer.norms) else None for layer in layers),
        )
        for place, name in enumerate(merge.inputs)
    ]
    if any(value is not None for line in norms for value in line.values):
        panels.append(LayerPanel("Norm of each input", "", numbers, tuple(norms)))
    return panels


def _degrees(cosines: tuple[float, ...], place: int) -> float | None:
    if place >= len(cosines):
        return None
    return math.degrees(math.acos(min(1.0, max(-1.0, cosines[place]))))


def _numbered(name: str, number: int) -> str:
    return f"{name}-{number}"
