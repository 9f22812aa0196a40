"""Compute one output tensor from its inputs, wherever the inputs come from and the result goes.

A merge's workers write the result to a file; a stage of a recipe of several stages gives it to the
next one.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from forge.checkpoints.source import TensorSource
from forge.core.errors import IncompatibleError, NonFiniteError
from forge.kernels.operands import CHUNK, Emit, Operands, Workspace
from forge.merge.contract import MethodCall, TensorStatistics
from forge.merge.plan import CARRIED, IDENTICAL, MergeJob
from forge.recipes.reference import ModelReference
from forge.recipes.settings import layer_position

UNLIKE: Final = "num_unlike"
"""Of a tensor that is carried over, in how many other models it is not the same."""


def compute(
    job: MergeJob,
    views: Sequence[memoryview],
    dtypes: Sequence[str],
    emit: Emit,
    *,
    num_layers: int,
    allow_nonfinite: bool,
    workspace: Workspace,
    companions: Sequence[memoryview | None] = (),
) -> TensorStatistics:
    """Compute one tensor.

    Args:
        job: What to compute.
        views: Bytes of its inputs.
        dtypes: safetensors dtype of each.
        emit: Receives the result.
        num_layers: Layers of the whole result.
        allow_nonfinite: Whether NaN and Inf may pass.
        workspace: Scratch memory of this thread.
        companions: Bytes of the job's companions.

    Returns:
        What was learned on the way.

    Raises:
        IncompatibleError: The inputs cannot be merged.
        NonFiniteError: An input or the result holds a NaN or an infinity.
    """
    if job.method == IDENTICAL:
        return _copy(job, views, emit)
    if job.method == CARRIED:
        return _carry(views, emit)
    operands = Operands(
        inputs=tuple(views),
        dtypes=tuple(dtypes),
        has_base=job.has_base,
        shape=job.shape,
        out_dtype=job.dtype,
        emit=emit,
        workspace=workspace,
        companions=tuple(companions),
    )
    depth = None if job.layer is None else layer_position(job.layer, num_layers)
    call = MethodCall(job.values, job.models, job.streams, depth, job.transposed)
    try:
        statistics: TensorStatistics = _method(job.method).merge(operands, call)
    except IncompatibleError as error:
        raise IncompatibleError(f"'{job.output}': {error}") from error
    if not allow_nonfinite:
        _refuse_nonfinite(job, statistics)
    return statistics


def read_companions(
    job: MergeJob, sources: Mapping[ModelReference, TensorSource]
) -> tuple[memoryview | None, ...]:
    """Return the bytes of a job's companions.

    Args:
        job: What will be computed.
        sources: All tensors, those of statistics by their folders.
    """
    return tuple(
        None if item is None else sources[item.model].read(item.name) for item in job.companions
    )


def _copy(job: MergeJob, views: Sequence[memoryview], emit: Emit) -> TensorStatistics:
    for item, view in zip(job.inputs, views, strict=True):
        if view != views[0]:
            raise IncompatibleError(
                f"'{item.name}' holds whole numbers that differ between '{item.model}' and "
                f"'{job.inputs[0].model}', and whole numbers cannot be merged."
            )
    return _carry(views, emit)


def _carry(views: Sequence[memoryview], emit: Emit) -> TensorStatistics:
    """Copy the first tensor, and count the others that differ from it."""
    num_unlike = sum(view != views[0] for view in views[1:])
    for offset in range(0, views[0].nbytes, CHUNK):
        emit(offset, views[0][offset : offset + CHUNK])
    notes = {UNLIKE: float(num_unlike)} if num_unlike else {}
    return TensorStatistics((False,) * len(views), bad_output=False, notes=notes)


def _refuse_nonfinite(job: MergeJob, statistics: TensorStatistics) -> None:
    for item, is_bad in zip(job.inputs, statistics.bad_inputs, strict=True):
        if is_bad:
            raise NonFiniteError(
                f"'{item.name}' of '{item.model}' holds a NaN or an infinity. Repair or replace "
                "that checkpoint; 'allow_nonfinite: true' in a recipe of 'forge merge' lets it "
                "pass."
            )
    if statistics.bad_output:
        raise NonFiniteError(
            f"The merged '{job.output}' holds a NaN or an infinity in {job.dtype}, though its "
            "inputs are finite: the result overflows. Write bfloat16 or float32 ('out_dtype'), or "
            "lower the weights."
        )


def _method(name: str) -> Any:
    return importlib.import_module(f"forge.merge.methods.{name}")
