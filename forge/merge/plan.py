"""What will be computed, tensor by tensor.

A plan is data: names, shapes and numbers, no tensors and no open files. It can be printed, and
sent to another process. Everything that makes a merge reproducible is in it: the order of the
models, the parameters of each tensor, the key of each random stream. ``planning`` makes one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

from forge.architectures.table import Architecture
from forge.checkpoints.layout import PlannedTensor
from forge.checkpoints.sidecars import LayerOrigin
from forge.core.dtypes import DTYPES
from forge.merge.contract import Stream
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.parameters import MethodRow, ParameterValue
from forge.recipes.reference import ModelReference

IDENTICAL = "identical"
"""What a job of a tensor that is no float does: all models must agree, and it is copied."""
CARRIED = "carried"
"""What a job of another part than the language model does: the donor's tensor is copied."""
COPIES = frozenset({IDENTICAL, CARRIED})


@dataclass(frozen=True, slots=True)
class JobInput:
    """One tensor of one model."""

    model: ModelReference
    name: str


@dataclass(frozen=True, slots=True)
class MergeJob:
    """One output tensor.

    Attributes:
        output: Its name.
        shape: Its dimensions.
        dtype: safetensors dtype to write.
        inputs: What it is made from, the base first when there is one.
        has_base: Whether the first input is the base.
        method: Name of a merge method, or one of ``COPIES``.
        values: Global parameters by name.
        models: Parameters of each input beside the base.
        streams: Random stream of each input beside the base.
        layer: Number of the output layer, or ``None`` outside the layers.
        companions: For each input beside the base, what a method of statistics reads with it, or
            ``None``; empty for the other methods.
        transposed: Whether its companions say that linear layers are stored [in, out].
    """

    output: str
    shape: tuple[int, ...]
    dtype: str
    inputs: tuple[JobInput, ...]
    has_base: bool
    method: str
    values: Mapping[str, ParameterValue]
    models: tuple[Mapping[str, ParameterValue], ...]
    streams: tuple[Stream, ...]
    layer: int | None
    companions: tuple[JobInput | None, ...] = ()
    transposed: bool = False


@dataclass(frozen=True)
class MergePlan:
    """All jobs of a merge, in the order in which the output lists them.

    Attributes:
        jobs: One for each output tensor.
        donor: The model whose configuration, and tokenizer unless the recipe says otherwise, the
            result takes: the base, or else the first model.
        architecture: The donor's family.
        layers: Where the configuration of each output layer comes from.
        dtype: Torch name of the output's float type, or ``None`` when each tensor keeps its own.
        input_bytes: Bytes that will be read, each tensor counted once for each use.
        models: All models but a base that is subtracted, in the order of the statistics.
        tied: Whether the result's head shares the embedding's weights.
    """

    jobs: tuple[MergeJob, ...]
    donor: ModelReference
    architecture: Architecture
    layers: tuple[LayerOrigin, ...]
    dtype: str | None
    input_bytes: int
    models: tuple[ModelReference, ...]
    tied: bool = False

    @cached_property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """What will be written."""
        return tuple(PlannedTensor(job.output, job.shape, job.dtype) for job in self.jobs)

    @cached_property
    def output_bytes(self) -> int:
        """Bytes of all output tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def num_parameters(self) -> int:
        """Elements of all output tensors."""
        return sum(tensor.nbytes // DTYPES[tensor.dtype].itemsize for tensor in self.tensors)

    def summary(self) -> dict[str, object]:
        """Return the plan as plain JSON values."""
        return {
            "donor": str(self.donor),
            "architecture": self.architecture.name,
            "num_layers": len(self.layers),
            "num_tensors": len(self.jobs),
            "num_parameters": self.num_parameters,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "dtype": self.dtype,
            "jobs": [
                {
                    "output": job.output,
                    "shape": list(job.shape),
                    "dtype": job.dtype,
                    "method": job.method,
                    "base": str(job.inputs[0].model) if job.has_base else None,
                    "inputs": [
                        {"model": str(item.model), "tensor": item.name, **parameters}
                        for item, parameters in zip(
                            job.inputs[job.has_base :], job.models, strict=True
                        )
                    ],
                    "parameters": dict(job.values),
                }
                for job in self.jobs
            ],
        }


def donor_of(recipe: MergeRecipe) -> ModelReference:
    """Return the model whose configuration the result takes: the base, or else the first."""
    if recipe.base_model is not None:
        return recipe.base_model
    return recipe.references()[0]


def merged_models(
    method: MethodRow, models: Sequence[ModelReference], base: ModelReference | None
) -> tuple[ModelReference, ...]:
    """Return the models that are merged, in an order that the recipe's order cannot change.

    Args:
        method: The merge method.
        models: Models as the recipe lists them.
        base: The base, or ``None``.
    """
    merged = [model for model in models if method.base_is_merged or model != base]
    if not method.symmetric:
        return tuple(merged)
    # By name first, so that sums are the same wherever the folders of the models lie.
    return tuple(sorted(merged, key=lambda model: (_short_name(model), str(model))))


def stream_names(models: Sequence[ModelReference]) -> dict[ModelReference, str]:
    """Return the name by which each model enters its random streams.

    It is the last part of its path, so that a model in another folder drops the same elements;
    models that share it use what the recipe says in full.
    """

    names = {model: _short_name(model) for model in models}
    counts = Counter(names.values())
    return {model: name if counts[name] == 1 else str(model) for model, name in names.items()}


def _short_name(model: ModelReference) -> str:
    name = PurePath(model.path).name
    return name if model.lora is None else f"{name}+{_short_name(model.lora)}"


def random_stream(seed: int, model: str, tensor: str) -> Stream:
    """Return the stream of one model and tensor: a hash of the three, so streams never meet."""
    text = f"{seed}\0{model}\0{tensor}".encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"forge-merge").digest()
    return Stream(
        int.from_bytes(digest[:8], "little", signed=True),
        int.from_bytes(digest[8:], "little", signed=True),
    )
