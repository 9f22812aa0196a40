"""Which tensors a recipe writes, and which tensors of which models each is made of.

Tensors of layers follow the slices. Of the others, the head and the norm after the last
layer come from the last slice's models, and all else (embeddings) from the first slice's.
Left out are the head of a tied result, and buffers that every loader computes anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from forge.architectures.table import Architecture
from forge.architectures.written import is_buffer, is_written
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.header import TensorInfo
from forge.recipes.merge_types import MergeRecipe, OutputSlice
from forge.recipes.reference import ModelReference
from forge.recipes.settings import layer_position


@dataclass(frozen=True, slots=True)
class Subject:
    """One model with everything that its headers tell.

    Attributes:
        reference: What the recipe says.
        checkpoint: The resolved model.
        architecture: Its family.
        num_layers: Layers that its configuration states.
        layers: For each layer in the files, its tensors by their name in layer 0.
        others: All other tensors by name.
    """

    reference: ModelReference
    checkpoint: Checkpoint
    architecture: Architecture
    num_layers: int
    layers: Mapping[int, Mapping[str, TensorInfo]]
    others: Mapping[str, TensorInfo]

    @property
    def tied(self) -> bool:
        """Whether its configuration ties the head to the embedding."""
        return self.architecture.is_tied(self.checkpoint.config)

    @property
    def text_config(self) -> Mapping[str, object]:
        """The part of its configuration that describes the language model."""
        return self.architecture.text_config(self.checkpoint.config)

    @property
    def vocab_rows(self) -> int | None:
        """Rows of its embedding, or ``None`` when it was not found."""
        for name in self.architecture.embeddings:
            if name in self.others and self.others[name].shape:
                return self.others[name].shape[0]
        return None


@dataclass(frozen=True, slots=True)
class WrittenTensor:
    """One tensor of the result.

    Attributes:
        name: Its name in the result.
        slice_index: The output slice it belongs to.
        position: Where its layer stands in the slice, 0 to 1; 0 outside the layers.
        layer: Number of its layer in the result, or ``None``.
        inputs: The models it is made of, the one that names the tensors first, each with its own.
        missing: Models that should have it and have not, each with the name it would have there.
    """

    name: str
    slice_index: int
    position: float
    layer: int | None
    inputs: tuple[tuple[ModelReference, TensorInfo], ...]
    missing: tuple[tuple[ModelReference, str], ...]


def subject_of(checkpoint: Checkpoint, architecture: Architecture, num_layers: int) -> Subject:
    """Sort a model's tensors by layer.

    Args:
        checkpoint: The resolved model.
        architecture: Its family.
        num_layers: Layers that its configuration states.

    Returns:
        The model; only its headers were read.
    """
    layers: dict[int, dict[str, TensorInfo]] = {}
    others: dict[str, TensorInfo] = {}
    source = checkpoint.source
    for name in source.names():
        number = architecture.layer_of(name)
        if is_buffer(name):
            continue
        if number is None:
            others[name] = source.info(name)
        else:
            layers.setdefault(number, {})[architecture.with_layer(name, 0)] = source.info(name)
    return Subject(checkpoint.reference, checkpoint, architecture, num_layers, layers, others)


def leader(recipe: MergeRecipe) -> ModelReference:
    """Return the model whose configuration and tokenizer the result starts from."""
    return recipe.base_model or recipe.references()[0]


def contributors(recipe: MergeRecipe, part: OutputSlice) -> dict[ModelReference, int]:
    """Return the models that enter a slice, with the first of their layers that does.

    The base, or else the first source, stands first: it names the tensors. A base that is no
    source of the slice gives the layers that the first source gives.

    Args:
        recipe: The recipe.
        part: One of its output slices.
    """
    starts = {source.model: source.start for source in part.sources}
    if recipe.models and recipe.method.base_is_merged:
        starts = {entry.model: starts[entry.model] for entry in recipe.models}
    base = part.base_model
    if base is None or (base not in starts and recipe.method.base_is_merged):
        return starts
    return {base: starts.get(base, part.sources[0].start), **starts}


def vocabulary_models(
    recipe: MergeRecipe, slices: tuple[OutputSlice, ...]
) -> tuple[ModelReference, ...]:
    """Return the models whose vocabulary matters: those of embedding, head and tokenizer."""
    first, last = contributors(recipe, slices[0]), contributors(recipe, slices[-1])
    return tuple(dict.fromkeys([leader(recipe), *first, *last]))


def written_tensors(
    recipe: MergeRecipe,
    slices: tuple[OutputSlice, ...],
    subjects: Mapping[ModelReference, Subject],
) -> tuple[WrittenTensor, ...]:
    """Return every tensor that some model has for the result, whether or not all have it.

    Args:
        recipe: The recipe.
        slices: The runs of layers of the result.
        subjects: Every model of the slices.

    Returns:
        Embedding side first, then the layers in order, then norm and head.
    """
    lead = subjects[leader(recipe)]
    late = frozenset((*lead.architecture.heads, *lead.architecture.final_norms))
    written = _outside(recipe, slices[0], subjects, lambda name: name not in late)
    number = 0
    for part in slices:
        for offset in range(part.num_layers):
            written += _layer(recipe, part, subjects, offset=offset, number=number)
            number += 1
    written += _outside(
        recipe,
        slices[-1],
        subjects,
        lambda name: name in late and is_written(name, lead.architecture, tied=lead.tied),
    )
    return tuple(written)


def _outside(
    recipe: MergeRecipe,
    part: OutputSlice,
    subjects: Mapping[ModelReference, Subject],
    belongs: Callable[[str], bool],
) -> list[WrittenTensor]:
    others = {model: subjects[model].others for model in contributors(recipe, part)}
    names = dict.fromkeys(name for tensors in others.values() for name in tensors)
    return [
        _tensor(part, name, {model: (name, tensors) for model, tensors in others.items()})
        for name in names
        if belongs(name)
    ]


def _layer(
    recipe: MergeRecipe,
    part: OutputSlice,
    subjects: Mapping[ModelReference, Subject],
    *,
    offset: int,
    number: int,
) -> list[WrittenTensor]:
    architecture = subjects[leader(recipe)].architecture
    position = layer_position(offset, part.num_layers)
    starts = contributors(recipe, part)
    tensors = {
        model: {
            architecture.with_layer(name, start + offset): info
            for name, info in subjects[model].layers.get(start + offset, {}).items()
        }
        for model, start in starts.items()
    }
    names = dict.fromkeys(
        architecture.with_layer(name, 0) for layer in tensors.values() for name in layer
    )
    return [
        _tensor(
            part,
            architecture.with_layer(name, number),
            {
                model: (architecture.with_layer(name, start + offset), tensors[model])
                for model, start in starts.items()
            },
            layer=number,
            position=position,
        )
        for name in names
    ]


def _tensor(
    part: OutputSlice,
    name: str,
    places: Mapping[ModelReference, tuple[str, Mapping[str, TensorInfo]]],
    *,
    layer: int | None = None,
    position: float = 0.0,
) -> WrittenTensor:
    return WrittenTensor(
        name,
        part.index,
        position,
        layer,
        tuple((model, held[own]) for model, (own, held) in places.items() if own in held),
        tuple((model, own) for model, (own, held) in places.items() if own not in held),
    )
