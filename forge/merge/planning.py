"""Decide what will be computed, from headers and the recipe alone; see ``plan``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from forge.architectures.names import architecture_of, layers_present
from forge.architectures.written import is_buffer, is_written
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.sidecars import LayerOrigin
from forge.checkpoints.source import TensorSource
from forge.core.dtypes import BY_TORCH_NAME, DTYPES
from forge.core.errors import IncompatibleError
from forge.merge.heads import StandsIn, head_names, head_of, is_head_weight
from forge.merge.plan import (
    CARRIED,
    IDENTICAL,
    JobInput,
    MergeJob,
    MergePlan,
    donor_of,
    merged_models,
    random_stream,
    stream_names,
)
from forge.recipes.merge_types import MergeRecipe, OutputSlice, OutputSource
from forge.recipes.parameters import ParameterValue
from forge.recipes.reference import ModelReference
from forge.recipes.settings import Setting, layer_position


def build_plan(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    sources: Mapping[ModelReference, TensorSource] | None = None,
) -> MergePlan:
    """Plan a merge.

    Args:
        recipe: What to merge.
        checkpoints: Every model of ``recipe.references()``.
        sources: Tensors of the models whose embeddings are rearranged; others use their own.

    Raises:
        IncompatibleError: A tensor is missing, or differs in shape, between models.
        RecipeError: A layer range leaves its model.
    """
    builder = _Builder(recipe, checkpoints, sources or {})
    return builder.build()


@dataclass(frozen=True, slots=True)
class _Part:
    """What all tensors of one output slice share, so that it is looked up once.

    Attributes:
        piece: The slice.
        template: The source that names its tensors: the base, or else the first.
        base: What is subtracted from the models, or ``None``.
        merged: All models that are merged, in the order of the arithmetic.
        starts: First layer of each model.
        values: Settings of the global parameters.
        models: Settings of each merged model.
    """

    piece: OutputSlice
    template: OutputSource
    base: ModelReference | None
    merged: tuple[ModelReference, ...]
    starts: Mapping[ModelReference, int]
    values: Mapping[str, Setting]
    models: tuple[Mapping[str, Setting], ...]

    @property
    def inputs(self) -> tuple[ModelReference, ...]:
        """All models that enter the slice, a base that is subtracted first."""
        return self.merged if self.base is None else (self.base, *self.merged)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an output tensor stands: its slice, the layer in it, and its names."""

    part: _Part
    layer: int | None
    position: float
    template: str
    output: str
    output_layer: int | None


