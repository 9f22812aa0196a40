"""Turn the statistics of single tensors, as a manifest holds them, into rows by layer.

All functions are pure. Sums that can be added up exactly are: squared norms and inner
products of a layer's tensors give the norm and cosine of the layer as one vector. Shares
and angles are means, weighted by the number of elements.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from forge.architectures.table import Architecture
from forge.core.errors import CheckpointError

_KNOWN: Final = frozenset(
    {"norms", "cosines", "conflict_share", "kept_shares", "angle_degrees", "fallback"}
)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in a model a tensor stands; places sort in the order of computation.

    Attributes:
        rank: 0 before the layers, 1 in them, 2 and more behind them.
        layer: Number of the layer, or -1.
        label: ``embedding``, ``layer 3``, ``final norm``, ``head`` or ``other``.
    """

    rank: int
    layer: int
    label: str


def place_of(architecture: Architecture | None, name: str) -> Place:
    """Return where a tensor stands.

    Args:
        architecture: The model's family; ``None`` puts every tensor under ``other``.
        name: The tensor.

    Returns:
        Its place.
    """
    if architecture is None:
        return Place(4, -1, "other")
    layer = architecture.layer_of(name)
    if layer is not None:
        return Place(1, layer, f"layer {layer}")
    if name in architecture.embeddings:
        return Place(0, -1, "embedding")
    if name in architecture.final_norms:
        return Place(2, -1, "final norm")
    if name in architecture.heads:
        return Place(3, -1, "head")
    return Place(4, -1, "other")


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What a merge recorded about one tensor.

    Attributes:
        name: The tensor.
        num_elements: Its size.
        norms: Of each task vector, or of each model where there is no base to subtract.
        cosines: Between them, in the order (1,0), (2,0), (2,1), …
        conflict_share: Share of positions where signs disagree.
        kept_shares: Share of each task vector that was kept.
        angle_degrees: Between the two interpolated vectors.
        fallback: Why a simpler formula was used.
        notes: Further numbers, by name.
    """

    name: str
    num_elements: int
    norms: tuple[float, ...] = ()
    cosines: tuple[float, ...] = ()
    conflict_share: float | None = None
    kept_shares: tuple[float, ...] = ()
    angle_degrees: float | None = None
    fallback: str | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LayerRow:
    """The tensors of one place together; fields as in ``TensorRecord``.

    Attributes:
        place: Where they stand.
        num_tensors: How many there are.
        num_elements: Elements of all.
        num_fallbacks: How many used a simpler formula.
        fallback: The commonest reason for it.
    """

    place: Place
    num_tensors: int
    num_elements: int
    norms: tuple[float, ...]
    cosines: tuple[float, ...]
    conflict_share: float | None
    kept_shares: tuple[float, ...]
    angle_degrees: float | None
    num_fallbacks: int
    fallback: str | None
    notes: Mapping[str, float]

    def as_json(self) -> dict[str, object]:
        """Return the row as plain JSON values."""
        return {
            "place": self.place.label,
            "layer": self.place.layer if self.place.layer >= 0 else None,
            "num_tensors": self.num_tensors,
            "num_elements": self.num_elements,
            "norms": list(self.norms),
            "cosines": list(self.cosines),
            "conflict_share": self.conflict_share,
            "kept_shares": list(self.kept_shares),
            "angle_degrees": self.angle_degrees,
            "num_fallbacks": self.num_fallbacks,
            "fallback": self.fallback,
            "notes": dict(self.notes),
        }


def read_record(name: str, num_elements: int, record: Mapping[str, object]) -> TensorRecord:
    """Read the statistics of one tensor from its manifest entry.

    Args:
        name: The tensor.
        num_elements: Its size.
        record: The entry; keys that are no statistics must be removed before.

    Returns:
        The statistics. Numbers of other names are notes; a NaN or an infinity, which a merge
        with ``allow_nonfinite`` can record, is left out.

    Raises:
        CheckpointError: A value has the wrong type.
    """

    def number(key: str, value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(
                f"The manifest's entry '{key}' of tensor '{name}' is not a number: {value!r}."
            )
        return float(value) if math.isfinite(value) else None

    def numbers(key: str) -> tuple[float, ...]:
        values = record.get(key, [])
        if not isinstance(values, list):
            raise CheckpointError(f"The manifest's entry '{key}' of tensor '{name}' is not a list.")
        found = [number(key, value) for value in values]
        return tuple(value for value in found if value is not None) if None not in found else ()

    def one(key: str) -> float | None:
        value = record.get(key)
        return None if value is None else number(key, value)

    notes = {key: one(key) for key in record if key not in _KNOWN}
    fallback = record.get("fallback")
    return TensorRecord(
        name=name,
        num_elements=num_elements,
        norms=numbers("norms"),
        cosines=numbers("cosines"),
        conflict_share=one("conflict_share"),
        kept_shares=numbers("kept_shares"),
        angle_degrees=one("angle_degrees"),
        fallback=None if fallback is None else str(fallback),
        notes={key: value for key, value in notes.items() if value is not None},
    )


def layer_rows(
    records: Iterable[TensorRecord], places: Callable[[str], Place]
) -> tuple[LayerRow, ...]:
    """Gather tensors by place.

    Args:
        records: Statistics of the tensors.
        places: Returns a tensor's place by its name.

    Returns:
        One row per place, in the order of computation.
    """
    groups: dict[Place, list[TensorRecord]] = {}
    for record in records:
        groups.setdefault(places(record.name), []).append(record)
    return tuple(_row(place, groups[place]) for place in sorted(groups))


def _row(place: Place, records: list[TensorRecord]) -> LayerRow:
    squares: dict[int, float] = {}
    inner: dict[int, float] = {}
    for record in records:
        for model, norm in enumerate(record.norms):
            squares[model] = squares.get(model, 0.0) + norm * norm
        for (a, b), (number, cosine) in zip(
            pairs(len(record.norms)), enumerate(record.cosines), strict=False
        ):
            inner[number] = inner.get(number, 0.0) + cosine * record.norms[a] * record.norms[b]
    norms = tuple(math.sqrt(squares[model]) for model in sorted(squares))
    reasons = Counter(record.fallback for record in records if record.fallback)
    names = dict.fromkeys(name for record in records for name in record.notes)
    num_models = max((len(record.kept_shares) for record in records), default=0)
    kept = [
        _mean(
            (record.kept_shares[model], record.num_elements)
            for record in records
            if model < len(record.kept_shares)
        )
        for model in range(num_models)
    ]
    return LayerRow(
        place=place,
        num_tensors=len(records),
        num_elements=sum(record.num_elements for record in records),
        norms=norms,
        cosines=tuple(
            _cosine(inner[number], norms[a], norms[b])
            for number, (a, b) in enumerate(pairs(len(norms)))
            if number in inner
        ),
        conflict_share=_mean((row.conflict_share, row.num_elements) for row in records),
        kept_shares=tuple(value for value in kept if value is not None),
        angle_degrees=_mean((row.angle_degrees, row.num_elements) for row in records),
        num_fallbacks=sum(reasons.values()),
        fallback=reasons.most_common(1)[0][0] if reasons else None,
        notes={
            name: mean
            for name in names
            if (mean := _mean((row.notes.get(name), row.num_elements) for row in records))
            is not None
        },
    )


def pairs(num_models: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs of models in the order in which cosines are listed.

    Args:
        num_models: How many models there are.

    Returns:
        (1, 0), (2, 0), (2, 1), …
    """
    return tuple((a, b) for a in range(num_models) for b in range(a))


def _cosine(inner: float, norm_a: float, norm_b: float) -> float:
    product = norm_a * norm_b
    return max(-1.0, min(1.0, inner / product)) if product > 0 else 0.0


def _mean(values: Iterable[tuple[float | None, int]]) -> float | None:
    total = weight = 0.0
    for value, num_elements in values:
        if value is not None:
            total += value * num_elements
            weight += num_elements
    return total / weight if weight else None
