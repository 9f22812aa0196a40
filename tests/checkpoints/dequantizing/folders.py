"""Tiny quantized checkpoints written bit by bit, and what they stand for in plain arithmetic."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.recipes.reference import ModelReference
from tests.factory import bf16_bits, from_bytes, to_bytes, write_safetensors

MODULE = "model.layers.0.self_attn.q_proj"
WEIGHT = f"{MODULE}.weight"
Tensors = dict[str, tuple[str, Sequence[int], bytes]]
Floats = npt.NDArray[np.float64]


def stored(dtype: str, values: npt.ArrayLike) -> tuple[str, Sequence[int], bytes]:
    """Return a tensor as ``write_safetensors`` takes it; ``BF16`` is rounded from numbers."""
    array = np.asarray(values)
    if dtype == "BF16":
        return dtype, array.shape, to_bytes(array, "BF16")
    kinds = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "I32": np.int32,
             "I16": np.int16, "I8": np.int8}  # fmt: skip
    return dtype, array.shape, np.ascontiguousarray(array, kinds.get(dtype, np.uint8)).tobytes()


def write(
    root: Path,
    tensors: Mapping[str, tuple[str, Sequence[int], bytes]],
    declared: Mapping[str, object] | None,
    **config: object,
) -> Path:
    """Write a checkpoint of one norm and these tensors."""
    root.mkdir(exist_ok=True)
    norm = stored("BF16", np.ones(4))
    write_safetensors(root / "model.safetensors", {"model.norm.weight": norm, **tensors})
    content: dict[str, object] = {
        "model_type": "llama", "num_hidden_layers": 1, "torch_dtype": "bfloat16", **config,
    }  # fmt: skip
    if declared is not None:
        content["quantization_config"] = declared
    (root / "config.json").write_text(json.dumps(content))
    return root


def opened(root: Path) -> Checkpoint:
    """Open a checkpoint as plain weights."""
    return open_checkpoint(ModelReference(str(root)))


def read(root: Path, name: str = WEIGHT) -> npt.NDArray[np.floating]:
    """Return a tensor's numbers, decoded."""
    source = opened(root).source
    info = source.info(name)
    return from_bytes(source.read(name), info.dtype, info.shape)


def rounded(values: Floats, *dtypes: str) -> npt.NDArray[np.float32]:
    """Round exact numbers to one type after the other."""
    for dtype in dtypes:
        if dtype == "F16":
            values = values.astype(np.float16).astype(np.float64)
        elif dtype == "BF16":
            bits = bf16_bits(values).astype(np.uint32) << 16
            values = bits.view(np.float32).astype(np.float64)
    return values.astype(np.float32)


def words(codes_RC: npt.NDArray[np.integer], bits: int) -> npt.NDArray[np.int32]:
    """Write rows of codes one bit after the other, lowest first, and fill up whole words."""
    rows = []
    for row in codes_RC:
        number = sum(int(code) << (place * bits) for place, code in enumerate(row))
        num_words = -(-len(row) * bits // 32)
        rows.append(np.frombuffer(number.to_bytes(4 * num_words, "little"), np.int32))
    return np.stack(rows)
