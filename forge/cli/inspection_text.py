"""An inspection as text: summary, how it was made, table and picture by layer, tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from forge.cli.statistics_text import picture, statistics_table
from forge.cli.tables import count_text, plural, size_text, table
from forge.merge.catalog import METHODS

if TYPE_CHECKING:
    from forge.verify.inspection import Inspection
    from forge.verify.manifest import Manifest


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
        parts += [statistics_table(inspection, width=width), picture(inspection)]
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
        *_parameter_lines(recipe),
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


def _parameter_lines(recipe: Mapping[str, object]) -> list[str]:
    """List what holds for the whole merge, then what each model has of its own."""
    models = recipe.get("models")
    own = {
        str(entry.get("model")): entry["parameters"]
        for entry in (models if isinstance(models, list) else [])
        if isinstance(entry, Mapping) and isinstance(entry.get("parameters"), Mapping)
    }
    shared = recipe.get("parameters")
    shared = shared if isinstance(shared, Mapping) else {}
    # A default that every model replaces would only mislead.
    replaced = set.intersection(*(set(values) for values in own.values())) if own else set()
    kept = {name: value for name, value in shared.items() if name not in replaced}
    lines = [f"  parameters  {_parameters(kept) or 'none for the whole merge'}"]
    return lines + [
        f"              {model}: {_parameters(values)}" for model, values in own.items()
    ]


def _parameters(parameters: Mapping[str, object]) -> str:
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
