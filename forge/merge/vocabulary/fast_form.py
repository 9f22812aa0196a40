"""Write the ``tokenizer.json`` of a tokenizer that has none, where its files say all of it.

Two forms are known. A SentencePiece model of the Llama family (Llama, Mistral, Gemma) becomes
a BPE whose merges are every way to put a piece together from two others, in the order of the
pieces' scores, which is the order in which SentencePiece merges; or a Unigram with its scores.
A ``vocab.json`` with ``merges.txt`` becomes a byte-level BPE, if its class is one whose way to
split text into words is known. Everything else is refused: a tokenizer that is almost right
would feed the model other tokens than it was trained on, and nothing would say so.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import parse_json_object
from forge.core.errors import IncompatibleError
from forge.merge.vocabulary.sentencepiece import (
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    parse_sentencepiece,
)
from forge.merge.vocabulary.tokens import (
    SENTENCEPIECE_FILES,
    TOKENIZER_JSON,
    Tokenizer,
    flags_of,
)

_LLAMA: Final = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "MistralTokenizer")
"""Classes that read ``tokenizer.model`` as it says, and put <s> before a text."""
_QWEN_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_END: Final = "<|endoftext|>"
_LONGEST: Final = 256
_BYTE_LEVEL: Final = ("GPT2Tokenizer", "Qwen2Tokenizer")


def with_document(tokenizer: Tokenizer, label: str) -> Tokenizer:
    """Return a tokenizer that has a ``tokenizer.json``, written anew if need be.

    Args:
        tokenizer: The tokenizer.
        label: Its model, for messages.

    Returns:
        The tokenizer itself when it has one.

    Raises:
        IncompatibleError: Its files do not say how it splits text.
        CheckpointError: A file is malformed.
    """
    if tokenizer.document is not None:
        return tokenizer
    declared = tokenizer.config.get("tokenizer_class")
    name = declared.removesuffix("Fast") if isinstance(declared, str) else ""
    if tokenizer.kind in SENTENCEPIECE_FILES and name in _LLAMA:
        path = Path(label) / tokenizer.kind
        model = parse_sentencepiece(tokenizer.files[tokenizer.kind], path)
        document = _of_sentencepiece(model, tokenizer, label)
    elif tokenizer.kind == "vocab.json" and name in _BYTE_LEVEL:
        document = _of_byte_level(tokenizer, name, label)
    else:
        shown = "no tokenizer_class" if not name else f"the tokenizer_class {declared}"
        raise _refusal(label, f"has {tokenizer.kind} and {shown}")
    entries = dict(tokenizer.added())
    if name in _BYTE_LEVEL and _END in tokenizer.ids:
        # These classes know it as special without being told.
        entries = {_END: {"special": True}, **entries}
    document["added_tokens"] = [
        {"id": tokenizer.ids[token], "content": token, **flags_of(entries[token])}
        for token in sorted(entries, key=tokenizer.ids.__getitem__)
    ]
    kind = str(_section(document, "model")["type"])
    return replace(tokenizer, document=document, kind=kind, entries=entries)


def _refusal(label: str, reason: str) -> IncompatibleError:
    return IncompatibleError(
        f"The tokenizer of '{label}' has no {TOKENIZER_JSON}, and none can be derived: it "
        f"{reason}. Load it with transformers' AutoTokenizer and save it (save_pretrained writes "
        f"{TOKENIZER_JSON}), or use 'tokenizer: {{source: base}}'."
    )


def _section(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}


def _document(parts: Mapping[str, object]) -> dict[str, object]:
    order = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
    head: dict[str, object] = {"version": "1.0", "truncation": None, "padding": None}
    return {**head, "added_tokens": [], **{key: parts.get(key) for key in order}}


def _of_sentencepiece(
    model: SentencePieceModel, tokenizer: Tokenizer, label: str
) -> dict[str, object]:
    config = tokenizer.config
    if model.kind is None or not model.is_plain:
        raise _refusal(label, "holds a SentencePiece model of a rare kind")
    if model.adds_prefix and any(piece.type == USER_DEFINED for piece in model.pieces):
        # They are found in the prepared text, behind the blank that is put before it, and a
        # tokenizer.json can match tokens before that blank only.
        raise _refusal(label, "holds a SentencePiece model with pieces that its user defined")
    texts = [piece.text for piece in model.pieces]
    if len(set(texts)) != len(texts):
        raise _refusal(label, "holds a SentencePiece model that names a piece twice")
    # Every way to cut a piece in two is tried, so its length must not be a stranger's choice.
    if max(map(len, texts)) > _LONGEST:
        raise _refusal(label, f"holds a piece of more than {_LONGEST} characters")
    unknown = next((n for n, piece in enumerate(model.pieces) if piece.type == UNKNOWN), None)
    section: dict[str, object]
    if model.kind == "Unigram":
        vocab = [[piece.text, piece.score] for piece in model.pieces]
        section = {"type": "Unigram", "unk_id": unknown, "vocab": vocab}
        section["byte_fallback"] = model.has_byte_fallback
    else:
        section = {
            "type": "BPE", "dropout": None, "continuing_subword_prefix": None,
            "unk_token": None if unknown is None else texts[unknown],
            "end_of_word_suffix": None, "fuse_unk": True, "ignore_merges": False,
            "byte_fallback": model.has_byte_fallback,
            "vocab": {text: number for number, text in enumerate(texts)},
            "merges": _merges(model),
        }  # fmt: skip
    normalizers = _normalizers(model, is_legacy=config.get("legacy") is not False)
    words = None
    if model.adds_prefix and config.get("legacy") is False:
        words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": words,
        "decoder": {"type": "Sequence", "decoders": _decoders(model)},
        "post_processor": _around(tokenizer, texts),
        "model": section,
    }
    return _document(parts)


def _merges(model: SentencePieceModel) -> list[list[str]]:
    """Return every way to join two pieces to a third, the best score first."""
    ids = {piece.text: number for number, piece in enumerate(model.pieces)}
    # Pieces that are matched whole or stand for bytes are never put together.
    whole = {piece.text for piece in model.pieces if piece.type != 1}
    merges: list[list[str]] = []
    ordinary = [piece for piece in model.pieces if piece.type == 1]
    for piece in sorted(ordinary, key=lambda piece: (-piece.score, ids[piece.text])):
        text = piece.text
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        merges += [
            [left, right]
            for left, right in sorted(
                (pair for pair in splits if pair[0] in ids and pair[1] in ids),
                key=lambda pair: (ids[pair[0]], ids[pair[1]]),
            )
            if left not in whole and right not in whole
        ]
    return merges


def _normalizers(model: SentencePieceModel, *, is_legacy: bool) -> list[dict[str, object]]:
    """Return what is done to each text between tokens that are matched whole.

    The blank before a text is put there, too, before every such text: so did the first
    tokenizers of this family. Those that say ``legacy: false`` put it before the first alone.
    """
    steps: list[dict[str, object]] = []
    if model.charsmap:
        charsmap = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if model.joins_blanks:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.adds_prefix and not is_legacy:
        return steps
    if model.adds_prefix:
        steps.append({"type": "Prepend", "prepend": "▁"})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    return steps


def _decoders(model: SentencePieceModel) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.adds_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return steps


def _around(tokenizer: Tokenizer, texts: list[str]) -> dict[str, object] | None:
    """Return what is put around a text: <s> before it, unless the configuration says else."""
    config, words_of = tokenizer.config, tokenizer.words
    before = words_of.get("bos_token", "<s>") if config.get("add_bos_token", True) else None
    behind = words_of.get("eos_token", "</s>") if config.get("add_eos_token", False) else None
    words = [word for word in (before, behind) if word is not None and word in texts]
    if not words:
        return None

    def row(letter: str, number: int) -> list[object]:
        def placed(word: str | None) -> list[object]:
            return [{"SpecialToken": {"id": word, "type_id": number}}] if word in words else []

        own: object = {"Sequence": {"id": letter, "type_id": number}}
        return [*placed(before), own, *placed(behind)]

    return {
        "type": "TemplateProcessing",
        "single": row("A", 0),
        "pair": [*row("A", 0), *row("B", 1)],
        "special_tokens": {
            word: {"id": word, "ids": [texts.index(word)], "tokens": [word]} for word in words
        },
    }


def _of_byte_level(tokenizer: Tokenizer, name: str, label: str) -> dict[str, object]:
    if "merges.txt" not in tokenizer.files:
        raise _refusal(label, "has vocab.json but no merges.txt")
    merges: list[list[str]] = []
    for line in tokenizer.files["merges.txt"].decode("utf-8", "replace").split("\n"):
        pair = line.rstrip("\r").split(" ")
        if line.startswith("#version") or not line.strip():
            continue
        if len(pair) != 2:
            raise _refusal(label, f"has {line[:40]!r} in merges.txt, which is no pair of pieces")
        merges.append(pair)
    own = parse_json_object(tokenizer.files["vocab.json"], Path(label) / "vocab.json")
    ids = {token: number for token, number in tokenizer.ids.items() if token in own}
    bytes_of: dict[str, object] = {
        "type": "ByteLevel",
        "add_prefix_space": tokenizer.config.get("add_prefix_space") is True,
        "trim_offsets": False,
        "use_regex": name == "GPT2Tokenizer",
    }
    normalizer: dict[str, object] | None = None
    words: dict[str, object] = bytes_of
    if name == "Qwen2Tokenizer":
        normalizer = {"type": "NFC"}
        split = {"type": "Split", "pattern": {"Regex": _QWEN_WORDS}, "invert": False}
        words = {"type": "Sequence", "pretokenizers": [{**split, "behavior": "Isolated"}, bytes_of]}
    section = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": ids, "merges": merges,
    }  # fmt: skip
    return _document(
        {
            "normalizer": normalizer,
            "pre_tokenizer": words,
            "post_processor": {**bytes_of, "use_regex": False},
            "decoder": {**bytes_of, "use_regex": True},
            "model": section,
        }
    )
