"""The parts of a merge recipe: models, slices, tokenizer, sizes; each can be dumped again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from forge.recipes.parameters import MethodRow
from forge.recipes.place import Place
from forge.recipes.reference import ModelReference
from forge.recipes.settings import Setting

Parameters = Mapping[str, Setting]
"""Settings by parameter name."""

_SIZE_UNITS: Final = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One item of ``models``; ``statistics`` is the folder of what was collected about it."""

    model: ModelReference
    parameters: Parameters = field(default_factory=dict)
    place: Place = field(default_factory=Place, compare=False, repr=False)
    statistics: str | None = None


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One item of ``slices[].sources``: layers ``start`` to ``end``, the end not included."""

    model: ModelReference
    start: int
    end: int
    parameters: Parameters = field(default_factory=dict)
    place: Place = field(default_factory=Place, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SliceEntry:
    """One item of ``slices``.

    Attributes:
        sources: Layers of each model.
        base_model: ``None`` where the recipe's own holds.
        parameters: Settings of this slice; of a slice with its own method, all that hold.
        method: Row of its own merge method, or ``None`` where the recipe's holds.
        place: Where it stands.
    """

    sources: tuple[SourceEntry, ...]
    base_model: ModelReference | None = None
    parameters: Parameters = field(default_factory=dict)
    method: MethodRow | None = None
    place: Place = field(default_factory=Place, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """Where the embedding of one token comes from.

    Attributes:
        token: The token's text.
        kind: ``model``: this token in ``model``; ``model_token``: another token of ``model``;
            ``zero``: zeros; ``default``: as for any other token.
        model: The model, for the first two kinds.
        source_token: Text of the other token, for ``model_token``.
        source_token_id: Its id instead of its text.
        force: Whether to use this embedding for models that have the token, too.
    """

    token: str
    kind: Literal["model", "model_token", "zero", "default"] = "default"
    model: ModelReference | None = None
    source_token: str | None = None
    source_token_id: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerEntry:
    """The vocabulary of the result. ``tokenizer_source: x`` reads as ``tokenizer: {source: x}``."""

    source: Literal["union", "base"] | ModelReference = "union"
    tokens: tuple[TokenEntry, ...] = ()
    pad_to_multiple_of: int | None = None

    def references(self) -> tuple[ModelReference, ...]:
        """Return the models whose tokenizer or embeddings are named, in listing order."""
        named = [] if isinstance(self.source, str) else [self.source]
        named += [entry.model for entry in self.tokens if entry.model is not None]
        return tuple(dict.fromkeys(named))


def parse_size(text: str) -> int:
    """Read a size such as ``5GB`` (powers of 1000) or ``5GiB`` (powers of 1024).

    Args:
        text: A number and a unit from B to TB or TiB, in any case.

    Returns:
        Bytes, at least 1.

    Raises:
        ValueError: The text is no size, or less than a byte.
    """
    unit = text.strip().upper().lstrip("0123456789. ")
    number = text.strip()[: len(text.strip()) - len(unit)].strip()
    if unit not in _SIZE_UNITS:
        raise ValueError(text)
    size = float(number) * _SIZE_UNITS[unit]
    if not 1 <= size < 2**63:
        raise ValueError(text)
    return int(size)


def dump_parameters(parameters: Parameters) -> dict[str, object]:
    """Return parameters as a recipe writes them."""
    return {name: setting.dump() for name, setting in parameters.items()}


def dump_entry(
    model: ModelReference, parameters: Parameters, *, statistics: str | None = None
) -> dict[str, object]:
    """Return one item of ``models`` as a recipe writes it."""
    entry: dict[str, object] = {"model": str(model)}
    if statistics is not None:
        entry["statistics"] = statistics
    if parameters:
        entry["parameters"] = dump_parameters(parameters)
    return entry


def dump_slice(entry: SliceEntry) -> dict[str, object]:
    """Return one item of ``slices`` as a recipe writes it."""
    sources = []
    for source in entry.sources:
        dumped = dump_entry(source.model, source.parameters)
        sources.append({**dumped, "layer_range": [source.start, source.end]})
    keys: dict[str, object] = {"sources": sources}
    if entry.method is not None:
        keys["merge_method"] = entry.method.name
    if entry.base_model is not None:
        keys["base_model"] = str(entry.base_model)
    if entry.parameters:
        keys["parameters"] = dump_parameters(entry.parameters)
    return keys


def dump_tokenizer(tokenizer: TokenizerEntry) -> dict[str, object]:
    """Return ``tokenizer`` as a recipe writes it."""
    keys: dict[str, object] = {"source": str(tokenizer.source)}
    if tokenizer.tokens:
        keys["tokens"] = {entry.token: _dump_token(entry) for entry in tokenizer.tokens}
    if tokenizer.pad_to_multiple_of is not None:
        keys["pad_to_multiple_of"] = tokenizer.pad_to_multiple_of
    return keys


def _dump_token(entry: TokenEntry) -> dict[str, object]:
    keys: dict[str, object] = {}
    if entry.kind == "model":
        keys["source"] = str(entry.model)
    elif entry.kind == "zero":
        keys["source"] = {"kind": "zero"}
    elif entry.kind == "model_token":
        token: dict[str, object] = {"kind": "model_token", "model": str(entry.model)}
        if entry.source_token is not None:
            token["token"] = entry.source_token
        else:
            token["token_id"] = entry.source_token_id
        keys["source"] = token
    return {**keys, "force": entry.force}
