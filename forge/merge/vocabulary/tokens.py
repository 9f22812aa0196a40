"""Read which token has which id in a model's tokenizer, without running the tokenizer.

``tokenizer.json`` says everything. Without it, the ids come from ``vocab.json`` or from the
pieces of a SentencePiece ``tokenizer.model``, with ``added_tokens.json`` on top. What
``tokenizer_config.json`` lists and the others do not is added, too, as loaders add it. All of
these are files of strangers: an id is believed only when it is a whole number of a sane size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.companions import read_tokenizer_files
from forge.checkpoints.folder import parse_json_object
from forge.core.errors import CheckpointError
from forge.merge.vocabulary.sentencepiece import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    parse_sentencepiece,
)
from forge.recipes.reference import ModelReference

TOKENIZER_JSON: Final = "tokenizer.json"
ADDED_TOKENS: Final = "added_tokens.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
SPECIAL_TOKENS_MAP: Final = "special_tokens_map.json"
SENTENCEPIECE_FILES: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
FLAGS: Final = ("lstrip", "normalized", "rstrip", "single_word", "special")
"""How an added token is matched, as ``tokenizer.json`` says it."""
WORDS: Final = ("bos_token", "eos_token", "pad_token", "unk_token")
"""The parts that tokens play, as ``tokenizer_config.json`` names them."""
_WITH_IDS: Final = (TOKENIZER_JSON, ADDED_TOKENS, "vocab.json", *SENTENCEPIECE_FILES)
_SPELLING_SECTIONS: Final = ("normalizer", "pre_tokenizer", "decoder")
_MAX_ID: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer as data.

    Attributes:
        files: All its files by name.
        ids: Id of every token, added ones included.
        document: Its ``tokenizer.json``, or ``None`` when it has none. Tokens that only
            ``tokenizer_config.json`` adds are among its ``added_tokens``.
        kind: ``BPE``, ``Unigram``, ``WordPiece``, ``WordLevel``, or the file that was read.
        config: Its ``tokenizer_config.json``.
        words: Text of the tokens that play a part, by the names of ``WORDS``.
        entries: How each added token is matched, by its text.
    """

    files: Mapping[str, bytes]
    ids: Mapping[str, int]
    document: Mapping[str, object] | None
    kind: str
    config: Mapping[str, object]
    words: Mapping[str, str]
    entries: Mapping[str, Mapping[str, object]]

    def added(self) -> Mapping[str, Mapping[str, object]]:
        """Return the entries of tokens that are matched before the model runs, by their text."""
        return self.entries

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


@dataclass(frozen=True, slots=True)
class _Core:
    """A vocabulary, without what the files beside it say."""

    ids: Mapping[str, int]
    document: Mapping[str, object] | None
    kind: str
    entries: Mapping[str, Mapping[str, object]]


def read_tokenizers(
    roots: Mapping[ModelReference, Path],
    *,
    known: Mapping[ModelReference, Tokenizer | None] | None = None,
) -> dict[ModelReference, Tokenizer | None]:
    """Read the tokenizers of several models; files of the same content are parsed once.

    Args:
        roots: The models' folders.
        known: Tokenizers that have been read already, which need not be parsed again.

    Returns:
        The tokenizers; ``None`` for a model that has none that can be read.

    Raises:
        CheckpointError: A file is malformed, too large, or links out of the folder.
    """
    found: dict[ModelReference, Tokenizer | None] = {}
    cores: dict[tuple[bytes | None, ...], _Core | None] = {}
    for model, root in roots.items():
        if known is not None and model in known:
            found[model] = known[model]
            continue
        files = read_tokenizer_files(root)
        key = tuple(files.get(name) for name in _WITH_IDS)
        if key not in cores:
            cores[key] = _core(files, root, str(model))
        core = cores[key]
        found[model] = None if core is None else _tokenizer(core, files, root, str(model))
    return found


def parse_tokenizer(files: Mapping[str, bytes], root: Path, *, label: str) -> Tokenizer | None:
    """Read a tokenizer from its files' content.

    Args:
        files: Content by name.
        root: Their folder, named in messages.
        label: What the user typed, for messages.

    Returns:
        The tokenizer; ``None`` when none of the files has ids.

    Raises:
        CheckpointError: A file is malformed.
    """
    core = _core(files, root, label)
    return None if core is None else _tokenizer(core, files, root, label)


