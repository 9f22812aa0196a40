"""Error by layer and projection, as a quantization's manifest has it.

AWQ measures how far each linear's outputs are from the source's on the calibration tokens. Methods
that do not watch a model run measure nothing; for those, ``forge divergence`` has the error of each
decoder block.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from forge.report.comparison.origin import QuantizationErrors
from forge.results.records import Json

MEASURE: Final = "relative error of the outputs on the calibration tokens"
_MODULE: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")
_ORDER: Final = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "gate_up_proj",
    "down_proj",
)  # fmt: skip
"""In which a block computes; others follow by name."""


def quantization_errors(label: str, manifest: Json | None) -> QuantizationErrors | None:
    """Read the errors of a variant.

    Args:
        label: Of the model.
        manifest: What its record keeps, or ``None``.

    Returns:
        The errors, or ``None`` where its method measured none.
    """
    modules = (manifest or {}).get("modules")
    if not isinstance(modules, Mapping):
        return None
    cells: dict[tuple[int, str], float] = {}
    names: dict[tuple[int, str], str] = {}
    for name, record in modules.items():
        place = _MODULE.search(str(name))
        error = record.get("error") if isinstance(record, Mapping) else None
        if place is not None and isinstance(error, int | float) and math.isfinite(error):
            key = (int(place[1]), place[2])
            cells[key], names[key] = float(error), str(name)
    if not cells:
        return None
    layers = tuple(sorted({layer for layer, _ in cells}))
    projections = tuple(sorted({projection for _, projection in cells}, key=_rank))
    return QuantizationErrors(
        model=label,
        measure=MEASURE,
        layers=layers,
        projections=projections,
        values=tuple(
            tuple(cells.get((layer, projection)) for projection in projections) for layer in layers
        ),
        worst=names[max(sorted(cells), key=lambda key: cells[key])],
    )


def _rank(projection: str) -> tuple[int, str]:
    last = projection.rpartition(".")[2]
    return (_ORDER.index(last) if last in _ORDER else len(_ORDER), projection)
