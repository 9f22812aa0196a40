"""Ways in which a model's folder can be wrong; each takes the folder and spoils it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.factory import from_bytes, header_bytes, tiny_checkpoint, to_bytes, write_safetensors

Damage = Callable[[Path], object]
Rows = dict[str, tuple[str, Sequence[int], bytes]]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"


def load_rows(path: Path) -> Rows:
    """Return (dtype, shape, bytes) of all tensors of a file, by name."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8:start])
    table.pop("__metadata__", None)
    rows: Rows = {}
    for name, entry in table.items():
        begin, end = entry["data_offsets"]
        rows[name] = (entry["dtype"], entry["shape"], raw[start + begin : start + end])
    return rows


def rewritten(change: Callable[[Rows], object]) -> Damage:
    """Change the tensors of the weight file; its header stays true."""

    def spoil(model: Path) -> None:
        rows = load_rows(model / WEIGHTS)
        change(rows)
        write_safetensors(model / WEIGHTS, rows)

    return spoil


def header(change: Callable[[dict[str, dict[str, object]]], object]) -> Damage:
    """Change what the weight file's header says, and leave its data."""

    def spoil(model: Path) -> None:
        raw = (model / WEIGHTS).read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        table = json.loads(raw[8:start])
        change(table)
        (model / WEIGHTS).write_bytes(header_bytes(table) + raw[start:])

    return spoil


def overlapping(name: str) -> Damage:
    """Let a tensor begin one row earlier, in its neighbour."""

    def change(table: dict[str, dict[str, object]]) -> None:
        entry = table[name]
        (rows, columns), (begin, end) = entry["shape"], entry["data_offsets"]  # type: ignore[misc]
        entry.update(shape=[rows + 1, columns], data_offsets=[begin - 2 * columns, end])

    return header(change)


def raw_header(text: bytes, *, length: int | None = None) -> Damage:
    """Replace the header of the weight file by any bytes."""

    def spoil(model: Path) -> None:
        raw = (model / WEIGHTS).read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        size = len(text) if length is None else length
        (model / WEIGHTS).write_bytes(size.to_bytes(8, "little") + text + raw[start:])

    return spoil


def cut(num_bytes: int) -> Damage:
    """Cut the end of the weight file off."""

    def spoil(model: Path) -> None:
        path = model / WEIGHTS
        os.truncate(path, path.stat().st_size - num_bytes)

    return spoil


def written(name: str, content: str | bytes) -> Damage:
    """Write a file of the folder."""

    def spoil(model: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (model / name).write_bytes(data)

    return spoil


def without(*names: str) -> Damage:
    """Delete files of the folder."""

    def spoil(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return spoil


def config(changes: Mapping[str, object]) -> Damage:
    """Set keys of config.json."""

    def spoil(model: Path) -> None:
        content = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(content | dict(changes)))

    return spoil


def remade(**arguments: object) -> Damage:
    """Write another tiny model in its place."""

    def spoil(model: Path) -> None:
        for path in model.iterdir():
            path.unlink()
        tiny_checkpoint(model, **arguments)  # type: ignore[arg-type]

    return spoil


def sharded(change: Callable[[dict[str, str], Path], object]) -> Damage:
    """Split the model in two files, and change the index's weight_map (or the files)."""

    def spoil(model: Path) -> None:
        remade(tune=1, shards=2)(model)
        index = json.loads((model / INDEX).read_text())
        change(index["weight_map"], model)
        (model / INDEX).write_text(json.dumps(index))

    return spoil


def point_everything(name: str) -> Callable[[dict[str, str], Path], None]:
    """Let an index name one file for all tensors."""

    def change(weight_map: dict[str, str], model: Path) -> None:
        weight_map.update(dict.fromkeys(weight_map, name))

    return change


def value(name: str, number: float) -> Damage:
    """Put one number into a tensor."""

    def change(rows: Rows) -> None:
        dtype, shape, data = rows[name]
        values = np.array(from_bytes(data, dtype, shape))
        values.flat[3] = number
        data = values.astype(np.float32).view(np.uint32) >> 16
        rows[name] = (dtype, shape, data.astype(np.uint16).tobytes())

    return rewritten(change)


def scaled(factor: float) -> Damage:
    """Multiply all weights."""

    def change(rows: Rows) -> None:
        for name, (dtype, shape, data) in list(rows.items()):
            rows[name] = (dtype, shape, to_bytes(from_bytes(data, dtype, shape) * factor, dtype))

    return rewritten(change)


def everywhere(spoil: Damage) -> Damage:
    """Spoil all models beside this one too."""

    def spoil_all(model: Path) -> None:
        for config_file in sorted(model.parent.glob("*/config.json")):
            spoil(config_file.parent)

    return spoil_all


def numbered(name: str) -> Damage:
    """Add a tensor of a whole number, which differs from model to model."""

    def spoil(model: Path) -> None:
        number = len(model.name).to_bytes(8, "little") + model.name.encode().ljust(8)
        rewritten(lambda rows: rows.update({name: ("I64", [2], number)}))(model)

    return spoil


def retyped(names: str, dtype: str, itemsize: int) -> Damage:
    """Say that the tensors whose name ends so are of another type, with zeros as values."""

    def change(rows: Rows) -> None:
        for name, (_, shape, _) in list(rows.items()):
            if name.endswith(names):
                rows[name] = (dtype, shape, bytes(int(np.prod(shape)) * itemsize))

    return rewritten(change)


def packed(suffixes: Mapping[str, str], declared: Mapping[str, object] | None) -> Damage:
    """Replace each linear's weight by tensors of codes, as a quantizer does.

    Args:
        suffixes: dtype by suffix behind the linear's name.
        declared: ``quantization_config``, or ``None`` to leave it out of config.json.
    """
    sizes = {"I32": 4, "F16": 2, "U8": 1, "F32": 4, "F8_E4M3": 1}

    def change(rows: Rows) -> None:
        for name in [name for name in rows if name.endswith("_proj.weight")]:
            _, shape, _ = rows.pop(name)
            for suffix, dtype in suffixes.items():
                rows[name.removesuffix(".weight") + suffix] = (
                    dtype, shape, bytes(int(np.prod(shape)) * sizes[dtype]),
                )  # fmt: skip

    def spoil(model: Path) -> None:
        rewritten(change)(model)
        if declared is not None:
            config({"quantization_config": declared})(model)

    return spoil


def replaced_by_link(name: str, target: str) -> Damage:
    """Replace a file by a link."""

    def spoil(model: Path) -> None:
        (model / name).unlink()
        (model / name).symlink_to(target)

    return spoil


def replaced_by_pipe(model: Path) -> None:
    """Replace the weights by a pipe, on which a careless reader waits for ever."""
    (model / WEIGHTS).unlink()
    os.mkfifo(model / WEIGHTS)


def emptied_to(*names: str) -> Damage:
    """Leave config.json, and write files of four bytes under these names."""

    def spoil(model: Path) -> None:
        (model / WEIGHTS).unlink()
        for name in names:
            (model / name).write_bytes(b"\x80\x04K\x05")

    return spoil
