"""What each model's tokenizer is, side by side, and where the models differ.

One row is one property, one column one model, so that what differs stands in one line. Texts that
are too long to compare by eye (normalizers, chat templates) are named by what they are made of and
a few digits of their hash: equal digits, equal texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.special_ids import SPECIAL_IDS, special_ids
from forge.merge.vocabulary.tokens import WORDS, Tokenizer
from forge.recipes.reference import ModelReference

Value = str | int | bool | None

_DIGITS: Final = 8
_SECTIONS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_SETTINGS: Final = (
    "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "clean_up_tokenization_spaces",
    "split_special_tokens", "padding_side", "model_max_length",
)  # fmt: skip
_MOST_ONLY: Final = 20
_AROUND: Final = 24
_LARGEST: Final = 1 << 40
"""Above it a number of tokens means that there is no limit; writers put 10^30 there."""


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What one model's tokenizer is.

    Attributes:
        model: The reference as the recipe writes it.
        values: Values by property, in the order of the table; ``None`` where there is none.
        only: Added tokens that not all of the models have, the first ones by id.
    """

    model: str
    values: Mapping[str, Value]
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TemplateDifference:
    """Where a model's chat template leaves that of the first model.

    Attributes:
        model: The model.
        position: Characters that both share.
        expected: What the first model's template says from there on.
        found: What this one says.
    """

    model: str
    position: int
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class TokenizerTable:
    """The tokenizers of all models.

    Attributes:
        models: What each is, the model first that gives the result its tokenizer.
        templates: Chat templates that differ from the first model's.
    """

    models: tuple[TokenizerFacts, ...]
    templates: tuple[TemplateDifference, ...] = ()

    @property
    def differing(self) -> tuple[str, ...]:
        """Properties of which the models have different values."""
        if not self.models:
            return ()
        first, *rest = (facts.values for facts in self.models)
        return tuple(key for key in first if any(other[key] != first[key] for other in rest))

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "models": [
                {"model": facts.model, **facts.values, "only_here": list(facts.only)}
                for facts in self.models
            ],
            "differing": list(self.differing),
            "chat_templates": [
                {
                    "model": item.model,
                    "position": item.position,
                    "expected": item.expected,
                    "found": item.found,
                }
                for item in self.templates
            ],
        }


def tokenizer_table(
    checkpoints: Sequence[Checkpoint],
    tokenizers: Mapping[ModelReference, Tokenizer | None],
    templates: Mapping[ModelReference, str | None],
    rows: Mapping[ModelReference, int | None],
) -> TokenizerTable:
    """Put the tokenizers of models side by side.

    Args:
        checkpoints: The models, the one first that gives the result its tokenizer.
        tokenizers: Their tokenizers.
        templates: Their chat templates.
        rows: Rows of their embeddings.
    """
    names = [checkpoint.reference for checkpoint in checkpoints]
    added = [set(tokenizer.added()) for name in names if (tokenizer := tokenizers[name])]
    shared = set.intersection(*added) if added else set()
    tokens = _tokens_by_id([tokenizers[name] for name in names])
    facts = tuple(
        TokenizerFacts(
            str(name),
            dict(_values(checkpoint, tokenizers[name], held, templates.get(name), rows.get(name))),
            _only(tokenizers[name], shared),
        )
        for name, checkpoint, held in zip(names, checkpoints, tokens, strict=True)
    )
    return TokenizerTable(facts, tuple(_template_differences(names, templates)))


def _tokens_by_id(tokenizers: Sequence[Tokenizer | None]) -> list[Mapping[int, str]]:
    """Return the tokens of each model by id, going only once through what models share."""
    found: dict[int, Mapping[int, str]] = {}
    for tokenizer in tokenizers:
        if tokenizer is not None and id(tokenizer.ids) not in found:
            ids = tokenizer.ids
            found[id(ids)] = dict(zip(ids.values(), ids, strict=True))
    return [{} if each is None else found[id(each.ids)] for each in tokenizers]


