"""Read a SentencePiece model: its pieces, and how text is prepared for them.

The file is one protobuf message, and little of it matters here:

    1  pieces, each   1 text   2 score (float32)   3 type
    2  trainer        3 kind of model (1 Unigram, 2 BPE)   24 blanks stand behind words
                      35 byte fallback
    3  normalizer     2 compiled map of characters   3 a blank is put before the text
                      4 runs of blanks are one   5 blanks are spelled ▁

The parser knows fields and lengths, no schema, and believes no length beyond the message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from forge.core.errors import CheckpointError

_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_KINDS: Final[Mapping[int, Literal["Unigram", "BPE"]]] = {1: "Unigram", 2: "BPE"}

UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece; ``type`` is 1 for an ordinary one, else a constant of this module, or a byte (6)."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a ``tokenizer.model`` says.

    Attributes:
        pieces: The pieces by id.
        kind: How text is split; ``None`` for kinds that no language model has.
        has_byte_fallback: Whether a character without a piece is spelled in bytes.
        charsmap: Compiled replacements of characters; empty when there are none.
        adds_prefix: Whether a blank is put before the text.
        joins_blanks: Whether runs of blanks become one.
        is_plain: Whether blanks are spelled ▁ and stand before words, as everywhere but in
            rare models.
    """

    pieces: tuple[Piece, ...]
    kind: Literal["Unigram", "BPE"] | None
    has_byte_fallback: bool
    charsmap: bytes
    adds_prefix: bool
    joins_blanks: bool
    is_plain: bool


def parse_sentencepiece(data: bytes, path: Path) -> SentencePieceModel:
    """Read a SentencePiece model.

    Args:
        data: The file's bytes.
        path: Named in messages.

    Returns:
        The model; values that the file leaves out are SentencePiece's defaults.

    Raises:
        CheckpointError: The bytes are no such model.
    """
    pieces: list[Piece] = []
    trainer: dict[int, bytes | int] = {}
    normalizer: dict[int, bytes | int] = {}
    try:
        for number, value in _fields(data):
            if number == _PIECES and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == _TRAINER and isinstance(value, bytes):
                trainer |= dict(_fields(value))
            elif number == _NORMALIZER and isinstance(value, bytes):
                normalizer |= dict(_fields(value))
    except (ValueError, KeyError, struct.error) as error:
        raise CheckpointError(f"'{path}' is not a SentencePiece model.") from error
    if not pieces:
        raise CheckpointError(f"'{path}' is not a SentencePiece model: it holds no pieces.")
    charsmap = normalizer.get(2, b"")
    kind = trainer.get(3, 1)
    return SentencePieceModel(
        tuple(pieces),
        _KINDS.get(kind) if isinstance(kind, int) else None,
        has_byte_fallback=trainer.get(35, 0) == 1,
        charsmap=charsmap if isinstance(charsmap, bytes) else b"",
        adds_prefix=normalizer.get(3, 1) == 1,
        joins_blanks=normalizer.get(4, 1) == 1,
        is_plain=normalizer.get(5, 1) == 1 and trainer.get(24, 0) == 0,
    )


def _piece(data: bytes) -> Piece:
    values = dict(_fields(data))
    text, score, kind = values[1], values.get(2, b"\0\0\0\0"), values.get(3, 1)
    if not (isinstance(text, bytes) and isinstance(score, bytes) and isinstance(kind, int)):
        raise ValueError("a piece of other types")
    return Piece(text.decode(), struct.unpack("<f", score)[0], kind)


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield the fields of a protobuf message: numbers, and the bytes of everything else."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire == _LENGTH_DELIMITED:
            length, position = _varint(data, position)
        elif wire in _FIXED_BYTES:
            length = _FIXED_BYTES[wire]
        else:
            raise ValueError("unknown wire type")
        if length > len(data) - position:
            raise ValueError("a field ends beyond the message")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number has no end")
