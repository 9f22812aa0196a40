"""How the models of a merge met, place by place, as its record has it."""

from __future__ import annotations

from collections.abc import Mapping

from forge.merge.diagnose import pairs
from forge.report.comparison.origin import Merge, MergeLayer
from forge.report.lineage import public_name
from forge.results.records import Json


def merge_diagnostics(label: str, method: str | None, manifest: Json | None) -> Merge | None:
    """Read what a merge measured.

    Args:
        label: Of the model.
        method: Of the merge, or ``None``.
        manifest: What its record keeps, or ``None``.

    Returns:
        The places, or ``None`` where nothing was measured.
    """
    if manifest is None or manifest.get("kind") != "merge":
        return None
    layers = [_layer(row) for row in _list(manifest.get("statistics")) if isinstance(row, Mapping)]
    measured = [
        layer
        for layer in layers
        if layer.norms or layer.kept_shares or layer.angle_degrees is not None
    ]
    if not measured:
        return None
    width = max(len(layer.norms) for layer in measured)
    return Merge(label, method or "", _inputs(manifest, width), pairs(width), tuple(measured))


def _inputs(manifest: Json, width: int) -> tuple[str, ...]:
    """Name what was measured: task vectors of the models, or all models, the base first."""
    names = tuple(public_name(str(name)) for name in _list(manifest.get("models")))
    inputs = [entry for entry in _list(manifest.get("inputs")) if isinstance(entry, Mapping)]
    bases = [public_name(str(each.get("model"))) for each in inputs if each.get("role") == "base"]
    if len(names) + len(bases[:1]) == width:
        # What turns one model into another, as slerp does, has no task vectors.
        return (*bases[:1], *names)
    if len(names) >= width:
        return names
    return (*names, *(f"input {number + 1}" for number in range(len(names), width)))


def _layer(row: Json) -> MergeLayer:
    layer, fallback = row.get("layer"), row.get("fallback")
    return MergeLayer(
        place=str(row.get("place")),
        layer=layer if isinstance(layer, int) else None,
        norms=_numbers(row.get("norms")),
        cosines=_numbers(row.get("cosines")),
        conflict_share=_number(row.get("conflict_share")),
        kept_shares=_numbers(row.get("kept_shares")),
        angle_degrees=_number(row.get("angle_degrees")),
        fallback=None if fallback is None else str(fallback),
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _numbers(values: object) -> tuple[float, ...]:
    return tuple(float(value) for value in _list(values) if isinstance(value, int | float))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