def _core(files: Mapping[str, bytes], root: Path, label: str) -> _Core | None:
    if TOKENIZER_JSON in files:
        document = parse_json_object(files[TOKENIZER_JSON], root / TOKENIZER_JSON)
        model = _section(document, "model")
        kind = model.get("type")
        entries = _entries(document, label)
        ids = _core_ids(model, label)
        ids |= _checked({token: entry.get("id") for token, entry in entries.items()}, label)
        return _Core(ids, document, kind if isinstance(kind, str) else _guess(model), entries)
    file = next((name for name in ("vocab.json", *SENTENCEPIECE_FILES) if name in files), None)
    if file is None:
        return None
    entries = {}
    if file == "vocab.json":
        ids = _checked(parse_json_object(files[file], root / file), label)
    else:
        pieces = parse_sentencepiece(files[file], root / file).pieces
        ids = {piece.text: number for number, piece in enumerate(pieces)}
        entries = {
            # What a user defined is found in the text as the normalizer leaves it.
            piece.text: {
                "special": piece.type != USER_DEFINED,
                "normalized": piece.type == USER_DEFINED,
            }
            for piece in pieces
            if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)
        }
    return _Core(ids, None, file, entries)


def _tokenizer(core: _Core, files: Mapping[str, bytes], root: Path, label: str) -> Tokenizer:
    """Add to a vocabulary what the files beside it say."""
    config, special = (
        parse_json_object(files.get(name, b"{}"), root / name)
        for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP)
    )
    words = {
        part: word
        for part in WORDS
        if (word := _word(config.get(part)) or _word(special.get(part))) is not None
    }
    listed = _listed(config, label)
    ids, entries, document = core.ids, core.entries, core.document
    if document is None:
        parts = {*words.values(), *_additional(special), *_additional(config)}
        if ADDED_TOKENS in files:
            own = _checked(parse_json_object(files[ADDED_TOKENS], root / ADDED_TOKENS), label)
            listed = _with_own(listed, own, parts)
        # Of a slow tokenizer, these lists alone say how its tokens are matched.
        played = {token: {"special": True} for token in sorted(parts) if token in ids}
        named = {token: listed[token] for token in listed if token in ids}
        entries = {**played, **entries, **named}
    strays = {token: entry for token, entry in listed.items() if token not in ids}
    if strays:
        taken = frozenset(ids.values())
        strays = {token: entry for token, entry in strays.items() if entry["id"] not in taken}
        ids = {**ids, **_checked({token: entry["id"] for token, entry in strays.items()}, label)}
        entries = {**entries, **strays}
    if strays and document is not None:
        own_entries = document.get("added_tokens")
        document = {
            **document,
            "added_tokens": [
                *(own_entries if isinstance(own_entries, list) else []),
                *(
                    {"id": entry["id"], "content": token, **flags_of(entry)}
                    for token, entry in strays.items()
                ),
            ],
        }
    return Tokenizer(files, ids, document, core.kind, config, words, entries)


def flags_of(entry: Mapping[str, object]) -> dict[str, bool]:
    """Return how an added token is matched, every flag of ``FLAGS`` stated."""
    return {flag: entry.get(flag) is True for flag in FLAGS}


def _with_own(
    listed: Mapping[str, Mapping[str, object]], own: Mapping[str, int], special: set[str]
) -> dict[str, Mapping[str, object]]:
    """Add the tokens of ``added_tokens.json``, whose ids hold; flags are not in that file."""
    named = {
        token: {"special": token in special, **listed.get(token, {}), "id": number}
        for token, number in own.items()
    }
    return {**listed, **named}


def _listed(config: Mapping[str, object], label: str) -> dict[str, Mapping[str, object]]:
    """Return the tokens of ``added_tokens_decoder``, which is keyed by ids as text."""
    decoder = config.get("added_tokens_decoder")
    found: dict[str, Mapping[str, object]] = {}
    for number, entry in decoder.items() if isinstance(decoder, dict) else ():
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str)):
            raise CheckpointError(f"{TOKENIZER_CONFIG} of '{label}' has malformed added tokens.")
        is_number = isinstance(number, str) and number.isascii() and number.isdigit()
        found[entry["content"]] = {**entry, "id": int(number[:12]) if is_number else number}
    return found


def _word(value: object) -> str | None:
    """Return a token, which files write as text or as a record with its content."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _additional(special: Mapping[str, object]) -> set[str]:
    listed = special.get("additional_special_tokens")
    words = [_word(item) for item in listed] if isinstance(listed, list) else []
    return {word for word in words if word is not None}


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


def _entries(document: Mapping[str, object], label: str) -> dict[str, Mapping[str, object]]:
    entries = document.get("added_tokens") or []
    found: dict[str, Mapping[str, object]] = {}
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CheckpointError(f"{TOKENIZER_JSON} of '{label}' has malformed added_tokens.")
        found[entry["content"]] = entry
    return found


def _checked(ids: Mapping[str, object], label: str) -> dict[str, int]:
    checked = {
        token: number
        for token, number in ids.items()
        if type(number) is int and 0 <= number < _MAX_ID
    }
    if len(checked) < len(ids):
        token = next(token for token in ids if token not in checked)
        raise CheckpointError(
            f"The tokenizer of '{label}' gives token {token[:60]!r} the id "
            f"{str(ids[token])[:30]}, which is no possible id."
        )
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
