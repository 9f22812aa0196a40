"""An inspection as text: summary, how it was made, table and picture by layer, tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forge.cli.origin_text import origin_text
from forge.cli.statistics_text import picture, statistics_table
from forge.cli.tables import count_text, plural, size_text, table

if TYPE_CHECKING:
    from forge.verify.inspection import Inspection


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
        parts += origin_text(inspection.manifest, width)
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
    total = max(inspection.num_elements, 1)
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
    is_packed = inspection.num_elements != inspection.num_parameters
    heads = ("PLACE", "TENSORS", "ELEMENTS" if is_packed else "PARAMETERS", "BYTES", "DTYPES")
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
