"""Open small files of a model's folder without leaving it.

A downloaded folder can hold a link, or an index an entry, that points anywhere on the
disk. Every file is therefore opened by a plain name, and what the name resolves to must
lie inside the folder. One layout is exempt because the Hub's own cache is made of it:
``models--x--y/snapshots/<revision>/name`` links to ``models--x--y/blobs/<hash>``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forge.core.errors import CheckpointError

MAX_TEXT_BYTES: Final = 64 << 20
"""Limit of a configuration or tokenizer file; the largest published ones are below 40 MB."""


def is_plain_name(name: str) -> bool:
    """Tell whether a string names an entry of a folder, and nothing outside of it.

    Args:
        name: Any string.

    Returns:
        False for separators, unprintable characters, ``.``, ``..`` and the empty string.
    """
    return name.isprintable() and name not in ("", ".", "..") and not set(name) & set("/\\")


def contained_file(root: Path, name: str, *, subfolder: str | None = None) -> Path | None:
    """Return the file of that name in a folder, or ``None`` when there is none.

    Args:
        root: The model's folder.
        name: A plain file name, from a fixed list or from an untrusted index.
        subfolder: Plain name of the folder below ``root`` that holds the file, if it is not
            ``root`` itself.

    Returns:
        The path below ``root``, links not resolved; it exists and is a regular file.

    Raises:
        CheckpointError: The name holds a separator, or the file links out of the folder.
    """
    if not is_plain_name(name):
        raise CheckpointError(
            f"'{root}': {name[:200]!r} is not the plain name of a file in this folder."
        )
    path = root / (subfolder or "") / name
    if not os.path.lexists(path):
        # Of a list of possible files, most are not there, and resolving costs ten times as much.
        return None
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"'{path}' cannot be resolved: {error}.") from error
    home = root.resolve()
    allowed = [home / (subfolder or "")]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise CheckpointError(
            f"'{path}' is a link to '{target}', outside the model's folder. "
            "Copy the file into the folder, or name the folder that holds it."
        )
    if not target.is_file():
        raise CheckpointError(f"'{path}' is not a regular file.")
    return path


def read_bytes(
    root: Path, name: str, *, limit: int = MAX_TEXT_BYTES, subfolder: str | None = None
) -> bytes | None:
    """Return a small file's bytes, or ``None`` when the folder has no such file.

    Args:
        root: The model's folder.
        name: A plain file name.
        limit: Largest size accepted, in bytes.
        subfolder: As for ``contained_file``.

    Returns:
        The content.

    Raises:
        CheckpointError: The file links out of the folder, is too large or unreadable.
    """
    path = contained_file(root, name, subfolder=subfolder)
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"'{path}' cannot be read: {error.strerror}.") from error
    if len(content) > limit:
        raise CheckpointError(f"'{path}' is larger than {limit} bytes; is it really a {name}?")
    return content


def parse_json_object(content: bytes, path: Path) -> Mapping[str, object]:
    """Return the JSON object that a file's bytes hold.

    Args:
        content: The bytes.
        path: Named in messages.

    Returns:
        The object; a repeated key keeps its last value, as all loaders do.

    Raises:
        CheckpointError: The bytes are not UTF-8, not JSON, or not an object.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' must hold a JSON object.")
    return value


def read_json_object(
    root: Path, name: str, *, limit: int = MAX_TEXT_BYTES
) -> Mapping[str, object] | None:
    """Return the JSON object in a small file, or ``None`` when the folder has no such file.

    Args:
        root: The model's folder.
        name: A plain file name.
        limit: Largest size accepted, in bytes.

    Returns:
        The object.

    Raises:
        CheckpointError: The file is not a JSON object, too large, or links out of the folder.
    """
    content = read_bytes(root, name, limit=limit)
    return None if content is None else parse_json_object(content, root / name)
