"""Decide, for every model and every row of the result's embedding, where the row comes from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.core.catalog import did_you_mean
from forge.core.errors import IncompatibleError
from forge.merge.vocabulary.tokens import Tokenizer
from forge.merge.vocabulary.types import RowOrigin
from forge.recipes.merge_entries import TokenEntry
from forge.recipes.reference import ModelReference

_UNREAD: Final = ("tekken.json", "tiktoken.model", "vocab.txt")
"""Tokenizers of other libraries; their ids are not read."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model as far as its vocabulary goes.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        rows: Rows of its embedding.
    """

    model: ModelReference
    tokenizer: Tokenizer
    rows: int

    @property
    def padding(self) -> frozenset[int]:
        """Rows of its embedding that belong to no token."""
        return frozenset(range(self.rows)) - frozenset(self.tokenizer.ids.values())

    def row(self, token: str) -> int | None:
        """Return the embedding row of a token, or ``None`` when the model has none for it."""
        number = self.tokenizer.ids.get(token)
        return number if number is not None and number < self.rows else None


def speaker_of(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> Speaker:
    """Bring a model's tokenizer and embedding together.

    Args:
        checkpoint: The model.
        tokenizer: Its tokenizer, or ``None`` when it has none that can be read.

    Returns:
        Both.

    Raises:
        IncompatibleError: One of them is missing, or head and embedding differ in rows.
    """
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
    shapes = {
        name: source.info(name).shape for name in names if architecture.vocabulary_axis(name) == 0
    }
    # Of a scalar, which no model has, the missing axis counts as no row.
    counts = {name: shape[0] if shape else 0 for name, shape in shapes.items()}
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"'{name}' has {count:,}" for name, count in counts.items())
        raise IncompatibleError(
            f"The rows of '{model}' do not fit each other: {listing}. Its vocabulary cannot be "
            "rearranged; remove 'tokenizer' from the recipe, or repair the model."
        )
    if tokenizer is None:
        strange = [name for name in _UNREAD if (checkpoint.tokenizer_root / name).is_file()]
        advice = "Add its files to the model's folder"
        if strange:
            advice = (
                f"Its {strange[0]} is none of these: load it with transformers' AutoTokenizer and "
                "save it (save_pretrained writes tokenizer.json)"
            )
        raise IncompatibleError(
            f"'{model}' has no tokenizer that forge can read (tokenizer.json, vocab.json or "
            f"tokenizer.model). {advice}, or remove 'tokenizer' from the recipe."
        )
    return Speaker(model, tokenizer, counts[embedding])


def own_rows(
    ids: Mapping[str, int], speaker: Speaker, lead: Speaker, *, num_rows: int, forced: set[int]
) -> tuple[int, ...]:
    """Return a model's own row for each row of the result, -1 where it must be filled.

    Args:
        ids: The result's tokens.
        speaker: The model.
        lead: The model whose padding rows the result keeps.
        num_rows: Rows of the result.
        forced: Rows that the recipe fixes for all models.

    Returns:
        One number for each row of the result.
    """
    own = [-1] * num_rows
    theirs, rows = speaker.tokenizer.ids, speaker.rows
    for token, number in ids.items():
        row = theirs.get(token, rows)
        if row < rows:
            own[number] = row
    for number in forced:
        own[number] = -1
    # A padding row is one in every model or none: half a task vector would be invented.
    for number in (speaker.padding & lead.padding) - set(ids.values()):
        if number < num_rows:
            own[number] = number
    return tuple(own)


def fill_rows(
    ids: Mapping[str, int],
    wanted: Collection[int],
    *,
    base: Speaker | None,
    lead: Speaker,
    merged: Sequence[Speaker],
    all_speakers: Sequence[Speaker],
) -> dict[int, tuple[RowOrigin, ...]]:
    """Return where rows come from in a model that lacks them, unless the recipe says more.

    Args:
        ids: The result's tokens.
        wanted: The rows that some model lacks.
        base: The base, whose row is preferred, or ``None``.
        lead: The model whose padding rows the result keeps.
        merged: The models that are merged.
        all_speakers: Those, and models that only lend tokens.

    Returns:
        Origins by row; none means zeros, several mean their average.
    """
    padding = lead.padding
    fills: dict[int, tuple[RowOrigin, ...]] = {
        number: (RowOrigin(lead.model, number),) if number in padding else () for number in wanted
    }
    for token, number in ids.items():
        if number not in fills:
            continue
        if base is not None and (row := base.row(token)) is not None:
            fills[number] = (RowOrigin(base.model, row),)
        else:
            fills[number] = _holders(token, merged) or _holders(token, all_speakers)
    return fills


def _holders(token: str, speakers: Iterable[Speaker]) -> tuple[RowOrigin, ...]:
    found = [
        RowOrigin(speaker.model, row)
        for speaker in speakers
        if (row := speaker.row(token)) is not None
    ]
    # Sorted, so that the order of the recipe's list cannot reach the mean's last bit.
    return tuple(sorted(found))


def listed_origins(
    entry: TokenEntry,
    default: tuple[RowOrigin, ...],
    speakers: Mapping[ModelReference, Speaker],
) -> tuple[RowOrigin, ...]:
    """Return where the row of a token comes from that the recipe lists.

    Args:
        entry: What the recipe says about the token.
        default: Where it would come from otherwise.
        speakers: All models.

    Returns:
        Its origins.

    Raises:
        IncompatibleError: The named model or token does not exist, or no model has the token.
    """
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
