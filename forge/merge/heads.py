"""Which tensor plays the part of a model's head, and whether a result has one of its own.

A tied model has no head in its files: its embedding, transposed, is the head. Merged with a model
that has a head of its own, its embedding is therefore what enters the head's place, and the result
has a head of its own. That is the one reading under which (1, 0) weights give back either parent:
keeping the result tied would throw the other's head away, and copying it unmerged, under a
config.json that still says tied, is a checkpoint that every loader reads as another model.

A result is tied only when every model of its first slice, which gives the embedding, and of its
last slice, which gives the head, is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol, runtime_checkable

from forge.architectures.table import Architecture


def is_head_weight(name: str, architecture: Architecture) -> bool:
    """Return whether a tensor is the matrix of a head, which an embedding can stand in for.

    Args:
        name: The tensor.
        architecture: The model's family.
    """
    return name in architecture.heads and name.endswith(".weight")


def head_of(name: str, architecture: Architecture, *, tied: bool, names: Collection[str]) -> str:
    """Return the tensor of a model that enters the place of a head.

    Args:
        name: A tensor of the result.
        architecture: The model's family.
        tied: Whether the model is tied.
        names: Its tensors.

    Returns:
        Its embedding where the name is that of a head and the model is tied, even if its files
        hold a head left over, which no loader reads; else the name itself.
    """
    if not (tied and is_head_weight(name, architecture)):
        return name
    return next((embedding for embedding in architecture.embeddings if embedding in names), name)


def head_names(
    architecture: Architecture, models: Iterable[tuple[bool, Collection[str]]]
) -> tuple[str, ...]:
    """Return the names under which a result that is not tied has its head.

    Args:
        architecture: The family.
        models: Whether each model is tied, and its tensors; those that give the head first.

    Returns:
        The heads of the models that have one of their own, or else the family's usual name.
    """
    untied = [names for tied, names in models if not tied]
    found = [
        head
        for head in architecture.heads
        if is_head_weight(head, architecture) and any(head in names for names in untied)
    ]
    return tuple(found[:1]) or architecture.heads[:1]


@runtime_checkable
class StandsIn(Protocol):
    """A tied model's tensors, whose head is not its embedding row by row.

    Where its rows are put in the order of another vocabulary, it borrows rows of tokens that it
    lacks: for the embedding from others' embeddings, for the head from others' heads.
    """

    def stands_in(self, name: str) -> bool:
        """Return whether a head can be read by its name, though the model's files have none."""
