"""Add tokens to a tokenizer by editing its files, so that no id that it had changes.

Tokens that are matched whole before the model runs ("added tokens") are appended to that
list. Ordinary pieces of another tokenizer enter the model: its vocabulary, and for BPE the
merges that make them, after all merges that were there. The result is loaded with the
``tokenizers`` library and must give every token exactly the id that was planned.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from forge.checkpoints.chat_templates import dump_json
from forge.checkpoints.folder import parse_json_object
from forge.core.errors import CheckpointError, IncompatibleError
from forge.merge.vocabulary.fast_form import with_document
from forge.merge.vocabulary.tokenizers_library import load_library
from forge.merge.vocabulary.tokens import (
    ADDED_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    Tokenizer,
    flags_of,
)

_OF_OLD_PIECES: Final = frozenset(
    {
        "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model",
        "vocab.json", "vocab.txt", "merges.txt", ADDED_TOKENS,
    }
)  # fmt: skip
"""Other forms of the vocabulary, which would contradict one with new pieces."""
_OF_ALL_TOKENS: Final = ("tekken.json", "tokenizer.model.v")
"""Beginnings of names of forms that list added tokens, too, and contradict any that are new."""


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to add.

    Attributes:
        token: Its text.
        id: Its id.
        origin: The tokenizer that has it, or ``None`` when the recipe makes it up.
        added: How it is matched, as ``tokenizer.json`` says it; empty for an ordinary piece.
    """

    token: str
    id: int
    origin: Tokenizer | None
    added: Mapping[str, object]


def extend_tokenizer(
    tokenizer: Tokenizer, new: Sequence[NewToken], ids: Mapping[str, int], label: str
) -> Tokenizer:
    """Return a tokenizer with tokens added, in all its files.

    Args:
        tokenizer: The tokenizer.
        new: What to add, by ascending id.
        ids: Id that each token must have in the end, old and new ones.
        label: The model of the tokenizer, for messages.

    Returns:
        The new tokenizer; those of its files that would contradict it are left out.

    Raises:
        IncompatibleError: The tokenizer cannot be edited, or the tokens do not fit into it.
        CheckpointError: One of its files is malformed.
    """
    tokenizer = with_document(tokenizer, label)
    pieces = [item for item in new if not item.added]
    for item in pieces:
        _check_piece(item, tokenizer, label)
    attempts = [True] if pieces else [False, True]
    for is_rebuilt in attempts:
        document = _extended(tokenizer, new, ids, is_rebuilt=is_rebuilt)
        # In one line: indented, the standard library's encoder is thirty times slower.
        # Half a character, which JSON can hold and UTF-8 cannot, is for the library to refuse.
        text = json.dumps(document, ensure_ascii=False) if document else ""
        content = text.encode("utf-8", "surrogatepass")
        if document is not None and _has_ids(content, ids):
            break
    else:
        raise IncompatibleError(
            f"The tokenizer of '{label}' cannot take {len(new):,} more tokens without changing "
            "the ids of those it has. Use 'tokenizer: {source: base}'."
        )
    files = {
        name: content
        for name, content in tokenizer.files.items()
        if not (pieces and name in _OF_OLD_PIECES) and not name.startswith(_OF_ALL_TOKENS)
    }
    files[TOKENIZER_JSON] = content
    added = [item for item in new if item.added]
    return replace(
        tokenizer,
        files=_with_companions(files, tokenizer, added),
        ids=ids,
        document=document,
        entries={**tokenizer.entries, **{item.token: item.added for item in added}},
    )


def _check_piece(item: NewToken, tokenizer: Tokenizer, label: str) -> None:
    origin = item.origin
    assert origin is not None
    if origin.kind != tokenizer.kind:
        reason = f"one is {tokenizer.kind}, the other {origin.kind}"
    elif origin.spelling() != tokenizer.spelling():
        reason = f"one spells tokens as {tokenizer.spelling()}, the other as {origin.spelling()}"
    else:
        return
    raise IncompatibleError(
        f"The tokenizers cannot be united: {item.token!r} and others are missing in that of "
        f"'{label}', and {reason}. Use 'tokenizer: {{source: base}}' or name one model as source."
    )