def _values(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | None,
    tokens: Mapping[int, str],
    template: str | None,
    rows: int | None,
) -> Iterator[tuple[str, Value]]:
    config: Mapping[str, object] = {} if tokenizer is None else tokenizer.config
    yield "class", _text(config.get("tokenizer_class"))
    yield "model", None if tokenizer is None else tokenizer.kind
    yield "merges", None if tokenizer is None else _length(tokenizer.model().get("merges"))
    yield "tokens", None if tokenizer is None else len(tokenizer.ids)
    highest = max(tokens, default=None)
    yield "highest_id", highest
    yield "rows", rows
    yield "padding_rows", None if tokenizer is None else _padding(tokens, highest or 0, rows)
    added = None if tokenizer is None else [*tokenizer.added().values()]
    yield "added_tokens", None if added is None else len(added)
    yield "special_tokens", None if added is None else sum(e.get("special") is True for e in added)
    for part in WORDS:
        yield part, _token(tokenizer, part)
    ids = {key: _listed(value) for key, value in special_ids(checkpoint).items()}
    for key in SPECIAL_IDS:
        yield key, _ids(ids.get(key, []), tokens)
    document = None if tokenizer is None else tokenizer.document
    for key in _SECTIONS:
        yield key, None if document is None else _outline(document.get(key))
    for key in _SETTINGS:
        yield key, _setting(config.get(key))
    yield "chat_template", None if template is None else _hash(template)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _padding(tokens: Mapping[int, str], highest: int, rows: int | None) -> int | None:
    if rows is None:
        return None
    return rows - (len(tokens) if highest < rows else sum(number < rows for number in tokens))


def _token(tokenizer: Tokenizer | None, part: str) -> str | None:
    word = None if tokenizer is None else tokenizer.words.get(part)
    if tokenizer is None or word is None:
        return None
    number = tokenizer.ids.get(word)
    return f"{word} = {'no token' if number is None else number}"


def _length(value: object) -> int | None:
    return len(value) if isinstance(value, list) else None


def _listed(value: object) -> list[object]:
    return [item for item in (value if isinstance(value, list) else [value]) if item is not None]


def _ids(numbers: Sequence[object], tokens: Mapping[int, str]) -> str | None:
    """Return ids with their tokens, as the configuration in force gives them."""
    shown = [
        f"{json.dumps(item)} {tokens[item]}" if type(item) is int and item in tokens
        else json.dumps(item)
        for item in numbers[:_DIGITS]
    ]  # fmt: skip
    return ", ".join(shown) or None


def _outline(section: object) -> str | None:
    """Return the names of a section's parts and its hash."""
    if section is None:
        return None
    names = [name for name in _types(section) if name != "Sequence"]
    return f"{', '.join(names[:4]) or '?'} {_hash(json.dumps(section, sort_keys=True))}"


def _types(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        kind = value.get("type")
        if isinstance(kind, str):
            yield kind[:40]
        for inner in value.values():
            yield from _types(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _types(inner)


def _setting(value: object) -> Value:
    if type(value) in (int, float) and not -_LARGEST < value < _LARGEST:  # type: ignore[operator]
        return "no limit"
    return value if isinstance(value, str | int | bool) else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


def _only(tokenizer: Tokenizer | None, shared: Iterable[str]) -> tuple[str, ...]:
    if tokenizer is None:
        return ()
    own = sorted(set(tokenizer.added()).difference(shared), key=lambda token: tokenizer.ids[token])
    return tuple(own[:_MOST_ONLY])


def _template_differences(
    names: Sequence[ModelReference], templates: Mapping[ModelReference, str | None]
) -> Iterator[TemplateDifference]:
    first = templates.get(names[0]) if names else None
    for name in names[1:]:
        other = templates.get(name)
        if first is None or other is None or other == first:
            continue
        pairs = zip(first, other, strict=False)
        shortest = min(len(first), len(other))
        position = next((n for n, (a, b) in enumerate(pairs) if a != b), shortest)
        yield TemplateDifference(
            str(name),
            position,
            first[position : position + _AROUND],
            other[position : position + _AROUND],
        )
