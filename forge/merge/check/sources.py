"""Say of every model of a recipe what is to be said before its weights are looked at.

What a checkpoint told when it was opened (it is decoded, its adapter names another base), and
whether weights that are stored in full precision lie on a quantized grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.grid import grid_warning
from forge.merge.check.report import Notebook
from forge.merge.check.scales import note_moved_scales
from forge.recipes.reference import ModelReference


def note_sources(
    checkpoints: Mapping[ModelReference, Checkpoint],
    notes: Notebook,
    *,
    read: Iterable[ModelReference],
) -> None:
    """Report what is known of models from opening them, and from a few pages of their weights.

    Args:
        checkpoints: All models.
        notes: Receives the findings.
        read: Those of them whose weights enter the result.
    """
    for checkpoint in checkpoints.values():
        for text in checkpoint.notices:
            if text in checkpoint.warnings:
                notes.warning("stage" if checkpoint.parts else "adapter-base", text)
            else:
                notes.notice("source", text)
    read = tuple(read)
    note_moved_scales(checkpoints, notes, read=read)
    for reference in read:
        warning = grid_warning(checkpoints[reference])
        if warning is not None:
            notes.warning("grid", warning)
