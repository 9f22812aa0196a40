"""An inspection as text: summary, how it was made, table and picture by layer, tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from forge.cli.series import Panel, bar, panels_of, sparkline
from forge.cli.tables import count_text, plural, size_text, table
from forge.merge.catalog import METHODS
from forge.merge.diagnose import pairs

if TYPE_CHECKING:
    from forge.merge.diagnose import LayerRow
    from forge.verify.inspection import Inspection
    from forge.verify.manifest import Manifest

_MOST_PAIRS: Final = 3
"""Cosine columns of a table; of more pairs the mean is shown."""
_BAR: Final = 16


def inspection_text(inspection: Inspection, *, list_tensors: bool, width: int | None) -> str:
    """Return an inspection for reading.

    Args:
        inspection: What was found.
        list_tensors: Whether to list every tensor under its layer.
        width: Columns of the terminal; ``None`` wraps nothing.

    Returns:
        Many lines.
    """
    parts = [_summary(inspection)]
    if inspection.manifest is not None:
        parts += _origin(inspection.manifest, width)
    if any(row.norms for row in inspection.statistics):
        parts += [_statistics(inspection, width), _picture(inspection)]
    elif not list_tensors:
        parts.append(_shapes(inspection, width))
    if list_tensors:
        parts.append(_tensors(inspection, width))
    if inspection.notices:
        parts.append("\n".join(["Notices", *(f"  {text}" for text in inspection.notices)]))
    return "\n\n".join(filter(None, parts))


def _summary(inspection: Inspection) -> str:
    total = max(inspection.num_parameters, 1)
    dtypes = [
        name if count == total else f"{name} {count / total:.1%}"
        for name, count in inspection.dtypes.items()
    ]
    return "\n".join(
        [
            str(inspection.root),
            f"  {inspection.architecture or 'unknown architecture'}, "
            f"{plural(inspection.num_layers, 'layer')}, "
            f"{plural(inspection.num_tensors, 'tensor')}, "
            f"{count_text(inspection.num_parameters)} parameters",
            f"  {', '.join(dtypes)}, {size_text(inspection.num_bytes)} in "
            f"{plural(inspection.num_files, 'file')}",
        ]
    )


def _origin(manifest: Manifest, width: int | None) -> list[str]:
    recipe, engine = manifest.table("recipe"), manifest.table("engine")
    method = str(recipe.get("merge_method", "?"))
    row = next((known for known in METHODS if known.name == method), None)
    maker = str(engine.get("name", "forge"))
    version = engine.get("version", manifest.content.get("forge", "?"))
    lines = [
        f"Merged by {method}{f' ({row.title})' if row else ''}, {maker} {version}",
        *([f"  formula     {row.formula}"] if row else []),
        f"  recipe      {manifest.content.get('recipe_file') or '(built in memory)'}"
        + (f", seed {recipe.get('seed')}" if row is not None and row.random else ""),
        f"  parameters  {_parameters(recipe.get('parameters'))}",
        f"  content     {manifest.content_digest}",
    ]
    cells = []
    for item in manifest.items("inputs"):
        if not isinstance(item, Mapping):
            continue
        files = item.get("files")
        sizes = [file.get("bytes", 0) for file in files] if isinstance(files, list) else []
        cells.append(
            (
                str(item.get("role", "?")),
                str(item.get("revision") or "local"),
                size_text(sum(sizes)),
                str(item.get("model", "?")),
            )
        )
    inputs = table(("ROLE", "REVISION", "BYTES", "MODEL"), cells, right=("BYTES",), width=width)
    return ["\n".join(lines), inputs if cells else ""]


def _parameters(parameters: object) -> str:
    if not isinstance(parameters, Mapping) or not parameters:
        return "none for the whole merge"
    return ", ".join(f"{name}={_value(value)}" for name, value in parameters.items())


def _value(value: object) -> str:
    """Write a parameter briefly: ``[0, 0.5] of self_attn | 0.5`` for one with filters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return " | ".join(
            _value(item.get("value")) + (f" of {item['filter']}" if "filter" in item else "")
            for item in value
        )
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)


def _are_task_vectors(inspection: Inspection) -> bool:
    """Tell whether the norms are of differences to a base, or of the models themselves."""
    if inspection.manifest is None:
        return False
    recipe, models = inspection.manifest.table("recipe"), inspection.manifest.models
    method = str(recipe.get("merge_method"))
    if recipe.get("base_model") is None or (method in METHODS and METHODS[method].base_is_merged):
        return False
    # A method that interpolates between the base and a model measures both of them.
    return _num_measured(inspection) <= max(len(models), 1)


def _num_measured(inspection: Inspection) -> int:
    return max((len(row.norms) for row in inspection.statistics), default=0)


