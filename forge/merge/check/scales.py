"""Find quantized parents whose channels stand on scales of their own.

AWQ and SmoothQuant multiply a linear's input channels by a scale and divide the norm before it by
the same. The model computes what it did; its tensors, one by one, are not those of the model that
it was made of. A mean with them mixes two scales, and so does an expert behind another's norm.
Norms tell: they are small, are never quantized, and hardly move in fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.floats import decode
from forge.checkpoints.source import SafetensorsSource, TensorSource
from forge.core.dtypes import DTYPES
from forge.merge.check.report import Notebook
from forge.recipes.reference import ModelReference

_LARGEST_CHANGE: Final = 0.2  # relative to the norm vector's length
_NUM_NORMS: Final = 8


def note_moved_scales(
    checkpoints: Mapping[ModelReference, Checkpoint],
    notes: Notebook,
    *,
    read: Iterable[ModelReference],
) -> None:
    """Warn of quantized models whose norms are not those of the models beside them.

    Args:
        checkpoints: All models.
        notes: Receives the findings.
        read: Those of them whose weights enter the result.
    """
    sources = {reference: checkpoints[reference].source for reference in read}
    if all(type(source) is SafetensorsSource for source in sources.values()):
        # Most merges decode nothing, and need none of the formats.
        return
    from forge.checkpoints.dequantizing.source import DequantizingSource

    plain = [name for name, source in sources.items() if isinstance(source, SafetensorsSource)]
    for reference, source in sources.items():
        if not plain or not isinstance(source, DequantizingSource):
            continue
        change = _largest_change(source, sources[plain[0]])
        if change > _LARGEST_CHANGE:
            notes.warning(
                "moved-scales",
                f"Norms of '{reference}' differ from those of '{plain[0]}' by up to {change:.0%}: "
                "its quantizer (AWQ, SmoothQuant) moved scales between norms and weights, so its "
                "tensors cannot be merged one by one with another model's. Take the model that it "
                "was made of, or a quantization that moves none (NF4, GPTQ, FP8).",
            )


def _largest_change(one: TensorSource, other: TensorSource) -> float:
    """Return the largest relative difference of a norm among some of both models, or 0."""
    known = set(other.names())
    names = [name for name in one.names() if name in known and _is_norm(one, other, name)]
    largest = 0.0
    for name in names[:: max(1, len(names) // _NUM_NORMS)]:
        first, second = _values(one, name), _values(other, name)
        with np.errstate(all="ignore"):
            change = float(np.linalg.norm(first - second) / np.linalg.norm(second))
        largest = max(largest, change if np.isfinite(change) else 0.0)
    return largest


def _is_norm(one: TensorSource, other: TensorSource, name: str) -> bool:
    first, second = one.info(name), other.info(name)
    return (
        "norm" in name
        and name.endswith("weight")
        and len(first.shape) == 1
        and first.shape == second.shape
        and DTYPES[first.dtype].mergeable
        and DTYPES[second.dtype].mergeable
    )


def _values(source: TensorSource, name: str) -> npt.NDArray[np.float64]:
    return decode(source.read(name), source.info(name).dtype).astype(np.float64)
