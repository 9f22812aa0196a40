"""Carry over which tokens begin, end and pad a text, so that generation with the result ends.

These ids stand in three files (``config.json``, ``generation_config.json`` and, as text,
``tokenizer_config.json``), and mean something in one vocabulary only. They follow two choices:

- The tokenizer. When another model's is taken, its ids are written. Ids of other tokens in the
  configuration (of an image, of the decoder's start) are looked up by the token they name.
- The chat template. One that was written for another model ends turns with that model's token,
  or with the token that its name stands for. Then that token ends generation, before those that
  did already: a model that was taught to say <|im_end|> never says </s>.

What cannot be carried over is said: a token that the result's vocabulary does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from forge.architectures.names import architecture_of
from forge.checkpoints.chat_templates import choose_template, dump_json, template_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import GENERATION_FILE, read_tokenizer_files
from forge.checkpoints.folder import parse_json_object, read_bytes, read_json_object
from forge.checkpoints.special_ids import SPECIAL_IDS, special_ids
from forge.merge.check.stack import leader
from forge.merge.vocabulary.tokens import (
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    Tokenizer,
    read_tokenizers,
)
from forge.merge.vocabulary.types import VocabularyPlan
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

_NAMES_IDS: Final = re.compile(r"(?:^|_)token_(?:id|ids|index)$")
_TURN_ENDS: Final[Mapping[str, str]] = {
    "chatml": "<|im_end|>",
    "exaone": "[|endofturn|]",
    "llama3": "<|eot_id|>",
}
"""What ends a turn in the templates that a recipe can name; the others use ``eos_token``."""
_MARKER: Final = re.compile(
    r"<\|[^|<>{}'\"\s]{1,48}\|>|\[\|[^|\[\]{}'\"\s]{1,48}\|\]|<(?:start|end)_of_turn>"
)
_SHOWN: Final = 3

Ids = int | list[int] | None


@dataclass(frozen=True, slots=True)
class Endings:
    """The special tokens of a result, where they are not those of the model it starts from.

    Attributes:
        config_ids: Keys of ``config.json`` that name tokens, and their ids in the result; ``None``
            where the result has no such token.
        generation: ``generation_config.json``; ``None`` when the result has none.
        words: Tokens as text for ``tokenizer_config.json``, by part.
        template: The chat template, when the recipe chooses one.
        warnings: What is probably not what was meant.
        notices: What is done.
    """

    config_ids: Mapping[str, Ids] = field(default_factory=dict)
    generation: bytes | None = None
    words: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    warnings: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


def endings_of(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    vocabulary: VocabularyPlan | None,
    *,
    known: Mapping[ModelReference, Tokenizer | None] | None = None,
) -> Endings:
    """Decide the special tokens of a result.

    Args:
        recipe: The recipe.
        checkpoints: The models.
        vocabulary: The new vocabulary, when the recipe makes one.
        known: Tokenizers that have been read already.

    Raises:
        CheckpointError: A file is malformed.
        IncompatibleError: The recipe's chat template does not exist.
    """
    lead = leader(recipe)
    speaker = lead if vocabulary is None else vocabulary.tokenizer_model
    generation = read_bytes(checkpoints[speaker].root, GENERATION_FILE)
    if speaker == lead and recipe.chat_template is None:
        return Endings(generation=generation)
    tokenizers = dict(known or ({} if vocabulary is None else vocabulary.tokenizers))
    draft = _Draft(recipe, checkpoints, tokenizers, speaker, vocabulary)
    if speaker != lead:
        draft.take_ids(lead)
        if generation is None:
            draft.take_generation(lead)
    if recipe.chat_template is not None:
        draft.take_template()
    return draft.endings(generation)


class _Draft:
    """The special tokens of a result while they are decided."""

    def __init__(
        self,
        recipe: MergeRecipe,
        checkpoints: Mapping[ModelReference, Checkpoint],
        tokenizers: dict[ModelReference, Tokenizer | None],
        speaker: ModelReference,
        vocabulary: VocabularyPlan | None,
    ) -> None:
        self._recipe = recipe
        self._checkpoints = checkpoints
        self._tokenizers = tokenizers
        self._speaker = speaker
        own = None if vocabulary is not None else self._tokenizer(speaker)
        self._ids: Mapping[str, int] = (
            vocabulary.tokenizer.ids if vocabulary is not None else {} if own is None else own.ids
        )
        self._config_ids: dict[str, Ids] = {}
        self._generation: dict[str, object] | None = None
        self._words: dict[str, str] = {}
        self._template: str | None = None
        self._warnings: list[str] = []
        self._notices: list[str] = []

    def endings(self, generation: bytes | None) -> Endings:
        """Return what was decided; ``generation`` is the file where nothing changes it."""
        if self._generation is not None:
            generation = dump_json(self._generation)
        return Endings(
            self._config_ids,
            generation,
            self._words,
            self._template,
            tuple(self._warnings),
            tuple(self._notices),
        )

    def take_ids(self, lead: ModelReference) -> None:
        """Take the ids of the model whose tokenizer is taken, and look up all others."""
        theirs = _parts_of(self._checkpoints[self._speaker])
        for key, value in _parts_of(self._checkpoints[lead]).items():
            if key in SPECIAL_IDS and key in theirs:
                continue
            renumbered, lost = self._renumbered(lead, value)
            if renumbered != value or lost:
                self._config_ids[key] = renumbered
                outcome = (
                    f"which the tokenizer of {self._speaker} does not have, so it is left out"
                    if lost
                    else f"which is {renumbered} in the result"
                )
                say = self._warnings if lost else self._notices
                say.append(
                    f"{key} in config.json of {lead} is {value}"
                    f"{f' ({lost!r})' if lost else ''}, {outcome}."
                )
        self._config_ids |= {key: theirs[key] for key in SPECIAL_IDS if key in theirs}

    def take_generation(self, lead: ModelReference) -> None:
        """Take how another model generates, since the tokenizer's does not say."""
        theirs = read_json_object(self._checkpoints[lead].root, GENERATION_FILE)
        if theirs is None:
            return
        kept = dict(theirs)
        for key, value in _ids_in(theirs).items():
            renumbered, lost = self._renumbered(lead, value)
            kept[key] = self._config_ids.get(key, renumbered)
            if lost and kept[key] is None:
                del kept[key]
        self._generation = kept
        self._notices.append(
            f"{self._speaker} has no {GENERATION_FILE}, so the result gets that of {lead}, with "
            "the ids of its own tokens."
        )

    def take_template(self) -> None:
        """Take the recipe's chat template, and what ends a turn in it."""
        wish = self._recipe.chat_template or ""
        templates = {
            model: template_of(read_tokenizer_files(self._checkpoints[model].tokenizer_root))
            for model in self._recipe.references()
        }
        template = self._template = choose_template(wish, [*templates.values()])
        if not self._ids:
            return
        self._check_markers(template)
        owners = [model for model, text in templates.items() if text == template]
        if wish in _TURN_ENDS:
            self._stop_at([_TURN_ENDS[wish]], f"the chat template '{wish}'")
        elif wish == "auto" and self._speaker not in owners:
            self._take_turns(owners[0], template)

    def _check_markers(self, template: str) -> None:
        markers = dict.fromkeys(_MARKER.findall(template))
        if strange := [marker for marker in markers if marker not in self._ids]:
            self._warnings.append(
                f"The chat template writes {_quoted(strange)}, which "
                f"{'is no token' if len(strange) == 1 else 'are no tokens'} of the result, so "
                "the model reads them letter by letter. List them under 'tokenizer: tokens', take "
                "the vocabulary of a model that has them, or choose another template."
            )

    def _take_turns(self, owner: ModelReference, template: str) -> None:
        """Take what ends a turn from the model whose template is taken."""
        tokenizer = self._tokenizer(owner)
        if tokenizer is None:
            return
        value = special_ids(self._checkpoints[owner]).get("eos_token_id")
        stops = _tokens(tokenizer, _listed(value))
        for part in ("eos_token", "bos_token"):
            word = tokenizer.words.get(part)
            own = self._tokenizer(self._speaker)
            if word is None or (own is not None and own.words.get(part) == word):
                continue
            if word not in self._ids:
                if part == "eos_token" or part in template:
                    self._warnings.append(
                        f"The chat template of {owner} was written for the {part} {word!r}, which "
                        "the result does not have. Use 'tokenizer: {source: union}', or choose "
                        "another template."
                    )
            elif part == "eos_token" or part in template:
                self._words[part] = word
                self._notices.append(
                    f"{part} is {word!r}, that of {owner}, whose chat template the result gets."
                )
        self._stop_at(stops, f"the chat template of {owner}")

    def _stop_at(self, tokens: Sequence[str], reason: str) -> None:
        """Let generation end at tokens, before those at which it does already."""
        stops = [self._ids[token] for token in tokens if token in self._ids]
        present = self._generation
        if present is None:
            read = read_json_object(self._checkpoints[self._speaker].root, GENERATION_FILE)
            present = dict(read or {})
        before = _listed(
            present.get("eos_token_id")
            or special_ids(self._checkpoints[self._speaker]).get("eos_token_id")
        )
        if not stops or before[: len(stops)] == stops:
            return
        ends: list[int] = list(dict.fromkeys([*stops, *before]))
        value: Ids = ends[0] if len(ends) == 1 else ends
        self._generation = {**present, "eos_token_id": value}
        self._config_ids["eos_token_id"] = value
        self._notices.append(
            f"Generation ends at {_quoted(tokens)} (eos_token_id {value}), because {reason} ends "
            "turns so."
        )

    def _renumbered(self, model: ModelReference, value: Ids) -> tuple[Ids, str]:
        """Return ids in the result's vocabulary, and the token that it does not have, if any."""
        tokenizer = self._tokenizer(model)
        numbers = _listed(value)
        if tokenizer is None:
            return value, ""
        names = _by_id(tokenizer, numbers)
        kept: list[int] = []
        lost = ""
        for number in numbers:
            token = names.get(number)
            if token is None:
                # An id without a token, such as -1 for "none", means the same everywhere.
                kept.append(number)
            elif token in self._ids:
                kept.append(self._ids[token])
            else:
                lost = lost or token
        if isinstance(value, list):
            return kept, lost
        return (kept[0] if kept else None), lost

    def _tokenizer(self, model: ModelReference) -> Tokenizer | None:
        if model not in self._tokenizers:
            self._tokenizers |= read_tokenizers({model: self._checkpoints[model].tokenizer_root})
        return self._tokenizers[model]


