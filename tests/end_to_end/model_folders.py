"""Models for whole runs: three folders beside each other, small, or large enough to be stopped.

Values are bfloat16 patterns of one binade, drawn as bytes, because a hundred million normal
numbers would take longer to draw than to merge.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.factory import tiny_checkpoint, tiny_config, tiny_shapes, write_safetensors

NAMES = ("base", "med", "chat")
RECIPE = """\
merge_method: dare_ties
base_model: ./base
models:
  - model: ./med
    parameters:
      density: 0.5
      weight: 0.5
  - model: ./chat
    parameters:
      density: 0.5
      weight: 0.5
dtype: bfloat16
"""


def write_small(root: Path) -> None:
    """Write ``base``, ``med`` and ``chat``, two layers each, and ``recipe.yaml``."""
    for number, name in enumerate(NAMES):
        tiny_checkpoint(root / name, tune=number or None)
    (root / "recipe.yaml").write_text(RECIPE)


def write_large(root: Path, *, layers: int = 24, hidden: int = 512, inner: int = 1024) -> None:
    """Write the same three models with tens of millions of parameters, and ``recipe.yaml``."""
    config = tiny_config(layers=layers, hidden=hidden, vocab=2048)
    config["intermediate_size"] = inner
    for number, name in enumerate(NAMES):
        folder = root / name
        folder.mkdir(parents=True)
        rows: dict[str, tuple[str, Sequence[int], bytes]] = {
            tensor: ("BF16", shape, _noise(tensor, shape, seed=number))
            for tensor, shape in tiny_shapes(config).items()
        }
        write_safetensors(folder / "model.safetensors", rows)
        (folder / "config.json").write_text(json.dumps(config))
    (root / "recipe.yaml").write_text(RECIPE)


def _noise(name: str, shape: tuple[int, ...], *, seed: int) -> bytes:
    """Return random signs and mantissas in [1/128, 1/64)."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    bits = np.frombuffer(generator.bytes(2 * int(np.prod(shape))), np.uint16)
    return ((bits & np.uint16(0x807F)) | np.uint16(0x3C00)).tobytes()


def write_sparse(root: Path, shapes: Mapping[str, tuple[int, ...]], *, shard_bytes: int) -> None:
    """Write bfloat16 weights that take no room on the disk: headers, and holes that read as zeros.

    Args:
        root: The model's folder; made when absent.
        shapes: Its tensors.
        shard_bytes: Most tensor bytes in a file.
    """
    root.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += nbytes
    weight_map: dict[str, str] = {}
    for number, part in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        table: dict[str, object] = {}
        position = 0
        for name, shape in part.items():
            end = position + 2 * int(np.prod(shape))
            table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
            position = end
            weight_map[name] = file
        text = json.dumps(table).encode()
        text += b" " * (-len(text) % 8)
        with (root / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + position)
    index = {"metadata": {}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))
