"""Inspecting: what a checkpoint is, whether it is right, and how two differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge.api.arguments import reference

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress
    from forge.verify.difference import CheckpointDifference
    from forge.verify.inspection import Inspection
    from forge.verify.verification import Verification


def inspect(folder: Path) -> Inspection:
    """Say what a checkpoint is and, if forge made it, how.

    Args:
        folder: The checkpoint's folder.

    Returns:
        Shapes, types and sizes; and of a merge the recipe, the inputs and statistics by layer.

    Raises:
        CheckpointError: It is no checkpoint, or its manifest is malformed.
    """
    from forge.verify.inspection import inspect_folder

    return inspect_folder(folder)


def verify(
    folder: Path,
    *,
    against: str | None = None,
    quick: bool = False,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check every byte of a checkpoint, and of a quantized one what its tensors mean.

    Args:
        folder: The checkpoint's folder.
        against: What a quantized checkpoint was made from, as recipes name models; without it,
            what compares with the source is skipped.
        quick: Whether to leave out what loads a quantized model.
        tokens: Most tokens of held-out text to compare predictions on.
        progress: Hears how it goes.

    Returns:
        Everything that is wrong.

    Raises:
        CheckpointError: There is no manifest, or something is malformed.
    """
    from forge.checkpoints.checkpoint import open_checkpoint
    from forge.verify.quantized import DEFAULT_TOKENS
    from forge.verify.verification import verify as verify_checkpoint

    limit = DEFAULT_TOKENS if tokens is None else tokens
    source = None if against is None else open_checkpoint(reference(against))
    try:
        return verify_checkpoint(folder, source, quick=quick, tokens=limit, progress=progress)
    finally:
        if source is not None:
            source.source.close()


def diff(a: str, b: str, *, progress: Progress | None = None) -> CheckpointDifference:
    """Say how two checkpoints differ.

    Args:
        a: A model as recipes name it: a folder, a Hub id, ``path@revision``, ``model+lora``.
        b: The other one.
        progress: Hears how it goes.

    Returns:
        Differences of tensors, layers, configurations and tokenizer files.

    Raises:
        CheckpointError: A model cannot be found or read.
    """
    from forge.checkpoints.checkpoint import open_checkpoint
    from forge.verify.difference import compare

    references = reference(a), reference(b)
    first = open_checkpoint(references[0])
    try:
        second = open_checkpoint(references[1])
        try:
            return compare(first, second, progress=progress)
        finally:
            second.source.close()
    finally:
        first.source.close()
