"""Plan the vocabulary of a result: its tokens, and the embedding row of each in every model.

Before models are merged, the embeddings (and heads) of each are brought into the order of
the result's vocabulary. A row of a model is

    its own                        the token is in its tokenizer, and its embedding has the row
    what ``tokenizer.tokens`` says for that token, where the model lacks it (or ``force``)
    the base's                     where the base has the token
    the only model's               that has it
    the mean over those that have it, in float32, rounded once

so that a token which a model never saw has no task vector there. Rows beyond the last token
are padding. They are kept, never cut: published models have them, and kernels want them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.core.catalog import did_you_mean
from forge.core.errors import IncompatibleError
from forge.merge.check_stack import leader
from forge.merge.vocabulary_source import RemappedSource, remap
from forge.merge.vocabulary_tokens import Tokenizer, read_tokenizers
from forge.merge.vocabulary_types import RowMap, RowOrigin, VocabularyPlan
from forge.merge.vocabulary_union import NewToken, extend_tokenizer
from forge.recipes.merge_entries import TokenEntry, TokenizerEntry
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

__all__ = ["RemappedSource", "RowMap", "VocabularyPlan", "plan_vocabulary", "remap"]

_MAX_GROWTH: Final = 1 << 16
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class _Speaker:
    """A model as far as its vocabulary goes."""

    model: ModelReference
    tokenizer: Tokenizer
    rows: int

    def row(self, token: str) -> int | None:
        """Return the embedding row of a token, or ``None`` when the model has none for it."""
        number = self.tokenizer.ids.get(token)
        return number if number is not None and number < self.rows else None


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
    recipe: MergeRecipe, checkpoints: Mapping[ModelReference, Checkpoint]
) -> VocabularyPlan | None:
    """Plan the vocabulary that a recipe asks for. No weights are read.

    Args:
        recipe: The recipe.
        checkpoints: Every model of ``recipe.references()`` and ``recipe.tokenizer.references()``.

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
    tokenizers = read_tokenizers({name: checkpoints[name].root for name in names})
    speakers = {name: _speaker(checkpoints[name], tokenizers[name]) for name in names}
    lead = leader(recipe)
    chosen = lead if isinstance(wish.source, str) else wish.source
    draft = _Draft(dict(speakers[chosen].tokenizer.ids))
    if wish.source == "union":
        _unite(draft, speakers, chosen)
    _add_listed(draft, wish, speakers)
    merged = {name: speakers[name] for name in _speaking_models(recipe)}
    num_rows = _num_rows(draft, wish, speakers, chosen)
    fills = _fills(draft, recipe, wish, merged, speakers, num_rows)
    forced = {draft.ids[entry.token] for entry in wish.tokens if entry.force}
    rows: dict[ModelReference, RowMap] = {}
    for name, speaker in merged.items():
        own = _own_rows(draft, speaker, speakers[lead], num_rows, forced)
        if own != tuple(range(speaker.rows)):
            rows[name] = RowMap(own)
    _note(draft, merged, rows, num_rows)
    files: Mapping[str, bytes] = {}
    if draft.new:
        files = extend_tokenizer(speakers[chosen].tokenizer, draft.new, draft.ids, str(chosen))
    elif chosen != lead:
        files = speakers[chosen].tokenizer.files
    return VocabularyPlan(num_rows, files, rows, fills, chosen, tuple(draft.notices))


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


def _speaker(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> _Speaker:
    model, source = checkpoint.reference, checkpoint.source
    names = source.names()
    architecture = architecture_of(checkpoint.config, tensor_names=names)
    embedding = next((name for name in architecture.embeddings if name in set(names)), None)
    if embedding is None:
        raise IncompatibleError(
            f"'{model}' has no tensor '{architecture.embeddings[0]}', whose rows are the "
            "vocabulary. Remove 'tokenizer' from the recipe, or repair the model."
            if architecture.embeddings
            else f"The embedding of '{model}' was not found. Remove 'tokenizer' from the recipe."
        )
    counts = {
        name: source.info(name).shape[0]
        for name in names
        if architecture.vocabulary_axis(name) == 0 and source.info(name).shape
    }
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"'{name}' has {count:,}" for name, count in counts.items())
        raise IncompatibleError(
            f"The rows of '{model}' do not fit each other: {listing}. Its vocabulary cannot be "
            "rearranged; remove 'tokenizer' from the recipe, or repair the model."
        )
    if tokenizer is None:
        raise IncompatibleError(
            f"'{model}' has no tokenizer that forge can read (tokenizer.json, vocab.json or "
            "tokenizer.model). Add its files to the model's folder, or remove 'tokenizer' from "
            "the recipe."
        )
    return _Speaker(model, tokenizer, counts[embedding])


def _unite(
    draft: _Draft, speakers: Mapping[ModelReference, _Speaker], chosen: ModelReference
) -> None:
    for speaker in speakers.values():
        if speaker.model == chosen:
            continue
        added = speaker.tokenizer.added()
        before = len(draft.new)
        for token in sorted(speaker.tokenizer.ids, key=speaker.tokenizer.ids.__getitem__):
            if token not in draft.ids:
                draft.add(token, speaker.tokenizer, added=added.get(token, {}))
        names = [new.token for new in draft.new[before:]]
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
            f"{_tokens(cores)} of those are ordinary pieces. They and the rules that make them come "
            f"after those of {chosen}, so text can be split otherwise than by either model."
        )


