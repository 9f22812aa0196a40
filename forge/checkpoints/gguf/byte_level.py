"""Rebuild a byte-level BPE tokenizer (``gpt2`` in GGUF) from tokens and merges.

How text is cut into words before merging is only named in the file (``tokenizer.ggml.pre``). The
rules behind the name are written here for those vocabularies of which they are known exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from forge.checkpoints.gguf.metadata import Metadata
from forge.checkpoints.gguf.vocabulary import CannotRebuildError, Vocabulary

Step = Mapping[str, object]
"""A part of a tokenizer as ``tokenizer.json`` says it."""

_BYTES: Final[Step] = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False,
}  # fmt: skip
_GPT2_WORDS: Final[Step] = {**_BYTES, "use_regex": True}
_LLAMA3_WORDS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS: Final = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, slots=True)
class Cut:
    """How a vocabulary cuts text.

    Attributes:
        steps: What happens before the merges.
        nfc: Whether text is first composed (Unicode NFC).
        whole_words: Whether a word that is a token needs no merges.
        adds_bos: Whether a file that does not say so puts the first token before a text.
        trims: Whether the original states how it counts places; numbers do not depend on it.
    """

    steps: tuple[Step, ...]
    nfc: bool = False
    whole_words: bool = False
    adds_bos: bool = False
    trims: bool = True


def _split(pattern: str) -> tuple[Step, ...]:
    words = {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    return words, _BYTES


_LLAMA3: Final = Cut(_split(_LLAMA3_WORDS), whole_words=True, adds_bos=True)
CUTS: Final[Mapping[str, Cut]] = {
    "gpt-2": Cut((_GPT2_WORDS,)),
    "smollm": Cut(({"type": "Digits", "individual_digits": True}, _GPT2_WORDS), trims=False),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": Cut(_split(_QWEN2_WORDS), nfc=True),
}
"""By ``tokenizer.ggml.pre``."""
SIGNATURES: Final[Mapping[tuple[int, str], str]] = {
    (128000, "<|begin_of_text|>"): "llama-bpe",
    (151643, "<|endoftext|>"): "qwen2",
    (50256, "<|endoftext|>"): "gpt-2",
}
"""First special token of a vocabulary, by which it is known. Files from before May 2024, the first
ones of OpenBioLLM among them, do not name the rules."""
POST_PROCESSOR: Final[Step] = {**_GPT2_WORDS, "trim_offsets": False}


def cut_of(metadata: Metadata, vocabulary: Vocabulary) -> Cut:
    """Return how a file's vocabulary cuts text.

    Args:
        metadata: The file's metadata.
        vocabulary: Its tokens, by which files are recognized that do not name their rules.

    Raises:
        CannotRebuildError: Its rules are not known.
    """
    pre = metadata.optional_text("tokenizer.ggml.pre")
    if pre in (None, "default"):
        found = (name for token, name in SIGNATURES.items() if vocabulary.has(*token))
        pre = next(found, pre)
    if pre is None or pre not in CUTS:
        stated = "it does not say how it cuts text" if pre is None else (
            f"it cuts text by the rules {pre[:40]!r}"
        )  # fmt: skip
        raise CannotRebuildError(f"{stated}, and forge knows the rules {', '.join(CUTS)}")
    return CUTS[pre]


def byte_level(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, object]:
    """Return a tokenizer, but for its post-processor.

    Args:
        metadata: The file's metadata.
        vocabulary: Its tokens.

    Returns:
        Parts of ``tokenizer.json`` by key.

    Raises:
        CannotRebuildError: Its rules are not known, or its merges are damaged.
        CheckpointError: The metadata are of other types than they should be.
    """
    cut = cut_of(metadata, vocabulary)
    merges: list[tuple[str, str]] = []
    for merge in metadata.strings("tokenizer.ggml.merges") or ():
        parts = merge.decode("utf-8", "replace").split(" ")
        if len(parts) != 2 or not all(parts):
            raise CannotRebuildError(f"its merge {merge[:40]!r} does not have two parts")
        merges.append((parts[0], parts[1]))
    return {
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut.steps},
        "decoder": {**_GPT2_WORDS, "add_prefix_space": True},
        "model": vocabulary.bpe(merges, ignore_merges=cut.whole_words),
    }
