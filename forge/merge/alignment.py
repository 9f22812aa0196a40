"""Let every model of a merge name its tensors as the model does that the result is made after.

Models that hold the same language model need not call its tensors alike. A vision-language model
keeps it under an outer module, beside a vision tower and a projector; a text-only model is nothing
else; and one family's files may begin with an outer module or not (``transformer.h.0``, ``h.0``).
Here such a model is seen through the donor's names. The plan and the check then compare like with
like, and what no other model has (the donor's own vision tower) is the donor's affair: it is
carried over byte for byte, and never an average.

What a seen-through model has beside the language model does not enter the result. That is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.header import TensorInfo
from forge.checkpoints.source import TensorSource
from forge.core.errors import CheckpointError, IncompatibleError
from forge.merge.plan import donor_of
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference


class AlignedSource:
    """A model's tensors under the names that another model has for them.

    Args:
        own: The model's tensors.
        family: Its own family, for messages.
        names: Its own name of each tensor by the new name, in file order.
        hidden: Its tensors that have no new name, because they are no part of the language model.
    """

    def __init__(
        self,
        own: TensorSource,
        *,
        family: str,
        names: Mapping[str, str],
        hidden: tuple[str, ...],
    ) -> None:
        self._own = own
        self._names = dict(names)
        self.family = family
        self.hidden = hidden

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._own.label

    def names(self) -> tuple[str, ...]:
        """Return all new names, in file order."""
        return tuple(self._names)

    def own_name(self, name: str) -> str:
        """Return what the model's files call a tensor.

        Args:
            name: Its new name.

        Raises:
            CheckpointError: There is no such tensor.
        """
        try:
            return self._names[name]
        except KeyError:
            raise CheckpointError(f"'{self.label}' has no tensor '{name}'.") from None

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata, which says what its file calls it.

        Args:
            name: Its new name.

        Raises:
            CheckpointError: There is no such tensor.
        """
        return self._own.info(self.own_name(name))

    def read(self, name: str) -> memoryview:
        """Return a tensor's bytes.

        Args:
            name: Its new name.

        Raises:
            CheckpointError: There is no such tensor, or it cannot be read.
        """
        return self._own.read(self.own_name(name))

    def prefetch(self, name: str) -> None:
        """Tell the system that a tensor will be read soon.

        Args:
            name: Its new name.
        """
        self._own.prefetch(self.own_name(name))

    def files(self) -> tuple[Path, ...]:
        """Return the model's weight files, for hashing."""
        return self._own.files()

    def close(self) -> None:
        """Release the files; views that are still held stay valid."""
        self._own.close()


def align(
    recipe: MergeRecipe, checkpoints: Mapping[ModelReference, Checkpoint]
) -> dict[ModelReference, Checkpoint]:
    """Return the models of a recipe, each under the donor's names where it has others.

    Args:
        recipe: The recipe.
        checkpoints: Its models, and others, which are returned as they are.

    Returns:
        The models in the same order. A model of an unknown family, or with another language model
        than the donor's, is returned as it is; the check tells why it cannot be merged.
    """
    donor = checkpoints[donor_of(recipe)]
    merged = frozenset(recipe.references())
    try:
        family = _family(donor)
    except IncompatibleError:
        return dict(checkpoints)
    return {
        model: _aligned(checkpoint, donor, family)
        if model in merged and checkpoint is not donor
        else checkpoint
        for model, checkpoint in checkpoints.items()
    }


def _family(checkpoint: Checkpoint) -> Architecture:
    return architecture_of(checkpoint.config, tensor_names=checkpoint.source.names())


def _aligned(checkpoint: Checkpoint, donor: Checkpoint, family: Architecture) -> Checkpoint:
    try:
        own = _family(checkpoint)
    except IncompatibleError:
        return checkpoint
    language = family.language_family(donor.config)
    if own.notice or family.notice or own.language_family(checkpoint.config) != language:
        return checkpoint
    known = frozenset(donor.source.names())
    names: dict[str, str] = {}
    hidden: list[str] = []
    for name in checkpoint.source.names():
        new = own.counterpart(name, family, known)
        if own.is_carried(name) and new not in known:
            hidden.append(name)
        else:
            if new in names:
                # It holds the tensor twice, under both spellings; the check sees it as it is.
                return checkpoint
            names[new] = name
    if own is family and not hidden and all(new == name for new, name in names.items()):
        return checkpoint
    source = AlignedSource(checkpoint.source, family=own.name, names=names, hidden=tuple(hidden))
    return replace(checkpoint, source=source, config=_seen_through(checkpoint.config, own, family))


def _seen_through(
    config: Mapping[str, object], own: Architecture, family: Architecture
) -> dict[str, object]:
    """Return what a config says of the language model, as the donor's family would read it."""
    outer = {key: value for key, value in config.items() if key != own.text_section}
    return {
        **outer,
        **own.text_config(config),
        "model_type": family.name,
        "tie_word_embeddings": own.is_tied(config),
    }
