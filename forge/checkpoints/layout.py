"""Decide where every output tensor will lie, before any of it exists.

All shapes are known from the plan, so file names, headers and offsets are too: they are
written first, and any worker then writes any part of any tensor in place. The layout
depends on the tensors, their order and the shard size alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final

from forge.checkpoints.header import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    METADATA_KEY,
    TensorInfo,
)
from forge.checkpoints.index import INDEX_FILE
from forge.checkpoints.source import SINGLE_FILE
from forge.core.dtypes import DTYPES

_ALIGNMENT: Final = 8


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that will be written.

    Attributes:
        name: Name in the output.
        shape: Dimensions, outermost first.
        dtype: Name in safetensors' vocabulary.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """One output file.

    Attributes:
        file: Its name.
        tensors: What it holds, in the order of their offsets; offsets count from the file's
            start, and ``file`` of each is the bare name.
        header: Its first bytes: the header's length and the header, up to the data section.
        file_bytes: Its size.
    """

    file: str
    tensors: tuple[TensorInfo, ...]
    header: bytes
    file_bytes: int


def lay_out(
    tensors: Sequence[PlannedTensor], *, max_shard_bytes: int, single_file: str = SINGLE_FILE
) -> tuple[ShardLayout, ...]:
    """Place tensors in files.

    Tensors fill shards in the order given. Within a shard they are ordered by descending
    element size, as the reference implementation does, so that each is aligned to its
    elements; ties keep the order given.

    Args:
        tensors: What will be written; names are unique.
        max_shard_bytes: Most tensor bytes in one file. A tensor that is larger than that has
            a file of its own.
        single_file: Name of the file when there is one.

    Returns:
        The files: ``single_file`` alone, or ``model-00001-of-00003.safetensors`` and so on.

    Raises:
        ValueError: A name is repeated, empty or reserved, or ``max_shard_bytes`` is not positive.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be positive, not {max_shard_bytes}")
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors) or names & {"", METADATA_KEY}:
        raise ValueError("output tensor names must be unique, not empty and not reserved")
    groups: list[list[PlannedTensor]] = [[]]
    filled_bytes = 0
    for tensor in tensors:
        nbytes = tensor.nbytes
        if groups[-1] and filled_bytes + nbytes > max_shard_bytes:
            groups.append([])
            filled_bytes = 0
        groups[-1].append(tensor)
        filled_bytes += nbytes
    if len(groups) == 1:
        return (_shard(single_file, groups[0]),)
    return tuple(
        _shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", group)
        for number, group in enumerate(groups, start=1)
    )


def _shard(file: str, tensors: Sequence[PlannedTensor]) -> ShardLayout:
    ordered = sorted(tensors, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    table: dict[str, object] = {METADATA_KEY: {"format": "pt"}}
    begins = list(accumulate((tensor.nbytes for tensor in ordered), initial=0))
    for tensor, (begin, end) in zip(ordered, pairwise(begins), strict=True):
        table[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"the header of {file} would take {len(text)} bytes; use smaller shards")
    data_start = LENGTH_BYTES + len(text)
    path = Path(file)
    infos = tuple(
        TensorInfo(tensor.name, tensor.shape, tensor.dtype, path, data_start + begin, end - begin)
        for tensor, (begin, end) in zip(ordered, pairwise(begins), strict=True)
    )
    header = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return ShardLayout(file, infos, header, data_start + begins[-1])


def index_file(layout: Sequence[ShardLayout]) -> dict[str, bytes]:
    """Return the index that a sharded layout needs.

    Args:
        layout: What ``lay_out`` returned.

    Returns:
        ``model.safetensors.index.json`` by name; empty for a single file.
    """
    if len(layout) == 1:
        return {}
    weight_map = {tensor.name: shard.file for shard in layout for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in layout for tensor in shard.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return {INDEX_FILE: (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()}


def digest_layout(layout: Sequence[ShardLayout]) -> str:
    """Return a digest of everything that the layout fixes.

    Args:
        layout: What ``lay_out`` returned.

    Returns:
        Hexadecimal SHA-256 over file names, sizes and headers.
    """
    hasher = hashlib.sha256()
    for shard in layout:
        hasher.update(f"{shard.file}\0{shard.file_bytes}\0".encode())
        hasher.update(shard.header)
    return hasher.hexdigest()