def _extended(
    tokenizer: Tokenizer, new: Sequence[NewToken], ids: Mapping[str, int], *, is_rebuilt: bool
) -> dict[str, object] | None:
    """Return ``tokenizer.json``, or ``None`` when the model cannot hold the ids.

    Added tokens have ids by their order behind the model's vocabulary. As soon as that
    vocabulary grows they therefore enter it too, where ids are explicit (``is_rebuilt``).
    """
    assert tokenizer.document is not None
    document = dict(tokenizer.document)
    if is_rebuilt:
        model = dict(tokenizer.model())
        vocab = model.get("vocab")
        if isinstance(vocab, dict):
            model["vocab"] = dict(sorted(ids.items(), key=lambda item: item[1]))
        else:
            pieces = _unigram(vocab, new, ids)
            if pieces is None:
                return None
            model["vocab"] = pieces
        if "merges" in model:
            model["merges"] = _merges(tokenizer, new)
        document["model"] = model
    entries = document.get("added_tokens")
    document["added_tokens"] = [
        *(entries if isinstance(entries, list) else []),
        *(
            {"id": item.id, "content": item.token, **flags_of(item.added)}
            for item in new
            if item.added
        ),
    ]
    return document


def _unigram(vocab: object, new: Sequence[NewToken], ids: Mapping[str, int]) -> list[object] | None:
    pieces = list(vocab) if isinstance(vocab, list) else []
    scores: dict[str, object] = {}
    for origin in _origins(new):
        entries = origin.model().get("vocab")
        for entry in entries if isinstance(entries, list) else []:
            scores.setdefault(entry[0], entry[1] if len(entry) > 1 else 0.0)
    by_id = {number: token for token, number in ids.items()}
    for number in range(len(pieces), max(by_id) + 1):
        if number not in by_id:
            return None
        # An added token is matched before the model runs, so its score is never used.
        pieces.append([by_id[number], scores.get(by_id[number], 0.0)])
    return pieces


def _merges(tokenizer: Tokenizer, new: Sequence[NewToken]) -> list[object]:
    pairs = dict.fromkeys(_pairs(tokenizer))
    for origin in _origins([item for item in new if not item.added]):
        pairs |= dict.fromkeys(_pairs(origin))
    own = tokenizer.model().get("merges")
    is_text = isinstance(own, list) and any(isinstance(merge, str) for merge in own)
    if is_text and not any(" " in part for pair in pairs for part in pair):
        return [" ".join(pair) for pair in pairs]
    return [list(pair) for pair in pairs]


def _pairs(tokenizer: Tokenizer) -> Iterator[tuple[str, ...]]:
    merges = tokenizer.model().get("merges")
    for merge in merges if isinstance(merges, list) else []:
        pair = tuple(merge.split(" ")) if isinstance(merge, str) else merge
        if not isinstance(pair, tuple | list) or not all(isinstance(part, str) for part in pair):
            raise CheckpointError(f"{TOKENIZER_JSON} has the malformed merge {str(merge)[:60]}.")
        yield tuple(pair)


def _origins(new: Sequence[NewToken]) -> list[Tokenizer]:
    found: list[Tokenizer] = []
    for item in new:
        if item.origin is not None and not any(item.origin is other for other in found):
            found.append(item.origin)
    return found


def _has_ids(document: bytes, ids: Mapping[str, int]) -> bool:
    library = load_library(document, "the result")
    return library.get_vocab(with_added_tokens=True) == dict(ids)


def _with_companions(
    files: dict[str, bytes], tokenizer: Tokenizer, added: Sequence[NewToken]
) -> dict[str, bytes]:
    """Tell the files beside ``tokenizer.json`` of added tokens.

    They are written where such tokens are listed already, and also where an older form of the
    vocabulary is kept: who reads that form finds added tokens in ``tokenizer_config.json`` alone.
    """
    if not added:
        return files
    path = Path(TOKENIZER_CONFIG)
    config = dict(parse_json_object(files.get(TOKENIZER_CONFIG, b"{}"), path))
    decoder = config.get("added_tokens_decoder")
    if not isinstance(decoder, dict) and not _OF_OLD_PIECES.isdisjoint(files):
        decoder = {
            str(tokenizer.ids[token]): {"content": token, **flags_of(entry)}
            for token, entry in tokenizer.added().items()
        }
    if isinstance(decoder, dict):
        more = {str(item.id): {"content": item.token, **flags_of(item.added)} for item in added}
        files[TOKENIZER_CONFIG] = dump_json({**config, "added_tokens_decoder": {**decoder, **more}})
    if ADDED_TOKENS in files:
        listed = parse_json_object(files[ADDED_TOKENS], Path(ADDED_TOKENS))
        files[ADDED_TOKENS] = dump_json({**listed, **{item.token: item.id for item in added}})
    return files
