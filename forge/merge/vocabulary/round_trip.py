"""Compare two tokenizers by what they do: split hard strings, and give the text back.

Equal ids are no proof that text is fed to a model as it was trained: two tokenizers of one
vocabulary can differ in how they prepare text, or in the order of their merges. So both split
every hard string, by the ``tokenizers`` library, and their tokens are compared as text.

Loading a tokenizer of 128,000 pieces takes half a second, most of it for merges that the strings
never meet. A BPE is therefore narrowed first: a merge can only happen where the joined piece is
a part of the prepared text, so all other pieces and merges are left out. What is left splits these
strings exactly as the whole does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from forge.merge.vocabulary.fast_form import with_document
from forge.merge.vocabulary.tokenizers_library import load_library, refusing
from forge.merge.vocabulary.tokens import Tokenizer

_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_EMPTY: Final[Mapping[str, object]] = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
    "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
    "ignore_merges": False, "vocab": {}, "merges": [],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Passage:
    """What a tokenizer made of a text: its tokens, and the text that they give back."""

    tokens: tuple[str, ...]
    back: str


@dataclass(frozen=True, slots=True)
class Change:
    """A text that two tokenizers treat differently.

    Attributes:
        name: Name of the text.
        text: The text.
        before: What the first made of it.
        after: What the second made of it.
    """

    name: str
    text: str
    before: Passage
    after: Passage

    @property
    def is_split(self) -> bool:
        """Whether the tokens differ."""
        return self.before.tokens != self.after.tokens

    @property
    def is_lost(self) -> bool:
        """Whether the first gives the text back and the second does not."""
        return self.before.back == self.text != self.after.back

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "text": self.text,
            "before": {"tokens": list(self.before.tokens), "back": self.before.back},
            "after": {"tokens": list(self.after.tokens), "back": self.after.back},
        }


def compare(
    before: Mapping[str, Passage], after: Mapping[str, Passage], texts: Mapping[str, str]
) -> tuple[Change, ...]:
    """Return the texts that two tokenizers treat differently.

    Args:
        before: What the first made of the texts, by name.
        after: What the second did.
        texts: The texts by name; those of ``before`` and ``after``, or fewer.
    """
    return tuple(
        Change(name, text, before[name], after[name])
        for name, text in texts.items()
        if before[name] != after[name]
    )


def read_texts(tokenizer: Tokenizer, texts: Mapping[str, str], label: str) -> dict[str, Passage]:
    """Split texts and put them together again.

    Args:
        tokenizer: The tokenizer. What it puts around a text (<s>, ...) is left out.
        texts: Texts by name.
        label: Its model, for messages.

    Returns:
        Tokens and text by the same names.

    Raises:
        IncompatibleError: It cannot be loaded, or does not work.
        CheckpointError: A file is malformed.
    """
    tokenizer = with_document(tokenizer, label)
    found: dict[str, Passage] = {}
    with refusing(label):
        document = narrowed(tokenizer, texts.values())
        library = load_library(json.dumps(document).encode(), label)
        for name, text in texts.items():
            encoding = library.encode(text, add_special_tokens=False)
            back = library.decode(encoding.ids, skip_special_tokens=False)
            found[name] = Passage(tuple(encoding.tokens), back)
    return found


def are_same(one: Tokenizer, other: Tokenizer) -> bool:
    """Return whether two tokenizers split every text alike, by what they say alone."""
    if one.document is None or other.document is None:
        return False
    return _essence(one.document) == _essence(other.document)


def _essence(document: Mapping[str, object]) -> list[object]:
    keys = ("normalizer", "pre_tokenizer", "decoder", "model", "added_tokens")
    return [document.get(key) or None for key in keys]


def narrowed(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, object]:
    """Return the ``tokenizer.json`` that splits these texts alike, with as little in it as can be.

    Args:
        tokenizer: A tokenizer that has a ``tokenizer.json``.
        texts: The texts that will be split.

    Returns:
        The document. Ids are not those of the tokenizer, and nothing is put around a text.
    """
    assert tokenizer.document is not None
    document: dict[str, object] = {
        **tokenizer.document,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    model = tokenizer.model()
    vocab, merges = model.get("vocab"), model.get("merges")
    spells_ends = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    if tokenizer.kind != "BPE" or not isinstance(vocab, dict) or not isinstance(merges, list):
        return document
    if spells_ends or model.get("dropout"):
        return document
    longest = max(map(len, vocab), default=0)
    parts = _parts(_prepared(document, tokenizer.added(), texts), longest)
    always = {*tokenizer.added(), model.get("unk_token")}
    kept = [piece for piece in vocab if piece in parts or piece in always or _BYTE.fullmatch(piece)]
    pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges)
    document["model"] = {
        **model,
        "vocab": {piece: number for number, piece in enumerate(kept)},
        "merges": [list(pair) for pair in pairs if "".join(pair) in parts],
    }
    return document


def _prepared(
    document: Mapping[str, object],
    added: Mapping[str, Mapping[str, object]],
    texts: Iterable[str],
) -> Iterator[str]:
    """Yield every text, and every stretch between added tokens, as the model gets to see it."""
    from tokenizers import Tokenizer as Library

    empty = {**document, "model": dict(_EMPTY), "added_tokens": []}
    library = Library.from_buffer(json.dumps(empty).encode())
    everywhere = _between(added)
    raw = _between([token for token in added if added[token].get("normalized") is not True])
    stretches: dict[str, None] = {}
    for text in texts:
        for stretch in (text, *everywhere(text), *raw(text)):
            # Added tokens may take the blanks beside them.
            stretches |= dict.fromkeys((stretch, stretch.strip(), stretch.lstrip()))
            stretches |= dict.fromkeys((stretch.rstrip(),))
    for stretch in stretches:
        text = stretch
        if library.normalizer is not None:
            text = library.normalizer.normalize_str(text)
        if library.pre_tokenizer is None:
            yield text
        else:
            yield "".join(word for word, _ in library.pre_tokenizer.pre_tokenize_str(text))


def _between(tokens: Iterable[str]) -> Any:
    listed = sorted(filter(None, tokens), key=len, reverse=True)
    if not listed:
        return lambda text: [text]
    return re.compile("|".join(map(re.escape, listed))).split


def _parts(texts: Iterable[str], longest: int) -> set[str]:
    """Return everything that stands in the texts, up to a length."""
    return {
        text[begin:end]
        for text in dict.fromkeys(texts)
        for begin in range(len(text))
        for end in range(begin + 1, min(len(text), begin + longest) + 1)
    }


def shown(tokens: Sequence[str], most: int = 8) -> str:
    """Return tokens for a message: quoted, and only the first ones."""
    more = f", and {len(tokens) - most} more" if len(tokens) > most else ""
    return ", ".join(repr(token) for token in tokens[:most]) + more if tokens else "nothing"
