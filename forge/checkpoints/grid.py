"""Warn of weights that are stored in full precision and lie on a quantized grid.

Somebody dequantized such a model and saved it. It merges and quantizes like any other, so nothing
would say that most of its precision is gone. A few tensors are sampled, a few pages of each, and
only of files that are here: a check stays a matter of milliseconds.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import numpy as np
import numpy.typing as npt

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.floats import decode
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import SafetensorsSource
from forge.core.dtypes import DTYPES
from forge.formats.grids import Grid, grid_of
from forge.formats.numbers import ARRAY_TYPES, FLOATS

_TENSORS: Final = 4
_ROWS: Final = 8
_COLUMNS: Final = 2048
_BLOCK: Final = (128, 32)
_IN_A_LAYER: Final = re.compile(r"\.[0-9]+\..*(weight|proj)$")


def grid_warning(checkpoint: Checkpoint) -> str | None:
    """Return what is to be said of a model whose weights lie on a grid.

    Args:
        checkpoint: The model. One that is decoded, merged with an adapter or on the Hub says
            nothing: its numbers are known to be computed, or are not here.

    Returns:
        A warning, or ``None``.
    """
    source = checkpoint.source
    if not isinstance(source, SafetensorsSource):
        return None
    names = _chosen(source)
    found = {name: grid for name in names if (grid := _grid_of(source, name)) is not None}
    if not found:
        return None
    kind, count = Counter(grid.name for grid in found.values()).most_common(1)[0]
    if 2 * count < len(names):
        return None
    name = next(name for name, grid in found.items() if grid.name == kind)
    where = f"{count} of {len(names)} tensors that were looked at, such as '{name}'"
    if found[name].name.startswith("ternary"):
        return (
            f"The weights of '{checkpoint.reference}' are ternary: one magnitude of either sign, "
            f"or 0 ({where}). A merge or a quantization leaves these three values, and the model "
            "may not work beside them; BitNet models are merged from their master weights."
        )
    dtype = DTYPES[source.info(name).dtype].torch_name
    return (
        f"'{checkpoint.reference}' is stored in {dtype}, but its weights lie on a grid of {kind} "
        f"({where}): it was dequantized, and what quantization lost is not there. Take the "
        "original model, if you can get it."
    )


def _chosen(source: SafetensorsSource) -> list[str]:
    """Return matrices of layers, evenly spread over the files."""
    fitting = [name for name in source.names() if _is_fit(source.info(name))]
    step = max(1, len(fitting) // _TENSORS)
    return fitting[step // 2 :: step][:_TENSORS]


def _is_fit(info: TensorInfo) -> bool:
    return (
        len(info.shape) in (2, 3)
        and info.dtype in FLOATS
        and min(info.shape[-2:]) >= _BLOCK[1]
        and info.numel >= _BLOCK[0] * _BLOCK[1]
        and _IN_A_LAYER.search(info.name) is not None
    )


def _grid_of(source: SafetensorsSource, name: str) -> Grid | None:
    info = source.info(name)
    num_columns = info.shape[-1]
    bits_RC = np.frombuffer(source.read(name), ARRAY_TYPES[info.dtype]).reshape(-1, num_columns)
    # From the middle, at the edges of the largest blocks that formats have.
    row = bits_RC.shape[0] // 2 // 128 * 128
    column = max(0, min(num_columns // 2 // 128 * 128, num_columns - _BLOCK[1]))
    rows = bits_RC[row : row + _ROWS, :_COLUMNS]
    block = bits_RC[row : row + _BLOCK[0], column : column + _BLOCK[1]]
    return grid_of(_singles(rows, info.dtype), _singles(block, info.dtype), dtype=info.dtype)


def _singles(bits: npt.NDArray[np.generic], dtype: str) -> npt.NDArray[np.float32]:
    packed = np.ascontiguousarray(bits)
    values = decode(packed.reshape(-1).view(np.uint8).data, dtype)
    return values.astype(np.float32, copy=False).reshape(bits.shape)