def legend(inspection: Inspection) -> list[str]:
    """Return which number stands for which model.

    Args:
        inspection: What was found.

    Returns:
        One line per model.
    """
    if inspection.manifest is None:
        return []
    models, count = inspection.manifest.models, _num_measured(inspection)
    base = inspection.manifest.table("recipe").get("base_model")
    if count == len(models) + 1 and base is not None:
        models = (str(base), *models)
    if len(models) != count:
        # A stack takes its layers from different models, so a number has no one meaning.
        return [f"Numbers 1 to {count} are the models of each slice, in the recipe's order."]
    return [f"{number} = {model}" for number, model in enumerate(models, start=1)]


def panels(inspection: Inspection) -> tuple[Panel, ...]:
    """Return what was measured over the layers.

    Args:
        inspection: What was found.

    Returns:
        The panels; none for a checkpoint without statistics.
    """
    rows = [row for row in inspection.statistics if row.place.layer >= 0]
    whose = "task vectors" if _are_task_vectors(inspection) else "models"
    return panels_of(rows, norm_title=f"norm of the {whose}")


def _statistics(inspection: Inspection, width: int | None) -> str:
    rows = inspection.statistics
    num_models = max(len(row.norms) for row in rows)
    couples = pairs(num_models)
    sign = "|δ|" if _are_task_vectors(inspection) else "|x|"
    heads = ["PLACE", "TENSORS", *(f"{sign} {number + 1}" for number in range(num_models))]
    if 0 < len(couples) <= _MOST_PAIRS:
        heads += [f"COS {b + 1}·{a + 1}" for a, b in couples]
    elif couples:
        heads.append("MEAN COS")
    has_conflicts = any(row.conflict_share is not None for row in rows)
    num_kept = max(len(row.kept_shares) for row in rows)
    has_angles = any(row.angle_degrees is not None for row in rows)
    heads += ["CONFLICT"] * has_conflicts
    heads += [f"KEPT {number + 1}" for number in range(num_kept)]
    heads += ["ANGLE"] * has_angles
    notes = list(dict.fromkeys(name for row in rows for name in row.notes))
    heads += [name.upper() for name in notes]
    has_fallbacks = any(row.num_fallbacks for row in rows)
    heads += ["FALLBACK"] if has_fallbacks else [f"{sign} 1"[:3]]
    longest = max((row.norms[0] for row in rows if row.norms), default=0.0) or 1.0
    cells = []
    for row in rows:
        line = [row.place.label, str(row.num_tensors)]
        line += [_shown(row.norms, number) for number in range(num_models)]
        if 0 < len(couples) <= _MOST_PAIRS:
            line += [_shown(row.cosines, number) for number in range(len(couples))]
        elif couples:
            line.append(f"{sum(row.cosines) / len(row.cosines):.3f}" if row.cosines else "–")
        line += [_percent(row.conflict_share)] * has_conflicts
        line += [
            _percent(row.kept_shares[number] if number < len(row.kept_shares) else None)
            for number in range(num_kept)
        ]
        line += ["–" if row.angle_degrees is None else f"{row.angle_degrees:.2f}°"] * has_angles
        line += [f"{row.notes[name]:.4g}" if name in row.notes else "–" for name in notes]
        drawn = bar(row.norms[0] / longest, _BAR) if row.norms else ""
        line.append(_fallback(row) if has_fallbacks else drawn)
        cells.append(line)
    return "\n".join([*legend(inspection), "", table(heads, cells, right=heads[1:-1], width=width)])


def _fallback(row: LayerRow) -> str:
    if not row.num_fallbacks:
        return ""
    return f"{row.num_fallbacks} of {row.num_tensors}: {row.fallback}"


def _shown(values: tuple[float, ...], number: int) -> str:
    return f"{values[number]:.4g}" if number < len(values) else "–"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _picture(inspection: Inspection) -> str:
    drawn = panels(inspection)
    if not drawn:
        return ""
    layers = [row.place.layer for row in inspection.statistics if row.place.layer >= 0]
    lines = [f"Layers {layers[0]} to {layers[-1]}"]
    for panel in drawn:
        lines.append(f"  {panel.title}, from {panel.low:.3g} to {panel.high:.3g}")
        lines += [
            f"    {curve.label:>3}  {sparkline(curve, low=panel.low, high=panel.high)}"
            for curve in panel.curves
        ]
    return "\n".join(lines)


def _shapes(inspection: Inspection, width: int | None) -> str:
    cells = [
        (
            layer.place.label,
            str(len(layer.tensors)),
            count_text(layer.num_parameters),
            size_text(layer.num_bytes),
            ", ".join(layer.dtypes),
        )
        for layer in inspection.layers
    ]
    heads = ("PLACE", "TENSORS", "PARAMETERS", "BYTES", "DTYPES")
    return table(heads, cells, right=heads[1:4], width=width)


def _tensors(inspection: Inspection, width: int | None) -> str:
    cells = [
        (
            layer.place.label if number == 0 else "",
            tensor.dtype,
            " × ".join(map(str, tensor.shape)) or "scalar",
            tensor.name,
        )
        for layer in inspection.layers
        for number, tensor in enumerate(layer.tensors)
    ]
    return table(("PLACE", "DTYPE", "SHAPE", "TENSOR"), cells, width=width)