def _parts_of(checkpoint: Checkpoint) -> dict[str, Ids]:
    """Return the keys that name tokens, of the whole configuration and of its text part."""
    config = checkpoint.config
    architecture = architecture_of(config, tensor_names=checkpoint.source.names())
    return {**_ids_in(config), **_ids_in(architecture.text_config(config))}


def _ids_in(values: Mapping[str, object]) -> dict[str, Ids]:
    found: dict[str, Ids] = {}
    for key, value in values.items():
        if not _NAMES_IDS.search(key):
            continue
        if type(value) is int:
            found[key] = value
        elif isinstance(value, list) and value and all(type(item) is int for item in value):
            found[key] = list(value)
    return found


def _listed(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int]


def _by_id(tokenizer: Tokenizer, numbers: Iterable[int]) -> dict[int, str]:
    wanted = frozenset(numbers)
    return {number: token for token, number in tokenizer.ids.items() if number in wanted}


def _tokens(tokenizer: Tokenizer, numbers: Sequence[int]) -> list[str]:
    names = _by_id(tokenizer, numbers)
    return [names[number] for number in numbers if number in names]


def _quoted(tokens: Sequence[str]) -> str:
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return ", ".join(repr(token) for token in tokens[:_SHOWN]) + more


def with_words(files: Mapping[str, bytes], words: Mapping[str, str]) -> dict[str, bytes]:
    """Return a tokenizer's files with other tokens in some parts.

    Args:
        files: Content by name.
        words: Tokens by part, such as ``eos_token``.

    Raises:
        CheckpointError: A file is not valid JSON.
    """
    changed = dict(files)
    for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP):
        if not words or (name not in files and name == SPECIAL_TOKENS_MAP):
            continue
        content = parse_json_object(files.get(name, b"{}"), Path(name))
        changed[name] = dump_json({**content, **words})
    return changed
