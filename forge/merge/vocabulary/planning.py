"""Plan the vocabulary of a result: its tokens, and the embedding row of each in every model.

Before models are merged, the embeddings (and heads) of each are brought into the order of
the result's vocabulary. A row of a model is

    its own                        the token is in its tokenizer, and its embedding has the row
    what ``tokenizer.tokens`` says for that token, where the model lacks it (or ``force``)
    the base's                     where the base has the token
    the only model's               that has it
    the mean over those that have it, in float64

so that a token which a model never saw has no task vector there. Rows beyond the last token
are padding. They are kept, never cut: published models have them, and kernels want them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from forge.checkpoints.checkpoint import Checkpoint
from forge.core.errors import IncompatibleError
from forge.merge.check.stack import leader
from forge.merge.vocabulary.fast_form import with_document
from forge.merge.vocabulary.rows import (
    Speaker,
    fill_rows,
    listed_origins,
    own_rows,
    speaker_of,
)
from forge.merge.vocabulary.source import RemappedSource, remap
from forge.merge.vocabulary.tokens import TOKENIZER_JSON, Tokenizer, read_tokenizers
from forge.merge.vocabulary.types import RowMap, RowOrigin, VocabularyPlan
from forge.merge.vocabulary.union import NewToken, extend_tokenizer
from forge.recipes.merge_entries import TokenizerEntry
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

__all__ = ["RemappedSource", "RowMap", "VocabularyPlan", "plan_vocabulary", "remap"]

_MAX_GROWTH: Final = 1 << 16
_SHOWN: Final = 3


@dataclass(slots=True)
class _Draft:
    """The result's vocabulary while it grows."""

    ids: dict[str, int]
    new: list[NewToken] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def add(self, token: str, origin: Tokenizer | None, *, added: Mapping[str, object]) -> None:
        number = max(self.ids.values(), default=-1) + 1 if not self.new else self.new[-1].id + 1
        self.ids[token] = number
        self.new.append(NewToken(token, number, origin, added))


def plan_vocabulary(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    *,
    known: Mapping[ModelReference, Tokenizer | None] | None = None,
) -> VocabularyPlan | None:
    """Plan the vocabulary that a recipe asks for. No weights are read.

    Args:
        recipe: The recipe.
        checkpoints: Every model of ``recipe.references()`` and ``recipe.tokenizer.references()``.
        known: Tokenizers that have been read already, which need not be parsed again.

    Returns:
        The plan; ``None`` when the recipe has no ``tokenizer``, so that nothing changes.

    Raises:
        IncompatibleError: A model has no tokenizer, a token or its embedding does not exist, or
            the tokenizers cannot be united.
        CheckpointError: A tokenizer's files are malformed.
    """
    wish = recipe.tokenizer
    if wish is None:
        return None
    names = dict.fromkeys([*_speaking_models(recipe), *wish.references()])
    roots = {name: checkpoints[name].tokenizer_root for name in names}
    tokenizers = read_tokenizers(roots, known=known)
    speakers = {name: speaker_of(checkpoints[name], tokenizers[name]) for name in names}
    lead = leader(recipe)
    chosen = lead if isinstance(wish.source, str) else wish.source
    draft = _Draft(dict(speakers[chosen].tokenizer.ids))
    if wish.source == "union":
        _unite(draft, speakers, chosen)
    _add_listed(draft, wish, speakers)
    merged = {name: speakers[name] for name in _speaking_models(recipe)}
    num_rows = _num_rows(draft, wish, speakers, chosen)
    forced = {draft.ids[entry.token] for entry in wish.tokens if entry.force}
    rows: dict[ModelReference, RowMap] = {}
    lacked = {draft.ids[entry.token] for entry in wish.tokens}
    for name, speaker in merged.items():
        own = own_rows(draft.ids, speaker, speakers[lead], num_rows=num_rows, forced=forced)
        if own != tuple(range(speaker.rows)):
            rows[name] = RowMap(own)
            lacked.update(number for number, row in enumerate(own) if row < 0)
    fills = fill_rows(
        draft.ids,
        lacked,
        base=None if recipe.base_model is None else speakers[recipe.base_model],
        lead=speakers[lead],
        merged=tuple(merged.values()),
        all_speakers=tuple(speakers.values()),
    )
    _note_strays(draft, fills, listed={entry.token for entry in wish.tokens})
    for entry in wish.tokens:
        number = draft.ids[entry.token]
        fills[number] = listed_origins(entry, fills[number], speakers)
    _note(draft, merged, rows, num_rows)
    files: Mapping[str, bytes] = {}
    tokenizer = speakers[chosen].tokenizer
    if draft.new:
        if tokenizer.document is None:
            draft.notices.append(
                f"{TOKENIZER_JSON} is derived from {tokenizer.kind} of {chosen}, which has none, "
                "so that tokens can be added to it."
            )
        tokenizer = extend_tokenizer(tokenizer, draft.new, draft.ids, str(chosen))
        files = tokenizer.files
    elif chosen != lead:
        files = tokenizer.files
    return VocabularyPlan(
        num_rows, files, rows, fills, chosen, tuple(draft.notices), tokenizer, tokenizers
    )


