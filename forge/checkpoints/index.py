"""Read the index of a sharded checkpoint: which tensor lies in which file, says a stranger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import is_plain_name, parse_json_object, read_bytes
from forge.checkpoints.header import Header
from forge.core.errors import CheckpointError

INDEX_FILE: Final = "model.safetensors.index.json"
_MAX_INDEX_BYTES: Final = 100_000_000


def read_weight_map(root: Path) -> dict[str, str] | None:
    """Read which file holds each tensor.

    Args:
        root: The model's folder.

    Returns:
        File name by tensor name, or ``None`` when the folder has no index. The names are those
        of safetensors files in the folder itself.

    Raises:
        CheckpointError: The index is malformed, or names something else.
    """
    content = read_bytes(root, INDEX_FILE, limit=_MAX_INDEX_BYTES)
    if content is None:
        return None
    path = root / INDEX_FILE
    value = parse_json_object(content, path).get("weight_map")
    if not isinstance(value, dict) or not value:
        raise CheckpointError(f"'{path}' has no weight_map.")
    weight_map: dict[str, str] = {}
    plain: set[str] = set()
    for name, shard in value.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"'{path}' gives no file name for tensor {name[:200]!r}.")
        if shard not in plain:
            if not is_plain_name(shard) or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"'{path}' names {shard[:200]!r}, which is not a safetensors file of its "
                    "folder."
                )
            plain.add(shard)
        weight_map[name] = shard
    return weight_map


def shard_names(root: Path) -> tuple[str, ...]:
    """Return the weight files that a folder's index names.

    Args:
        root: The model's folder.

    Returns:
        Plain file names, sorted; empty when the folder has no index.

    Raises:
        CheckpointError: As ``read_weight_map``.
    """
    return tuple(sorted(set((read_weight_map(root) or {}).values())))


def check_index(weight_map: Mapping[str, str], headers: Mapping[Path, Header], index: Path) -> None:
    """Refuse an index that its files contradict.

    Args:
        weight_map: File name by tensor name.
        headers: Headers of all files that it names.
        index: Named in messages.

    Raises:
        CheckpointError: A file lacks a tensor, or holds one that the index places elsewhere.
    """
    by_name = {path.name: header for path, header in headers.items()}
    for name, shard in weight_map.items():
        if name not in by_name[shard].tensors:
            raise CheckpointError(
                f"'{index}' places tensor {name[:200]!r} in '{shard}', which does not hold it."
            )
    for shard, header in by_name.items():
        for name in header.tensors:
            if weight_map.get(name) != shard:
                raise CheckpointError(
                    f"'{index}' does not place tensor '{name}' in '{shard}', which holds it."
                )
