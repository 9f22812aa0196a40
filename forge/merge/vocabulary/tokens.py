"""Read which token has which id in a model's tokenizer, without running the tokenizer.

``tokenizer.json`` says everything. Without it, the ids come from ``vocab.json`` or from the
pieces of a SentencePiece ``tokenizer.model``, with ``added_tokens.json`` on top. All of these
are files of strangers: an id is believed only when it is a whole number of a sane size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from forge.checkpoints.companions import read_tokenizer_files
from forge.checkpoints.folder import parse_json_object
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference

TOKENIZER_JSON: Final = "tokenizer.json"
ADDED_TOKENS: Final = "added_tokens.json"
_SENTENCEPIECE: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_WITH_IDS: Final = (TOKENIZER_JSON, ADDED_TOKENS, "vocab.json", *_SENTENCEPIECE)
_SPELLING_SECTIONS: Final = ("normalizer", "pre_tokenizer", "decoder")
_MAX_ID: Final = 1 << 24
_PIECES_FIELD: Final = 1
_LENGTH_DELIMITED: Final = 2
_FIXED_BYTES: Final = {1: 8, 5: 4}


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer as data.

    Attributes:
        files: All its files by name.
        ids: Id of every token, added ones included.
        document: Its ``tokenizer.json``, or ``None`` when it has none.
        kind: ``BPE``, ``Unigram``, ``WordPiece``, ``WordLevel``, or the file that was read.
    """

    files: Mapping[str, bytes]
    ids: Mapping[str, int]
    document: Mapping[str, object] | None
    kind: str

    def added(self) -> Mapping[str, Mapping[str, object]]:
        """Return the entries of tokens that are matched before the model runs, by their text."""
        entries = [] if self.document is None else self.document.get("added_tokens")
        if not isinstance(entries, list):
            return {}
        return {
            entry["content"]: entry
            for entry in entries
            if isinstance(entry, dict) and isinstance(entry.get("content"), str)
        }

    def model(self) -> Mapping[str, object]:
        """Return the ``model`` section of ``tokenizer.json``; empty when there is none."""
        return _section(self.document or {}, "model")

    def spelling(self) -> str:
        """Return how tokens spell blanks and bytes: text is comparable within one spelling only."""
        if self.document is None:
            return self.kind
        found = set(_types({key: self.document.get(key) for key in _SPELLING_SECTIONS}))
        if "ByteLevel" in found:
            return "bytes"
        if "Metaspace" in found or self.model().get("byte_fallback") is True:
            return "metaspace"
        return "plain"


def read_tokenizers(roots: Mapping[ModelReference, Path]) -> dict[ModelReference, Tokenizer | None]:
    """Read the tokenizers of several models; files of the same content are parsed once.

    Args:
        roots: The models' folders.

    Returns:
        The tokenizers; ``None`` for a model that has none that can be read.

    Raises:
        CheckpointError: A file is malformed, too large, or links out of the folder.
    """
    found: dict[ModelReference, Tokenizer | None] = {}
    known: dict[tuple[bytes | None, ...], Tokenizer | None] = {}
    for model, root in roots.items():
        files = read_tokenizer_files(root)
        key = tuple(files.get(name) for name in _WITH_IDS)
        if key not in known:
            known[key] = _tokenizer_of(files, root, str(model))
        same = known[key]
        found[model] = None if same is None else replace(same, files=files)
    return found


def read_tokenizer(root: Path, *, label: str) -> Tokenizer | None:
    """Read a model's tokenizer.

    Args:
        root: The model's folder.
        label: What the user typed, for messages.

    Returns:
        The tokenizer; ``None`` when the folder has no tokenizer that can be read.

    Raises:
        CheckpointError: A file is malformed, too large, or links out of the folder.
    """
    return _tokenizer_of(read_tokenizer_files(root), root, label)


def _tokenizer_of(files: Mapping[str, bytes], root: Path, label: str) -> Tokenizer | None:
    if TOKENIZER_JSON in files:
        document = parse_json_object(files[TOKENIZER_JSON], root / TOKENIZER_JSON)
        model = _section(document, "model")
        kind = model.get("type")
        ids = _core_ids(model, label)
        ids |= _added_ids(document, label)
        return Tokenizer(files, ids, document, kind if isinstance(kind, str) else _guess(model))
    file = next((name for name in ("vocab.json", *_SENTENCEPIECE) if name in files), None)
    if file is None:
        return None
    if file == "vocab.json":
        ids = _checked(parse_json_object(files[file], root / file), label)
    else:
        ids = _sentencepiece_ids(files[file], root / file)
    if ADDED_TOKENS in files:
        ids |= _checked(parse_json_object(files[ADDED_TOKENS], root / ADDED_TOKENS), label)
    return Tokenizer(files, ids, None, file)


def _section(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def _guess(model: Mapping[str, object]) -> str:
    if "merges" in model:
        return "BPE"
    return "Unigram" if isinstance(model.get("vocab"), list) else "WordLevel"


def _core_ids(model: Mapping[str, object], label: str) -> dict[str, int]:
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        pieces = [entry[0] if isinstance(entry, list) and entry else None for entry in vocab]
        if not all(isinstance(piece, str) for piece in pieces):
            raise CheckpointError(f"{TOKENIZER_JSON} of '{label}' has a malformed vocabulary.")
        return {str(piece): number for number, piece in enumerate(pieces)}
    if isinstance(vocab, dict):
        return _checked(vocab, label)
    raise CheckpointError(f"{TOKENIZER_JSON} of '{label}' has no vocabulary.")


def _added_ids(document: Mapping[str, object], label: str) -> dict[str, int]:
    entries = document.get("added_tokens") or []
    found: dict[str, object] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CheckpointError(f"{TOKENIZER_JSON} of '{label}' has malformed added_tokens.")
        found[entry["content"]] = entry.get("id")
    return _checked(found, label)


def _checked(ids: Mapping[str, object], label: str) -> dict[str, int]:
    checked: dict[str, int] = {}
    for token, number in ids.items():
        if type(number) is not int or not 0 <= number < _MAX_ID:
            raise CheckpointError(
                f"The tokenizer of '{label}' gives token {token[:60]!r} the id "
                f"{str(number)[:30]}, which is no possible id."
            )
        checked[token] = number
    return checked


def _types(value: object) -> Iterator[str]:
    """Yield every ``type`` in nested JSON."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value["type"]
        for inner in value.values():
            yield from _types(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _types(inner)


def _sentencepiece_ids(data: bytes, path: Path) -> dict[str, int]:
    """Read the pieces of a SentencePiece model: field 1 of each field 1, in order."""
    ids: dict[str, int] = {}
    number = 0
    try:
        for field, piece in _fields(data):
            if field == _PIECES_FIELD:
                text = next(value for inner, value in _fields(piece) if inner == _PIECES_FIELD)
                ids[text.decode()] = number
                number += 1
    except (ValueError, StopIteration) as error:
        raise CheckpointError(f"'{path}' is not a SentencePiece model.") from error
    if not ids:
        raise CheckpointError(f"'{path}' is not a SentencePiece model: it holds no pieces.")
    return ids


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the fields of a protobuf message; of those without a length, an empty value."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == _LENGTH_DELIMITED:
            length, position = _varint(data, position)
        elif wire in _FIXED_BYTES:
            length = _FIXED_BYTES[wire]
        elif wire == 0:
            _, position = _varint(data, position)
            length = 0
        else:
            raise ValueError("unknown wire type")
        if length > len(data) - position:
            raise ValueError("a field ends beyond the message")
        yield key >> 3, data[position : position + length] if wire == _LENGTH_DELIMITED else b""
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