def _speaking_models(recipe: MergeRecipe) -> tuple[ModelReference, ...]:
    """Return the models whose embedding or head enters the result, the leader first.

    Of ``slices``, only the first gives an embedding and only the last a head.
    """
    named = [leader(recipe)]
    if recipe.models:
        named += recipe.references()
    for entry in (*recipe.slices[:1], *recipe.slices[-1:]):
        named += [source.model for source in entry.sources]
        named += [] if entry.base_model is None else [entry.base_model]
    return tuple(dict.fromkeys(named))


def _unite(
    draft: _Draft, speakers: Mapping[ModelReference, Speaker], chosen: ModelReference
) -> None:
    # Sorted, so that the order of the recipe's list cannot reach the ids.
    for speaker in sorted(speakers.values(), key=lambda speaker: speaker.model):
        if speaker.model == chosen:
            continue
        tokenizer, added = speaker.tokenizer, speaker.tokenizer.added()
        names = [token for token in tokenizer.ids if token not in draft.ids]
        names.sort(key=tokenizer.ids.__getitem__)
        if any(token not in added for token in names):
            tokenizer = with_document(tokenizer, str(speaker.model))
        for token in names:
            draft.add(token, tokenizer, added=added.get(token, {}))
        if names:
            shown = ", ".join(repr(name) for name in names[:_SHOWN])
            more = "" if len(names) <= _SHOWN else ", ..."
            draft.notices.append(
                f"The vocabulary gets {_tokens(len(names))} of {speaker.model} beyond those of "
                f"{chosen}: {shown}{more}."
            )
    cores = sum(not new.added for new in draft.new)
    if cores:
        draft.notices.append(
            f"Ordinary pieces among those: {cores:,}. They and the rules that make them come after "
            f"those of {chosen}, so text can be split otherwise than by either model."
        )


def _add_listed(
    draft: _Draft, wish: TokenizerEntry, speakers: Mapping[ModelReference, Speaker]
) -> None:
    for entry in wish.tokens:
        if entry.token in draft.ids:
            continue
        found: Mapping[str, object] = {"special": False}
        like = entry.source_token if entry.source_token is not None else entry.token
        for speaker in speakers.values():
            flags = speaker.tokenizer.added().get(entry.token) or (
                speaker.tokenizer.added().get(like) if speaker.model == entry.model else None
            )
            if flags is not None:
                found = flags
                break
        draft.add(entry.token, None, added=found)
        draft.notices.append(f"The vocabulary gets the token {entry.token!r}, as the recipe says.")


def _num_rows(
    draft: _Draft,
    wish: TokenizerEntry,
    speakers: Mapping[ModelReference, Speaker],
    chosen: ModelReference,
) -> int:
    needed = max(draft.ids.values(), default=-1) + 1
    kept = speakers[chosen].rows
    if needed > 2 * max(speaker.rows for speaker in speakers.values()) + _MAX_GROWTH:
        raise IncompatibleError(
            f"The tokenizer of '{chosen}' counts to id {needed - 1:,}, but its embedding has "
            f"{kept:,} rows. They do not belong together; repair the model's tokenizer."
        )
    num_rows = max(needed, kept)
    multiple = wish.pad_to_multiple_of or 1
    return -(-num_rows // multiple) * multiple


def _note_strays(
    draft: _Draft, fills: Mapping[int, tuple[RowOrigin, ...]], *, listed: set[str]
) -> None:
    """Say which tokens no model has an embedding of; some tokenizers count beyond their model."""
    strays = [
        token
        for token, number in draft.ids.items()
        if fills.get(number, True) == () and token not in listed
    ]
    if strays:
        shown = ", ".join(repr(token) for token in strays[:_SHOWN])
        draft.notices.append(
            f"No model has an embedding of {_tokens(len(strays))} of the tokenizer, such as "
            f"{shown}; zeros are taken. Give a source under 'tokenizer: tokens' for others."
        )


def _note(
    draft: _Draft,
    merged: Mapping[ModelReference, Speaker],
    rows: Mapping[ModelReference, RowMap],
    num_rows: int,
) -> None:
    tokens = set(draft.ids.values())
    padding = num_rows - len(tokens)
    if padding:
        draft.notices.append(
            f"The embedding has {num_rows:,} rows for {len(tokens):,} tokens; the other "
            f"{padding:,} are padding."
        )
    for name, row_map in rows.items():
        speaker = merged[name]
        lacked = sum(row_map.own[number] < 0 for number in tokens)
        dropped = [token for token in speaker.tokenizer.ids if token not in draft.ids]
        text = f"The embedding of {name} is rearranged from {speaker.rows:,} rows"
        if lacked:
            text += f"; of the {len(tokens):,} tokens, {lacked:,} get a row that is not its own"
        if dropped:
            shown = ", ".join(repr(token) for token in dropped[:_SHOWN])
            text += f"; the result has no place for {_tokens(len(dropped))} of it, such as {shown}"
        draft.notices.append(f"{text}.")


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"
