"""Find the files of a GGUF model: one, or the pieces of a split one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import contained_file
from forge.checkpoints.index import INDEX_FILE
from forge.checkpoints.source import SINGLE_FILE
from forge.core.errors import CheckpointError

SUFFIX: Final = ".gguf"
_SPLIT: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def gguf_files(place: Path, *, label: str) -> tuple[Path, ...]:
    """Return the files of the GGUF model at a place, in order.

    Args:
        place: A ``.gguf`` file, any piece of a split one, or a folder that holds one model.
        label: What the user typed, for messages.

    Returns:
        The files; none if the place is a folder with safetensors weights, or without GGUF.

    Raises:
        CheckpointError: The folder holds several models, or pieces are missing.
    """
    if place.is_file():
        return _pieces(place, label)
    if (place / SINGLE_FILE).exists() or (place / INDEX_FILE).exists():
        return ()
    names = sorted(entry.name for entry in place.iterdir() if entry.suffix == SUFFIX)
    if not names:
        return ()
    # The pieces of one model are one candidate.
    models = sorted({_piece_of(name) for name in names})
    if len(models) > 1:
        raise CheckpointError(
            f"'{label}' holds {len(models)} GGUF models: {', '.join(models[:4])}"
            f"{', ...' if len(models) > 4 else ''}. Name the file of one of them."
        )
    pieces = _pieces(place / names[0], label)
    for piece in pieces:
        # A folder of a stranger may hold links to anywhere.
        if contained_file(place, piece.name) is None:
            raise CheckpointError(f"'{piece}' is a link that leads nowhere.")
    return pieces


def _piece_of(name: str) -> str:
    match = _SPLIT.fullmatch(name)
    return name if match is None else f"{match['stem']}-*-of-{match['count']}{SUFFIX}"


def _pieces(file: Path, label: str) -> tuple[Path, ...]:
    match = _SPLIT.fullmatch(file.name)
    if match is None:
        return (file,)
    count = int(match["count"])
    # Asked one by one: a name that claims 99,999 pieces costs as many questions, and no memory.
    pieces: list[Path] = []
    for number in range(1, count + 1):
        piece = file.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}{SUFFIX}")
        if not piece.is_file():
            raise CheckpointError(
                f"'{label}' lacks piece {number} of {count}, '{piece.name}'. Download the rest."
            )
        pieces.append(piece)
    return tuple(pieces)
