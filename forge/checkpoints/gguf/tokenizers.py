"""Rebuild ``tokenizer.json`` from the vocabulary that a GGUF carries.

A GGUF holds the tokens in the order of their numbers, the type of each, and either merges
(``gpt2``: byte-level BPE) or scores (``llama``: SentencePiece BPE). How text is cut before merging,
and by which rules special tokens are found in it, is only named or left out. What is rebuilt here
is what is known to give the original's numbers. Of anything else no tokenizer is made, because one
that cuts a few words otherwise would spoil a model unnoticed.

    model    tokenizer.ggml.pre               text is cut into
    gpt2     gpt-2                            GPT-2's words
             smollm                           single digits, then GPT-2's words
             llama-bpe, llama3, llama-v3      Llama 3's words; a word that is a token stays whole
             qwen2                            Qwen 2's words, after NFC
    llama    (architecture ``llama`` only)    nothing: blanks become ▁, unknown characters bytes

Rows of the embedding without a token (converters call them ``[PAD123]``) have none here, either.
"""

from __future__ import annotations

import json
from typing import Final

from forge.checkpoints.gguf.byte_level import POST_PROCESSOR, Step, byte_level, cut_of
from forge.checkpoints.gguf.metadata import Metadata
from forge.checkpoints.gguf.sentencepiece import sentencepiece
from forge.checkpoints.gguf.vocabulary import CannotRebuildError, Vocabulary, read_vocabulary

_BUILDERS: Final = {"gpt2": byte_level, "llama": sentencepiece}
_ROLES: Final = (
    ("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"),
)  # fmt: skip


def rebuilt_tokenizer(metadata: Metadata) -> tuple[dict[str, bytes], str | None]:
    """Return a tokenizer's files.

    Args:
        metadata: The model's metadata.

    Returns:
        Files by name, and ``None``; or no files, and why there are none.

    Raises:
        CheckpointError: The metadata are of other types than they should be.
    """
    try:
        return _rebuilt(metadata), None
    except CannotRebuildError as error:
        return {}, (
            f"the tokenizer in '{metadata.path.name}' was not rebuilt: {error}. Put the original "
            "tokenizer files beside the GGUF, or take another model's in the recipe (tokenizer: "
            "{source: MODEL})."
        )


def _rebuilt(metadata: Metadata) -> dict[str, bytes]:
    kind = metadata.optional_text("tokenizer.ggml.model")
    if kind is None or kind not in _BUILDERS:
        stated = "the file has none" if kind is None else f"it is of the model {kind[:40]!r}"
        raise CannotRebuildError(f"{stated}, and forge rebuilds {' and '.join(_BUILDERS)}")
    vocabulary = read_vocabulary(metadata)
    table: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens(),
        **_BUILDERS[kind](metadata, vocabulary),
        "post_processor": _post_processor(metadata, vocabulary, kind),
    }
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":"))
    _check(text, vocabulary)
    config = json.dumps(_tokenizer_config(metadata, vocabulary), ensure_ascii=False, indent=2)
    return {"tokenizer.json": text.encode(), "tokenizer_config.json": f"{config}\n".encode()}


def _post_processor(metadata: Metadata, vocabulary: Vocabulary, kind: str) -> Step | None:
    """Return what puts the first and the last token on a text."""
    adds_bos, processors = True, list[Step]()
    if kind == "gpt2":
        cut = cut_of(metadata, vocabulary)
        adds_bos, processors = cut.adds_bos, [POST_PROCESSOR] if cut.trims else []
    begin = _put_on(metadata, vocabulary, "bos", default=adds_bos)
    end = _put_on(metadata, vocabulary, "eos", default=False)
    if begin or end:
        processors.append(_template(begin, end))
    if len(processors) < 2:
        return processors[0] if processors else None
    return {"type": "Sequence", "processors": processors}


def _put_on(
    metadata: Metadata, vocabulary: Vocabulary, role: str, *, default: bool
) -> dict[str, int]:
    """Return the token that is put on every text, and its number, if one is."""
    if not metadata.flag(f"tokenizer.ggml.add_{role}_token", default):
        return {}
    number = metadata.whole(f"tokenizer.ggml.{role}_token_id", optional=True)
    if number is None:
        raise CannotRebuildError(f"it puts the {role} token on every text, and does not name it")
    return {vocabulary.spelled(number): number}


def _template(begin: dict[str, int], end: dict[str, int]) -> Step:
    def text(letter: str, type_id: int) -> list[object]:
        before, after = (
            [{"SpecialToken": {"id": token, "type_id": type_id}} for token in tokens]
            for tokens in (begin, end)
        )
        return [*before, {"Sequence": {"id": letter, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in (begin | end).items()
        },
    }


def _tokenizer_config(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, object]:
    config: dict[str, object] = {
        # The generic class reads tokenizer.json as it is; those of the families rebuild parts.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.positive(".context_length"),
    }
    for role, theirs in _ROLES:
        number = metadata.whole(f"tokenizer.ggml.{theirs}_token_id", optional=True)
        if number is not None:
            config[role] = vocabulary.spelled(number)
    template = metadata.optional_text("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def _check(text: str, vocabulary: Vocabulary) -> None:
    """Let the library load what was built, and ask it for every token's number."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # The library raises no narrower class.
        raise CannotRebuildError(f"the tokenizers library refuses it ({error})") from error
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    for number, token in enumerate(vocabulary.tokens):
        if token is not None and numbers.get(token) != number:
            raise CannotRebuildError(f"token {number}, {token[:40]!r}, would get another number")