def _add_listed(
    draft: _Draft, wish: TokenizerEntry, speakers: Mapping[ModelReference, _Speaker]
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
    speakers: Mapping[ModelReference, _Speaker],
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


def _own_rows(
    draft: _Draft, speaker: _Speaker, lead: _Speaker, num_rows: int, forced: set[int]
) -> tuple[int, ...]:
    """Return the model's own row for each row of the result, -1 where it is filled."""
    own = [-1] * num_rows
    for token, number in draft.ids.items():
        row = speaker.row(token)
        if row is not None and number not in forced:
            own[number] = row
    meant = set(draft.ids.values())
    spoken = set(speaker.tokenizer.ids.values())
    # A padding row is one in every model or none: half a task vector would be invented.
    lead_spoken = set(lead.tokenizer.ids.values())
    for number in range(min(num_rows, speaker.rows, lead.rows)):
        if number not in meant and number not in spoken and number not in lead_spoken:
            own[number] = number
    return tuple(own)


def _fills(
    draft: _Draft,
    recipe: MergeRecipe,
    wish: TokenizerEntry,
    merged: Mapping[ModelReference, _Speaker],
    speakers: Mapping[ModelReference, _Speaker],
    num_rows: int,
) -> dict[int, tuple[RowOrigin, ...]]:
    """Return where each row comes from that a model lacks; no origin means zeros."""
    base = None if recipe.base_model is None else merged[recipe.base_model]
    lead = merged[leader(recipe)]
    fills: dict[int, tuple[RowOrigin, ...]] = {}
    strays: list[str] = []
    for token, number in draft.ids.items():
        origins = _default_origins(token, base, merged, speakers)
        if not origins:
            strays.append(token)
        fills[number] = origins
    taken = set(draft.ids.values())
    lead_spoken = set(lead.tokenizer.ids.values())
    for number in range(num_rows):
        if number not in taken:
            is_padding = number < lead.rows and number not in lead_spoken
            fills[number] = (RowOrigin(lead.model, number),) if is_padding else ()
    listed = {entry.token for entry in wish.tokens}
    for entry in wish.tokens:
        number = draft.ids[entry.token]
        fills[number] = _listed_origins(entry, fills[number], speakers)
    silent = [token for token in strays if token not in listed]
    if silent:
        shown = ", ".join(repr(token) for token in silent[:_SHOWN])
        draft.notices.append(
            f"No model has an embedding of {len(silent):,} tokens of its tokenizer, such as "
            f"{shown}; they get zeros. Give them a source under 'tokenizer: tokens'."
        )
    return fills


def _default_origins(
    token: str,
    base: _Speaker | None,
    merged: Mapping[ModelReference, _Speaker],
    speakers: Mapping[ModelReference, _Speaker],
) -> tuple[RowOrigin, ...]:
    if base is not None and (row := base.row(token)) is not None:
        return (RowOrigin(base.model, row),)
    for group in (merged, speakers):
        found = [
            RowOrigin(speaker.model, row)
            for speaker in group.values()
            if (row := speaker.row(token)) is not None
        ]
        if found:
            # Sorted, so that the order of the recipe's list cannot reach the mean's last bit.
            return tuple(sorted(found))
    return ()


def _listed_origins(
    entry: TokenEntry,
    default: tuple[RowOrigin, ...],
    speakers: Mapping[ModelReference, _Speaker],
) -> tuple[RowOrigin, ...]:
    where = f"tokenizer.tokens.{entry.token}"
    if entry.kind == "zero":
        return ()
    if entry.kind == "default" or entry.model is None:
        if not default:
            raise IncompatibleError(
                f"{where}: no model has an embedding of {entry.token!r}. Give it a 'source': a "
                "model's other token (kind: model_token) or zeros (kind: zero)."
            )
        return default
    speaker = speakers[entry.model]
    token = entry.token if entry.kind == "model" else entry.source_token
    row = entry.source_token_id if token is None else speaker.row(token)
    if token is None and (row is None or row >= speaker.rows):
        raise IncompatibleError(
            f"{where}: {entry.model} has {speaker.rows:,} embedding rows, so there is no "
            f"token_id {row}. Name one below {speaker.rows:,}."
        )
    if row is None:
        guess = did_you_mean(str(token), speaker.tokenizer.added())
        raise IncompatibleError(
            f"{where}: {entry.model} has no embedding of the token {token!r}.{guess} Name a model "
            "or token that has one."
        )
    return (RowOrigin(speaker.model, row),)


def _note(
    draft: _Draft,
    merged: Mapping[ModelReference, _Speaker],
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
            text += f"; {lacked:,} of the {len(tokens):,} tokens get a row that is not its own"
        if dropped:
            shown = ", ".join(repr(token) for token in dropped[:_SHOWN])
            text += f"; {_tokens(len(dropped))} of it, such as {shown}, are not in the result"
        draft.notices.append(f"{text}.")


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"
