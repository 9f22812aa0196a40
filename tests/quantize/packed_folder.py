"""Tiny quantized checkpoints, written with neither forge's sink nor its runner."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forge.formats.catalog import format_row, load_format
from forge.formats.contract import QuantizedWeight, Scheme
from forge.quantize.methods.rtn import quantize_rtn
from tests.factory import read_values, tiny_checkpoint, to_bytes, write_safetensors

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_NAMES = {"int16": "I16", "int32": "I32", "int64": "I64", "float16": "F16"}


def packed_folder(
    root: Path,
    layout: str,
    *,
    scheme: Scheme,
    kept: Sequence[str] = (),
    dtype: str = "BF16",
    hidden: int = 64,
    tie: bool = False,
    change: Callable[[str, QuantizedWeight], None] | None = None,
) -> Path:
    """Write a Llama of two layers whose projections are rounded to nearest.

    Args:
        root: The folder to make.
        layout: The catalog's name of the format.
        scheme: Bits and groups.
        kept: Modules to leave in full precision.
        dtype: Of all other tensors.
        hidden: Width.
        tie: Whether the head is the embedding.
        change: Changes a weight in place, by module, before it is packed.
    """
    tiny_checkpoint(root, hidden=hidden, dtype=dtype, tie=tie)
    module = load_format(layout)
    rows: dict[str, tuple[str, Sequence[int], bytes]] = {}
    for name, values in read_values(root).items():
        owner = name.removesuffix(".weight")
        if owner in kept or not owner.endswith(PROJECTIONS):
            rows[name] = (dtype, values.shape, to_bytes(values, dtype))
            continue
        weight = quantize_rtn(np.asarray(values, np.float32), scheme)
        if change is not None:
            change(owner, weight)
        for suffix, array in module.pack(weight).items():
            rows[f"{owner}.{suffix}"] = (_NAMES[array.dtype.name], array.shape, array.tobytes())
    # Largest elements first, and else as they come: what every writer of safetensors does.
    sizes = {"I64": 8, "I32": 4, "F32": 4}
    ordered = dict(sorted(rows.items(), key=lambda row: -sizes.get(row[1][0], 2)))
    write_safetensors(root / "model.safetensors", ordered)
    config = json.loads((root / "config.json").read_text())
    unconverted = ("lm_head", *kept) if format_row(layout).names_head else kept
    config["quantization_config"] = module.quantization_config(scheme, unconverted)
    (root / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return root


def dequantized_folder(root: Path, weights: Mapping[str, QuantizedWeight]) -> Path:
    """Write a packed folder's model with its weights multiplied out in float16, beside it.

    Args:
        root: The packed folder; its other tensors are float16.
        weights: Its quantized weights by module.
    """
    plain = root.with_name("plain")
    plain.mkdir()
    rows = {
        name: row
        for name, row in raw_tensors(root).items()
        if name.rpartition(".")[0] not in weights
    }
    for name, weight in weights.items():
        size = weight.scheme.group_size
        zeros = np.repeat(weight.zeros_OG, size, axis=1).astype(np.float16)
        values = (weight.codes_OI - zeros) * np.repeat(weight.scales_OG, size, axis=1)
        rows[f"{name}.weight"] = ("F16", values.shape, values.tobytes())
    write_safetensors(plain / "model.safetensors", rows)
    config = json.loads((root / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    return plain


def raw_tensors(root: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and bytes of every tensor of a folder, read by the header alone."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for path in sorted(root.glob("*.safetensors")):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, row in json.loads(content[8:start]).items():
            if name != "__metadata__":
                first, last = row["data_offsets"]
                data = content[start + first : start + last]
                found[name] = (row["dtype"], tuple(row["shape"]), data)
    return found


def as_array(row: tuple[str, tuple[int, ...], bytes]) -> NDArray[np.generic]:
    """Return a raw tensor of whole numbers or float16 as an array."""
    dtype, shape, data = row
    kinds = {short: np.dtype(name) for name, short in _NAMES.items()}
    return np.frombuffer(data, kinds[dtype]).reshape(shape)
