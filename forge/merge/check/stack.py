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
from forge.merge.heads import head_names, head_of, is_head_weight
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

    def own_name(self, name: str) -> str:
        """Return its tensor that enters the place of a tensor of the result, outside layers."""
        return head_of(name, self.architecture, tied=self.tied, names=self.others)

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
    if recipe.models and part.method.base_is_merged:
        starts = {entry.model: starts[entry.model] for entry in recipe.models}
    base = part.base_model
    if base is None or (base not in starts and part.method.base_is_merged):
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
    tied = is_result_tied(recipe, slices, subjects)
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
        lambda name: name in late and is_written(name, lead.architecture, tied=tied),
    )
    return tuple(written)


def is_result_tied(
    recipe: MergeRecipe,
    slices: tuple[OutputSlice, ...],
    subjects: Mapping[ModelReference, Subject],
) -> bool:
    """Return whether the result's head shares the embedding's weights: see ``merge/heads``.

    Args:
        recipe: The recipe.
        slices: The runs of layers of the result.
        subjects: Every model of the slices.
    """
    ends = (*contributors(recipe, slices[0]), *contributors(recipe, slices[-1]))
    return all(subjects[model].tied for model in ends)


def _outside(
    recipe: MergeRecipe,
    part: OutputSlice,
    subjects: Mapping[ModelReference, Subject],
    belongs: Callable[[str], bool],
) -> list[WrittenTensor]:
    models = [subjects[model] for model in contributors(recipe, part)]
    names = dict.fromkeys(
        name
        for model in models
        for name in model.others
        if not (model.tied and is_head_weight(name, model.architecture))
        and not model.architecture.is_carried(name)
    )
    heads = head_names(models[0].architecture, [(m.tied, m.others) for m in models])
    if all(model.tied for model in models):
        names.update(dict.fromkeys(heads))
    written = []
    for name in filter(belongs, names):
        own = [(model.reference, model.own_name(name), model.others) for model in models]
        inputs = tuple((model, held[its]) for model, its, held in own if its in held)
        missing = tuple((model, its) for model, its, held in own if its not in held)
        written.append(WrittenTensor(name, part.index, 0.0, None, inputs, missing))
    return written


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
    held = {
        model: subjects[model].layers.get(start + offset, {}) for model, start in starts.items()
    }
    names = dict.fromkeys(name for layer in held.values() for name in layer)
    return [
        WrittenTensor(
            architecture.with_layer(name, number),
            part.index,
            position,
            number,
            tuple((model, layer[name]) for model, layer in held.items() if name in layer),
            tuple(
                (model, architecture.with_layer(name, starts[model] + offset))
                for model, layer in held.items()
                if name not in layer
            ),
        )
        for name in names
    ]
