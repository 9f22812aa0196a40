"""A merge recipe after reading: frozen values with every default filled in.

Nothing here reads files or judges input; ``forge/recipes/merge_recipe.py`` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from forge.core.errors import IncompatibleError, RecipeError
from forge.recipes.document import dump_yaml
from forge.recipes.merge_entries import (
    ModelEntry,
    Parameters,
    SliceEntry,
    SourceEntry,
    TokenizerEntry,
    dump_entry,
    dump_parameters,
    dump_slice,
    dump_tokenizer,
    parse_size,
)
from forge.recipes.parameters import MethodRow, ParameterValue
from forge.recipes.reference import ModelReference
from forge.recipes.settings import Setting

DEFAULT_MAX_SHARD_SIZE: Final = "5GB"


@dataclass(frozen=True, slots=True)
class OutputSource:
    """Layers ``start`` to ``end`` (not included) of one model, as they enter one slice."""

    model: ModelReference
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class OutputSlice:
    """A run of output layers. All sources have the same number of layers."""

    index: int
    sources: tuple[OutputSource, ...]
    base_model: ModelReference | None
    method: MethodRow

    @property
    def num_layers(self) -> int:
        """Layers that this slice adds to the result."""
        return self.sources[0].end - self.sources[0].start


@dataclass(frozen=True, slots=True)
class MergeRecipe:
    """What to merge and how. Exactly one of ``models`` and ``slices`` is filled.

    Attributes:
        method: The catalog's row of the merge method.
        base_model: The model whose difference to the others is merged, or ``None``.
        models: Whole models.
        slices: Runs of layers, stacked in this order.
        parameters: Settings that hold where no inner level has one; every parameter that has
            a default ends in it here.
        dtype: Torch name of the element type that the merge is asked to work in, or ``None``.
        out_dtype: Torch name of the element type to write, or ``None`` for ``dtype``.
        tokenizer: How to make the vocabulary; ``None`` keeps the base's (or first model's).
        chat_template: ``auto``, a name, Jinja, or ``None`` to keep what the tokenizer has.
        name: What to call the result, or ``None``.
        seed: Seed of the random drops.
        allow_nonfinite: Whether NaN and Inf may pass.
        max_shard_size: Largest file to write, such as ``5GB``.
        stages: Merges that this one takes for models, by name, in the order in which they are
            computed; each may use those before it.
        notices: What the recipe says but the merge does not use.
        file: The recipe as the user typed it; ``None`` when it was built in memory.
    """

    method: MethodRow
    base_model: ModelReference | None = None
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[SliceEntry, ...] = ()
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerEntry | None = None
    chat_template: str | None = None
    name: str | None = None
    seed: int = 0
    allow_nonfinite: bool = False
    max_shard_size: str = DEFAULT_MAX_SHARD_SIZE
    stages: tuple[tuple[str, MergeRecipe], ...] = ()
    notices: tuple[str, ...] = field(default=(), compare=False)
    file: str | None = field(default=None, compare=False)

    @property
    def merge_method(self) -> str:
        """Name of the merge method."""
        return self.method.name

    @property
    def methods(self) -> tuple[MethodRow, ...]:
        """Every method that is used: the recipe's, and those of slices, each once."""
        own = [entry.method for entry in self.slices if entry.method is not None]
        rows = [self.method, *own]
        return tuple({row.name: row for row in rows}.values())

    def method_of(self, slice_index: int | None) -> MethodRow:
        """Return the method of an output slice; for ``models``, the recipe's."""
        if slice_index is None or not self.slices:
            return self.method
        return self.slices[slice_index].method or self.method

    @property
    def max_shard_bytes(self) -> int:
        """Largest weight file to write, in bytes."""
        return parse_size(self.max_shard_size)

    def references(self) -> tuple[ModelReference, ...]:
        """Return every model that is merged, the base included, in listing order, each once."""
        named = [entry.model for entry in self.models]
        named += [source.model for entry in self.slices for source in entry.sources]
        named += [entry.base_model for entry in self.slices if entry.base_model is not None]
        if self.base_model is not None:
            named.append(self.base_model)
        return tuple(dict.fromkeys(named))

    def origins(self) -> tuple[ModelReference, ...]:
        """Return every model that is read: stages are replaced by what they are made of."""
        named = {ModelReference(name) for name, _ in self.stages}
        recipes = (*(stage for _, stage in self.stages), self)
        models = (model for recipe in recipes for model in recipe.references())
        return tuple(dict.fromkeys(model for model in models if model not in named))

    def with_seed(self, seed: int) -> MergeRecipe:
        """Return the recipe with another seed, which holds for its stages, too."""
        stages = tuple((name, replace(stage, seed=seed)) for name, stage in self.stages)
        return replace(self, seed=seed, stages=stages)

    def effective_slices(self, num_layers: Mapping[ModelReference, int]) -> tuple[OutputSlice, ...]:
        """Return the runs of layers that make the result.

        ``models`` is one slice of all layers, to which a base that is not listed is added;
        to ``slices`` nothing is added.

        Args:
            num_layers: Layers of each model of :meth:`references`.

        Returns:
            The slices in output order, at least one.

        Raises:
            IncompatibleError: ``models`` have different numbers of layers.
            RecipeError: A ``layer_range`` ends beyond its model's last layer.
        """
        if self.models:
            return (self._whole(num_layers),)
        problems = [
            source.place.problem(
                f"Layers [{source.start}, {source.end}] are asked of {source.model}, "
                f"which has {num_layers[source.model]}. End at {num_layers[source.model]} or below."
            )
            for source in self._sources()
            if source.end > num_layers[source.model]
        ]
        if problems:
            raise RecipeError(problems)
        return tuple(
            OutputSlice(
                index,
                tuple(OutputSource(item.model, item.start, item.end) for item in entry.sources),
                entry.base_model or self.base_model,
                self.method_of(index),
            )
            for index, entry in enumerate(self.slices)
        )

    def _whole(self, num_layers: Mapping[ModelReference, int]) -> OutputSlice:
        counts = {model: num_layers[model] for model in self.references()}
        if len(set(counts.values())) > 1:
            (first, number), *rest = counts.items()
            unlike = " and ".join(f"{model} has {n}" for model, n in rest if n != number)
            raise IncompatibleError(
                f"{first} has {number} layers but {unlike}: merge models with the same number of "
                "layers, or choose layers with 'slices'."
            )
        sources = tuple(OutputSource(model, 0, count) for model, count in counts.items())
        return OutputSlice(0, sources, self.base_model, self.method)

    def _sources(self) -> Iterator[SourceEntry]:
        for entry in self.slices:
            yield from entry.sources

    def value(
        self,
        parameter: str,
        *,
        tensor: str,
        position: float,
        model: ModelReference | None = None,
        slice_index: int | None = None,
    ) -> ParameterValue | None:
        """Evaluate a parameter for one tensor.

        Asks the slice's source or the model's entry, then the slice, then the recipe; where
        no filter of a level matches the tensor, the next level is asked.

        Args:
            parameter: Name of a parameter of the method.
            tensor: Full name of the tensor.
            position: 0 for the slice's first layer to 1 for its last; 0 outside layers.
            model: The model, for a parameter that each model has; else ``None``.
            slice_index: Index of the output slice; may be ``None`` for ``models``.

        Returns:
            The value; a word of ``choices`` for a choice; ``None`` when nothing matches and
            there is no default.

        Raises:
            KeyError: The method has no such parameter.
        """
        method = self.method_of(slice_index)
        if method.parameter(parameter) is None:
            raise KeyError(f"{method.name} has no parameter '{parameter}'")
        for level in self.levels(model=model, slice_index=slice_index):
            setting = level.get(parameter)
            found = None if setting is None else setting.value(tensor, position)
            if found is not None:
                return found
        return None

    def levels(
        self, *, model: ModelReference | None = None, slice_index: int | None = None
    ) -> tuple[Parameters, ...]:
        """Return the parameters to ask, the innermost level first.

        Args:
            model: A model, or ``None`` for what holds for all.
            slice_index: Index of the output slice; may be ``None`` for ``models``.

        Returns:
            One to three levels.
        """
        found: list[Parameters] = []
        if self.slices and slice_index is not None:
            entry = self.slices[slice_index]
            found += [item.parameters for item in entry.sources if item.model == model]
            found.append(entry.parameters)
            if entry.method is not None:
                # What stands at the top is meant for another method.
                return tuple(found)
        found += [item.parameters for item in self.models if item.model == model]
        return (*found, self.parameters)

    def settings(self) -> Iterator[tuple[str, Setting]]:
        """Yield every setting of every level with its parameter's name, in listing order."""
        levels = [entry.parameters for entry in self.models]
        for entry in self.slices:
            levels += [source.parameters for source in entry.sources]
            levels.append(entry.parameters)
        for level in (*levels, self.parameters):
            yield from level.items()

    def resolved(self) -> dict[str, object]:
        """Return the recipe as plain JSON values with every default written out.

        Reading it back gives an equal recipe.
        """
        models = [
            dump_entry(entry.model, entry.parameters, statistics=entry.statistics)
            for entry in self.models
        ]
        stages = {name: stage.resolved() for name, stage in self.stages}
        keys: dict[str, object] = {
            "stages": stages or None,
            "name": self.name,
            "merge_method": self.merge_method,
            "base_model": None if self.base_model is None else str(self.base_model),
            "models": models or None,
            "slices": [dump_slice(entry) for entry in self.slices] or None,
            "parameters": dump_parameters(self.parameters) or None,
            "dtype": self.dtype,
            "out_dtype": self.out_dtype,
            "tokenizer": None if self.tokenizer is None else dump_tokenizer(self.tokenizer),
            "chat_template": self.chat_template,
            "seed": self.seed,
            "allow_nonfinite": self.allow_nonfinite,
            "max_shard_size": self.max_shard_size,
        }
        return {key: value for key, value in keys.items() if value is not None}

    def to_yaml(self) -> str:
        """Return :meth:`resolved` as YAML."""
        return dump_yaml(self.resolved())
