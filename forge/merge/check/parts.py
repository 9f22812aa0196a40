"""Say what becomes of the parts of a model that are not its language model.

A merge averages language models. A vision tower and its projector are taken from the one model
whose configuration the result takes; headers show which tensors those are, and only their bytes,
which the merge compares, whether the other models agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from forge.architectures.written import is_buffer
from forge.core.enumeration import some
from forge.merge.alignment import AlignedSource
from forge.merge.check.report import Notebook
from forge.merge.check.stack import Subject
from forge.recipes.reference import ModelReference


def note_parts(
    subjects: Mapping[ModelReference, Subject], lead: ModelReference, notes: Notebook
) -> None:
    """Report tensors that are carried over, seen under other names, or left out.

    Args:
        subjects: Every model that could be understood.
        lead: The model whose configuration the result takes.
        notes: Receives the findings.
    """
    if lead not in subjects:
        return
    carried = [name for name in subjects[lead].others if _is_part(subjects[lead], name)]
    if carried:
        notes.notice(
            "parts-carried",
            f"{some(carried)} of {lead} are no part of its language model. These "
            f"{len(carried):,} tensors are carried over from {lead} unchanged, not merged.",
        )
    for subject in subjects.values():
        source = subject.checkpoint.source
        _note_unlike(carried, subjects[lead], subject, notes)
        if subject.reference == lead or not isinstance(source, AlignedSource):
            continue
        example = next((n for n in source.names() if source.own_name(n) != n), None)
        if example is not None:
            notes.notice(
                "names-aligned",
                f"{subject.reference} is merged under the names of {lead}: its "
                f"'{source.own_name(example)}' is '{example}' there, and so on.",
            )
        if source.hidden:
            notes.warning(
                "parts-left-out",
                f"{some(source.hidden)} of {subject.reference} are no part of its language model, "
                f"and {lead}, after which the result is made, has no such tensors. These "
                f"{len(source.hidden):,} tensors are not in the result. To keep them, name "
                f"{subject.reference} as the base, or first where there is none.",
            )


def _note_unlike(carried: list[str], lead: Subject, other: Subject, notes: Notebook) -> None:
    """Report parts that both models have, and that cannot be equal, by their headers."""
    pairs = [(lead.others[name], other.others[name]) for name in carried if name in other.others]
    unlike = [
        ours.name
        for ours, theirs in pairs
        if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype)
    ]
    if unlike:
        notes.warning(
            "parts-unlike",
            f"{some(unlike)} are of another shape or type in {other.reference} than in "
            f"{lead.reference}. Those of {lead.reference} are carried over, and the others are "
            "lost.",
        )


def _is_part(subject: Subject, name: str) -> bool:
    return subject.architecture.is_carried(name) and not is_buffer(name)
