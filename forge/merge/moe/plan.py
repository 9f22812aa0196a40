"""Plan a mixture of experts: copies from several models, and routers.

A build is a merge by passthrough. Every tensor of the result is one tensor of one model under
another name (attention, norms, embeddings and head of the base, matrices of the experts' MLPs), and
the routers are copied like all others, from a source that computes them. So everything that a merge
has, a build has too: pieces in place, hashes on the way, resuming, one rename.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from forge.architectures.experts import MATRICES, ExpertFamily
from forge.architectures.table import ARCHITECTURES
from forge.architectures.written import is_written
from forge.checkpoints.sidecars import LayerOrigin
from forge.core.dtypes import BY_TORCH_NAME, DTYPES
from forge.core.errors import IncompatibleError
from forge.merge.catalog import METHODS
from forge.merge.check.stack import Subject
from forge.merge.moe.check import Frame
from forge.merge.plan import JobInput, MergeJob, MergePlan
from forge.recipes.merge_entries import ModelEntry
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.moe_types import ExpertEntry, MoeRecipe
from forge.recipes.reference import ModelReference

ROUTERS = ModelReference("routers")
"""Stands for the source of the routers among the models of a plan."""
_METHOD = "passthrough"


def as_merge(recipe: MoeRecipe) -> MergeRecipe:
    """Return the merge by passthrough that a build amounts to, for what works on merges.

    Args:
        recipe: What to build.
    """
    return MergeRecipe(
        METHODS[_METHOD],
        base_model=recipe.base_model,
        models=tuple(ModelEntry(model) for model in recipe.references()),
        out_dtype=recipe.dtype,
        name=recipe.name,
        seed=recipe.seed,
        max_shard_size=recipe.max_shard_size,
        file=recipe.file,
    )


def router_names(frame: Frame) -> tuple[str, ...]:
    """Return the names of all routers in the output, in the order of the layers.

    Args:
        frame: What is built.
    """
    return tuple(_layer_name(number, frame.family.router) for number in range(frame.num_layers))


def shared_gate_names(frame: Frame) -> tuple[str, ...]:
    """Return the names of the shared experts' gates; none where there is no shared expert.

    Args:
        frame: What is built.
    """
    if frame.family.shared_gate is None:
        return ()
    gate = frame.family.shared_gate
    return tuple(_layer_name(number, gate) for number in range(frame.num_layers))


def build_moe_plan(recipe: MoeRecipe, frame: Frame) -> MergePlan:
    """Plan a mixture of experts.

    Args:
        recipe: What to build.
        frame: Its models, which have been checked.

    Returns:
        The plan; inputs of routers are those of ``ROUTERS``.

    Raises:
        IncompatibleError: A tensor of the base is of a type that forge cannot write.
    """
    builder = _Builder(recipe, frame)
    jobs = tuple(builder.jobs())
    base = frame.subjects[recipe.base_model]
    return MergePlan(
        jobs=jobs,
        donor=recipe.base_model,
        architecture=ARCHITECTURES[frame.family.name],
        layers=tuple(
            LayerOrigin(base.checkpoint.config, number) for number in range(frame.num_layers)
        ),
        dtype=recipe.dtype,
        input_bytes=builder.input_bytes,
        models=recipe.references(),
        tied=base.tied,
    )


def _layer_name(number: int, name: str) -> str:
    return f"model.layers.{number}.{name}"


class _Builder:
    def __init__(self, recipe: MoeRecipe, frame: Frame) -> None:
        self._recipe = recipe
        self._frame = frame
        self._base: Subject = frame.subjects[recipe.base_model]
        self._dtype = BY_TORCH_NAME[recipe.dtype].name if recipe.dtype else None
        self.input_bytes = 0

    def jobs(self) -> Iterator[MergeJob]:
        """Yield what stands before the layers, the layers, and what follows them."""
        architecture = self._base.architecture
        tail = (*architecture.final_norms, *architecture.heads)
        outside = [
            name
            for name in self._base.others
            if is_written(name, architecture, tied=self._base.tied)
        ]
        for name in outside:
            if name not in tail:
                yield self._copy(name, self._recipe.base_model, name, layer=None)
        for number in range(self._frame.num_layers):
            yield from self._layer(number)
        for name in outside:
            if name in tail:
                yield self._copy(name, self._recipe.base_model, name, layer=None)

    def _layer(self, number: int) -> Iterator[MergeJob]:
        family, recipe = self._frame.family, self._recipe
        for name in family.attention:
            at = _layer_name(number, name)
            yield self._copy(at, recipe.base_model, at, layer=number)
        yield self._router(number, family.router, len(recipe.experts))
        for index, entry in enumerate(recipe.experts):
            yield from self._mlp(number, family.expert, entry, index=index)
        if family.shared is not None and family.shared_gate is not None:
            yield self._router(number, family.shared_gate, 1)
            for entry in recipe.shared_experts:
                yield from self._mlp(number, family.shared, entry)

    def _mlp(
        self, number: int, name: str, entry: ExpertEntry, *, index: int = 0
    ) -> Iterator[MergeJob]:
        for matrix in MATRICES:
            words = _matrix_names(self._frame.family, is_shared=name == self._frame.family.shared)
            output = name.format(e=index, matrix=words[matrix])
            yield self._copy(
                _layer_name(number, output),
                entry.source_model,
                _layer_name(number, f"mlp.{matrix}.weight"),
                layer=number,
                # The last matrix alone is linear in the expert's output.
                scale=entry.residual_scale if matrix == MATRICES[-1] else 1.0,
            )

    def _router(self, number: int, name: str, rows: int) -> MergeJob:
        output = _layer_name(number, name)
        norm = self._base.checkpoint.source.info(
            _layer_name(number, self._frame.family.attention[0])
        )
        shape = (rows, self._frame.hidden_size)
        return _job(
            output, JobInput(ROUTERS, output), shape, self._dtype or norm.dtype, layer=number
        )

    def _copy(
        self,
        output: str,
        model: ModelReference,
        name: str,
        *,
        layer: int | None,
        scale: float = 1.0,
    ) -> MergeJob:
        info = self._frame.subjects[model].checkpoint.source.info(name)
        if not DTYPES[info.dtype].mergeable:
            raise IncompatibleError(
                f"'{name}' of '{model}' is stored as {info.dtype}, which forge cannot write as a "
                "plain float. Convert the model to bfloat16 first."
            )
        self.input_bytes += info.nbytes
        kind = self._dtype or info.dtype
        return _job(output, JobInput(model, name), info.shape, kind, layer=layer, scale=scale)


def _matrix_names(family: ExpertFamily, *, is_shared: bool) -> Mapping[str, str]:
    return {name: name for name in MATRICES} if is_shared else family.matrices


def _job(
    output: str,
    item: JobInput,
    shape: tuple[int, ...],
    dtype: str,
    *,
    layer: int | None,
    scale: float = 1.0,
) -> MergeJob:
    return MergeJob(
        output=output,
        shape=shape,
        dtype=dtype,
        inputs=(item,),
        has_base=False,
        method=_METHOD,
        values={},
        models=({"scale": scale},),
        streams=(),
        layer=layer,
    )
