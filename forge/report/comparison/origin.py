"""What a comparison holds of how a model came to be: merged, quantized, and of which files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuantizationErrors:
    """Error by layer and projection, as the quantization measured it.

    Attributes:
        model: Label.
        measure: What the numbers are, in words.
        layers: Numbers of the decoder blocks: rows.
        projections: Such as ``self_attn.q_proj``: columns, in the order of computation.
        values: A row for each layer; ``None`` where it was not measured.
        worst: Module with the largest error.
    """

    model: str
    measure: str
    layers: tuple[int, ...]
    projections: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    worst: str


@dataclass(frozen=True, slots=True)
class MergeLayer:
    """How models met in one place of a merge.

    Attributes:
        place: ``embedding``, ``layer 3``, ``final norm``, ``head`` or ``other``.
        layer: Number, or ``None``.
        norms: Of each task vector, or of each model where there is no base.
        cosines: Between them, in the order of ``Merge.pairs``.
        conflict_share: Share of positions where signs disagree, or ``None``.
        kept_shares: Share of each task vector that was kept.
        angle_degrees: Between the two interpolated vectors, or ``None``.
        fallback: Why a simpler formula was used, or ``None``.
    """

    place: str
    layer: int | None
    norms: tuple[float, ...]
    cosines: tuple[float, ...]
    conflict_share: float | None
    kept_shares: tuple[float, ...]
    angle_degrees: float | None
    fallback: str | None


@dataclass(frozen=True, slots=True)
class Merge:
    """What a merge measured, place by place.

    Attributes:
        model: Label.
        method: Name.
        inputs: Models that met, without the base where there is one.
        pairs: Indices into ``inputs`` of each cosine.
        layers: In the order of computation.
    """

    model: str
    method: str
    inputs: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    layers: tuple[MergeLayer, ...]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that something was made from.

    Attributes:
        name: Without its folder.
        num_bytes: Size.
        digest: Algorithm and value, such as ``xxh3_128_tree:894a…``.
    """

    name: str
    num_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Parent:
    """A model that another was made from.

    Attributes:
        name: As the recipe names it, without folders of this machine.
        role: ``base``, ``model`` or ``source``.
        label: Its label where it is in this comparison, or ``None``.
        revision: Commit on the Hub, or ``None``.
        licence: Where it is known, or ``None``.
        files: Its weights.
    """

    name: str
    role: str
    label: str | None
    revision: str | None
    licence: str | None
    files: tuple[InputFile, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a model comes from.

    Attributes:
        model: Label.
        made_by: ``merge``, ``quantize``, ``convert``; ``None`` where forge did not make it.
        recipe: Resolved recipe as YAML, or ``None``.
        recipe_file: Name under ``recipes/`` in the report's folder, or ``None``.
        parents: What it was made from.
        licence: Its own, or ``None``.
        content_digest: Over all tensors, or ``None``.
        versions: Of what computed, by name.
        notices: What was said when it was made.
        commands: That make it again from its parents, and measure it again.
    """

    model: str
    made_by: str | None
    recipe: str | None
    recipe_file: str | None
    parents: tuple[Parent, ...]
    licence: str | None
    content_digest: str | None
    versions: tuple[tuple[str, str], ...]
    notices: tuple[str, ...]
    commands: tuple[str, ...]
