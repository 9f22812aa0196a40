"""Write GGUF files as llama.cpp's converter does: with gguf's writer, names and quantizers.

What the converter does to weights on the way (it is no library) is written here from its
description: rows reordered, matrices transposed, 1 added to norms, experts stacked. The names are
those of gguf's own table, so that forge's table is tested against another one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.weight")
_PERMUTED = ("llama", "granite", "smollm3")


def pairs_from_halves(values: Array, heads: int) -> Array:
    """Order the rows of q or k as llama.cpp turns them."""
    rest = values.shape[1:]
    return values.reshape(heads, 2, -1, *rest).swapaxes(1, 2).reshape(-1, *rest)


def parts_from_heads(values: Array, heads: int) -> Array:
    """Put all of q before all of k before all of v, from rows that are ordered by head."""
    rest = values.shape[1:]
    return values.reshape(heads, 3, -1, *rest).swapaxes(0, 1).reshape(-1, *rest)


def parts_from_groups(values: Array, heads: int, groups: int) -> Array:
    """Do the same for rows that are ordered by group: some of q, one of k, one of v."""
    rest = values.shape[1:]
    grouped = values.reshape(groups, heads // groups + 2, -1, *rest)
    parts = (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:])
    return np.concatenate([part.reshape(-1, *rest) for part in parts])


def gguf_tensors(
    architecture: str, weights: Mapping[str, Array], *, heads: int, groups: int, layers: int
) -> dict[str, Array]:
    """Return a model's weights as the converter names and changes them."""
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(number, layers)
    tensors: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}
    for name, original in weights.items():
        values = np.asarray(original, np.float32)
        if match := _EXPERT.fullmatch(name):
            stacks.setdefault(f"{match[1]}.experts.{match[3]}", {})[int(match[2])] = values
            continue
        if architecture in _PERMUTED and ".q_proj." in name:
            values = pairs_from_halves(values, heads)
        if architecture in _PERMUTED and ".k_proj." in name:
            values = pairs_from_halves(values, groups)
        if architecture in ("bloom", "gptneox") and "query_key_value" in name:
            values = parts_from_heads(values, heads)
        if architecture == "falcon" and "query_key_value" in name:
            values = parts_from_groups(values, heads, groups)
        if architecture == "gpt2" and name.endswith(
            ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        ):
            values = values.T
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + np.float32(1)
        tensors[_name(table, name)] = np.ascontiguousarray(np.squeeze(values))
    for name, experts in stacks.items():
        stacked = np.stack([experts[expert] for expert in range(len(experts))])
        tensors[_name(table, f"{_older(name)}.weight")] = stacked
    return tensors


def _older(name: str) -> str:
    # The converter calls Mixtral's stacks so before it looks them up.
    return name.replace("model.layers", "layers").replace(
        "block_sparse_moe.experts", "feed_forward.experts"
    ) if "block_sparse_moe" in name else name  # fmt: skip


def _name(table: gguf.TensorNameMap, name: str) -> str:
    for spelling in (name, name.removeprefix("transformer.")):
        found = table.get_name(spelling, try_suffixes=(".weight", ".bias"))
        if found is not None:
            return found
    raise KeyError(name)


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, object],
    *,
    kind: str | Callable[[str, Array], str] = "F32",
    **settings: Any,
) -> None:
    """Write a file.

    Args:
        path: The file; of a split model, what its pieces are named after.
        architecture: ``general.architecture``.
        tensors: Values by name in the file.
        metadata: Values by key, which begins with a dot where the architecture's name belongs.
        kind: Type of the matrices, or what tells it; vectors and short rows are F32.
        settings: Of gguf's writer.
    """
    writer = gguf.GGUFWriter(path, architecture, **settings)
    for key, value in metadata.items():
        add_value(writer, architecture + key if key.startswith(".") else key, value)
    for name, values in tensors.items():
        wanted = kind if isinstance(kind, str) else kind(name, values)
        add_tensor(writer, name, values, wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(writer: gguf.GGUFWriter, name: str, values: Array, kind: str) -> None:
    """Add a tensor in a type that gguf can write, F32 where its rows are not whole blocks."""
    number = gguf.GGMLQuantizationType[kind]
    elements, _ = gguf.GGML_QUANT_SIZES[number]
    if values.ndim < 2 or values.shape[-1] % elements or kind == "F32":
        writer.add_tensor(name, values)
        return
    with np.errstate(all="ignore"):
        packed = gguf.quants.quantize(values, number)
    if kind == "F16":
        writer.add_tensor(name, packed)
    else:
        writer.add_tensor(name, packed, raw_dtype=number)


def add_value(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    """Add a metadata value of the type that converters give it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        raise TypeError(f"{key}: {value!r}")