class _Builder:
    def __init__(
        self,
        recipe: MergeRecipe,
        checkpoints: Mapping[ModelReference, Checkpoint],
        sources: Mapping[ModelReference, TensorSource],
    ) -> None:
        self._recipe = recipe
        self._sources = {
            model: sources.get(model, checkpoint.source)
            for model, checkpoint in checkpoints.items()
        }
        self._names = {model: frozenset(source.names()) for model, source in self._sources.items()}
        self._own = {model: checkpoint.source for model, checkpoint in checkpoints.items()}
        self._statistics = {
            model: checkpoint.statistics for model, checkpoint in checkpoints.items()
        }
        self._configs = {model: checkpoint.config for model, checkpoint in checkpoints.items()}
        self._architectures = {
            model: architecture_of(self._configs[model], tensor_names=self._sources[model].names())
            for model in recipe.references()
        }
        self._streams = stream_names(recipe.references())
        self._input_bytes = 0
        torch_name = recipe.out_dtype or recipe.dtype
        self._dtype = BY_TORCH_NAME[torch_name].name if torch_name else None

    def build(self) -> MergePlan:
        recipe = self._recipe
        donor = donor_of(recipe)
        num_layers = {
            model: self._architectures[model].num_layers(self._configs[model])
            for model in recipe.references()
        }
        slices = recipe.effective_slices(num_layers)
        architecture = self._architectures[donor]
        self._donor = donor
        parts = [self._part(piece) for piece in slices]
        self._layers = {
            model: self._by_layer(model)
            for model in dict.fromkeys(part.template.model for part in parts)
        }
        ends = dict.fromkeys(model for part in (parts[-1], parts[0]) for model in part.inputs)
        self._tied = all(self._is_tied(model) for model in ends)
        self._heads = head_names(
            architecture, [(self._is_tied(model), self._names[model]) for model in ends]
        )
        jobs = tuple(
            self._job(place)
            for place in self._places(parts)
            if is_written(place.output, architecture, tied=self._tied)
        )
        jobs += tuple(self._carried(parts))
        if not jobs:
            raise IncompatibleError(f"'{donor}' has no tensors.")
        origins = [
            LayerOrigin(self._configs[source.model], source.start + layer)
            for piece in slices
            for source in [_template_of(piece)]
            for layer in range(piece.num_layers)
        ]
        merged = [source.model for piece in slices for source in piece.sources]
        bases = [piece.base_model for piece in slices]
        return MergePlan(
            jobs=jobs,
            donor=donor,
            architecture=architecture,
            layers=tuple(origins),
            dtype=recipe.out_dtype or recipe.dtype,
            input_bytes=self._input_bytes,
            models=merged_models(recipe.method, tuple(dict.fromkeys(merged)), bases[0]),
            tied=self._tied,
        )

    def _part(self, piece: OutputSlice) -> _Part:
        recipe, method, base = self._recipe, piece.method, piece.base_model
        listed = tuple(source.model for source in piece.sources)
        if recipe.models and method.base_is_merged:
            listed = tuple(entry.model for entry in recipe.models)
        merged = merged_models(method, listed, base)

        def settings(scope: str, model: ModelReference | None) -> dict[str, Setting]:
            levels = recipe.levels(model=model, slice_index=piece.index)
            stacked = {
                row.name: Setting.stacked(row.name, levels)
                for row in method.parameters
                if row.scope == scope
            }
            return {name: setting for name, setting in stacked.items() if setting.rules}

        # A base that is no source of the slice gives the same layers as the first source.
        starts = {} if base is None else {base: piece.sources[0].start}
        starts |= {source.model: source.start for source in piece.sources}
        return _Part(
            piece=piece,
            template=_template_of(piece),
            base=None if method.base_is_merged else base,
            merged=merged,
            starts=starts,
            values=settings("global", None),
            models=tuple(settings("model", model) for model in merged),
        )

    def _places(self, parts: Sequence[_Part]) -> Iterator[_Place]:
        """Yield output tensors: what stands before the layers, the layers, what follows them."""
        first, last = parts[0], parts[-1]
        yield from self._outside(first, after_layers=False)
        output_layer = 0
        for part in parts:
            piece, source = part.piece, part.template
            architecture = self._architectures[source.model]
            by_layer = self._layers[source.model]
            for layer in range(piece.num_layers):
                number = source.start + layer
                names = by_layer.get(number)
                if not names:
                    present = layers_present(architecture, self._sources[source.model].names())
                    raise IncompatibleError(
                        f"Layer {number} is asked of '{source.model}', whose files "
                        f"hold layers {present[0]} to {present[-1]}."
                        if present
                        else f"'{source.model}' has no layers named "
                        f"'{architecture.layer_prefixes[0]}<number>.'."
                    )
                for name in names:
                    yield _Place(
                        part,
                        layer,
                        layer_position(layer, piece.num_layers),
                        name,
                        name
                        if output_layer == number
                        else architecture.with_layer(name, output_layer),
                        output_layer,
                    )
                output_layer += 1
        yield from self._outside(last, after_layers=True)

    def _by_layer(self, model: ModelReference) -> dict[int | None, list[str]]:
        """Sort a model's tensors by layer; those outside the layers stand under ``None``."""
        architecture = self._architectures[model]
        found: dict[int | None, list[str]] = {None: []}
        for name in self._sources[model].names():
            found.setdefault(architecture.layer_of(name), []).append(name)
        return found

    def _outside(self, part: _Part, *, after_layers: bool) -> Iterator[_Place]:
        model = part.template.model
        architecture = self._architectures[model]
        tail = (*architecture.final_norms, *architecture.heads)
        heads = self._heads if after_layers and not self._tied else ()
        for name in self._layers[model][None]:
            if architecture.is_carried(name) or (name in tail) != after_layers:
                continue
            if is_head_weight(name, architecture) and self._is_tied(model):
                continue
            yield _Place(part, None, 0.0, name, name, None)
        for name in heads if self._is_tied(model) else ():
            yield _Place(part, None, 0.0, name, name, None)

    def _carried(self, parts: Sequence[_Part]) -> Iterator[MergeJob]:
        """Yield what the donor has beside its language model; see ``merge/alignment``."""
        names = self._sources[self._donor].names()
        architecture = self._architectures[self._donor]
        models = dict.fromkeys((self._donor, *(m for part in parts for m in part.inputs)))
        for name in names:
            if not architecture.is_carried(name) or is_buffer(name):
                continue
            infos = {
                model: self._sources[model].info(name)
                for model in models
                if name in self._names[model]
            }
            own = infos[self._donor]
            # The others are only compared with it.
            inputs = tuple(
                JobInput(model, name)
                for model, info in infos.items()
                if (info.shape, info.dtype) == (own.shape, own.dtype)
            )
            self._input_bytes += own.nbytes * len(inputs)
            yield MergeJob(
                output=name,
                shape=own.shape,
                dtype=own.dtype,
                inputs=inputs,
                has_base=False,
                method=CARRIED,
                values={},
                models=tuple({} for _ in inputs),
                streams=(),
                layer=None,
            )

    def _is_tied(self, model: ModelReference) -> bool:
        return self._architectures[model].is_tied(self._configs[model])

    def _job(self, place: _Place) -> MergeJob:
        part, method = place.part, place.part.piece.method
        inputs = [self._input(place, model) for model in part.inputs]
        infos = [self._sources[item.model].info(item.name) for item in inputs]
        for item, info in zip(inputs, infos, strict=True):
            if info.shape != infos[0].shape:
                raise IncompatibleError(
                    f"'{item.name}' is {list(info.shape)} in '{item.model}' but "
                    f"{list(infos[0].shape)} in '{inputs[0].model}'. Merge models of one "
                    "architecture, or restrict 'slices'."
                )
        self._input_bytes += sum(info.nbytes for info in infos)
        kinds = {info.dtype for info in infos}
        if not all(DTYPES[kind].is_float for kind in kinds):
            return self._identical(place, inputs, kinds, infos[0].shape)
        unreadable = sorted(kind for kind in kinds if not DTYPES[kind].mergeable)
        if unreadable:
            raise IncompatibleError(
                f"'{place.template}' is stored as {', '.join(unreadable)}, which forge cannot "
                "merge. Convert the model to bfloat16 first."
            )
        values = self._values(place, part.values, None)
        models = tuple(
            self._values(place, settings, model)
            for model, settings in zip(part.merged, part.models, strict=True)
        )
        streams = tuple(
            random_stream(self._recipe.seed, self._streams[model], place.output)
            for model in part.merged
            if method.random
        )
        return MergeJob(
            output=place.output,
            shape=infos[0].shape,
            dtype=self._dtype or infos[0].dtype,
            inputs=tuple(inputs),
            has_base=part.base is not None,
            method=method.name,
            values=values,
            models=models,
            streams=streams,
            layer=place.output_layer,
            companions=tuple(self._companion(item) for item in inputs) if method.statistics else (),
            transposed=bool(method.statistics)
            and any(each is not None and each.transposed for each in self._statistics.values()),
        )

    def _companion(self, item: JobInput) -> JobInput | None:
        """Name the statistics that belong to one tensor of one model."""
        statistics = self._statistics.get(item.model)
        held = None if statistics is None else statistics.shared.get(item.name)
        if statistics is None or held is None:
            return None
        if self._sources[item.model].info(item.name) != self._own[item.model].info(item.name):
            # Rows in the order of another vocabulary are no longer those that were observed.
            return None
        return JobInput(ModelReference(statistics.label), held)

    def _identical(
        self, place: _Place, inputs: list[JobInput], kinds: set[str], shape: tuple[int, ...]
    ) -> MergeJob:
        if len(kinds) > 1:
            raise IncompatibleError(
                f"'{place.template}' is stored as {' and '.join(sorted(kinds))} in different "
                "models, and not all of them are floats. Merge models of one architecture."
            )
        return MergeJob(
            output=place.output,
            shape=shape,
            dtype=kinds.pop(),
            inputs=tuple(inputs),
            has_base=False,
            method=IDENTICAL,
            values={},
            models=tuple({} for _ in inputs),
            streams=(),
            layer=place.output_layer,
        )

    def _input(self, place: _Place, model: ModelReference) -> JobInput:
        """Name the tensor of one model that enters a place."""
        part, name = place.part, place.template
        if place.layer is None:
            source = self._sources[model]
            if isinstance(source, StandsIn) and source.stands_in(name):
                return JobInput(model, name)
            name = head_of(
                name,
                self._architectures[model],
                tied=self._is_tied(model),
                names=self._names[model],
            )
        elif part.starts[model] != part.template.start:
            number = part.starts[model] + place.layer
            name = self._architectures[model].with_layer(name, number)
        if name not in self._names[model]:
            raise IncompatibleError(
                f"'{name}' is in '{part.template.model}' but not in '{model}'. Merge models "
                "of one architecture."
            )
        return JobInput(model, name)

    def _values(
        self, place: _Place, settings: Mapping[str, Setting], model: ModelReference | None
    ) -> dict[str, ParameterValue]:
        """Evaluate parameters for one tensor: the global ones, or those of one model."""
        values: dict[str, ParameterValue] = {}
        for name, setting in settings.items():
            value = setting.value(place.output, place.position)
            if value is None:
                whose = f" of '{model}'" if model else ""
                raise IncompatibleError(
                    f"No value of '{name}'{whose} covers '{place.output}'. Add an entry without "
                    "a filter."
                )
            values[name] = value
        return values


def _template_of(piece: OutputSlice) -> OutputSource:
    """Return the source that names the tensors of a slice: the base, or else the first."""
    return next(
        (source for source in piece.sources if source.model == piece.base_model),
        piece.sources[0],
    )
