"""Compare what a merge will need with what the machine has: disk space and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.header_source import HeaderOnlySource
from forge.checkpoints.partial import PARTIAL_SUFFIX
from forge.checkpoints.source import SafetensorsSource
from forge.core.machine import available_memory
from forge.merge.check.matrices import working_bytes
from forge.merge.check.report import Notebook
from forge.merge.plan import MergePlan
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

_PROCESS_BYTES: Final = 180_000_000
"""Interpreter, numpy and compiled kernels, before any work."""
_THREAD_BYTES: Final = 12_000_000
"""Work rows and one piece of output of a thread, with room to spare."""
_BLOCK_BYTES: Final = 24_000_000
"""Rows and factors that an adapter's arithmetic holds beside a merged tensor."""
_TENSOR_BYTES: Final = 6_000
"""What plan, journal and manifest hold about one tensor."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a merge needs, in bytes; see ``CheckReport``."""

    input_bytes: int
    output_bytes: int
    memory_bytes: int
    free_disk_bytes: int | None


def check_resources(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    plan: MergePlan | None,
    scratch_bytes: int,
    out: Path | None,
    notes: Notebook,
) -> Needs:
    """Estimate what the merge needs, and report what is too little.

    Args:
        recipe: The recipe.
        checkpoints: The models.
        plan: The plan, or ``None`` while errors prevent one.
        scratch_bytes: Size of rearranged embeddings, which lie beside the output meanwhile.
        out: Folder that the result will be, or ``None``.
        notes: Receives the findings.

    Returns:
        The estimates.
    """
    input_bytes = plan.input_bytes if plan else _bytes_of(recipe, checkpoints)
    output_bytes = plan.output_bytes if plan else 0
    memory = _memory(recipe, checkpoints, plan)
    free = None if out is None else _free_disk(out)
    if out is not None and free is not None and plan is not None:
        needed = output_bytes + scratch_bytes - _allocated(out)
        if needed > free:
            notes.error(
                "disk-space",
                f"The merge needs {needed / 1e9:.2f} GB in '{out.absolute().parent}', and "
                f"{free / 1e9:.2f} GB are free there. Make room, or choose another place for the "
                "output.",
            )
    available = available_memory()
    if available is not None and memory > available:
        notes.warning(
            "memory",
            f"The merge needs about {memory / 1e9:.2f} GB of memory, and {available / 1e9:.2f} GB "
            "are available. Close other programs, or use fewer threads.",
        )
    return Needs(input_bytes, output_bytes, memory, free)


def _bytes_of(recipe: MergeRecipe, checkpoints: Mapping[ModelReference, Checkpoint]) -> int:
    sources = [checkpoints[model].source for model in recipe.references()]
    return sum(source.info(name).nbytes for source in sources for name in source.names())


def _memory(
    recipe: MergeRecipe,
    checkpoints: Mapping[ModelReference, Checkpoint],
    plan: MergePlan | None,
) -> int:
    threads = len(os.sched_getaffinity(0))
    jobs = len(plan.jobs) if plan else 0
    return (
        _PROCESS_BYTES
        + threads * (_THREAD_BYTES + _computed_bytes(recipe, checkpoints) + _matrix_bytes(plan))
        + jobs * _TENSOR_BYTES
    )


def _computed_bytes(recipe: MergeRecipe, checkpoints: Mapping[ModelReference, Checkpoint]) -> int:
    """Return what one thread holds at most of tensors that are computed when they are read."""
    total = 0
    for model in recipe.references():
        if checkpoints[model].parts:
            infos = [
                checkpoints[model].source.info(name) for name in checkpoints[model].source.names()
            ]
            # Its tensor, and as much again of what that is computed from.
            total += 2 * max((info.nbytes for info in infos), default=0)
        elif model.lora is not None:
            source = checkpoints[model].source
            infos = [source.info(name) for name in source.names()]
            total += max((info.nbytes for info in infos), default=0) + _BLOCK_BYTES
        elif not isinstance(checkpoints[model].source, SafetensorsSource | HeaderOnlySource):
            # What is decoded.
            source = checkpoints[model].source
            total += max((source.info(name).nbytes for name in source.names()), default=0)
    return total


def _matrix_bytes(plan: MergePlan | None) -> int:
    """Return what one thread holds at most of the matrices that some methods work on."""
    return max(map(working_bytes, plan.jobs), default=0) if plan else 0


def _free_disk(out: Path) -> int | None:
    place = out.absolute()
    while not place.is_dir():
        if place == place.parent:
            return None
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def _allocated(out: Path) -> int:
    """Return what an unfinished merge to the same place has taken from the disk already."""
    partial = out.absolute().with_name(out.name + PARTIAL_SUFFIX)
    try:
        return sum(path.lstat().st_blocks * 512 for path in partial.rglob("*.safetensors"))
    except OSError:
        return 0
