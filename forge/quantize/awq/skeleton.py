"""A model without weights, whose decoder blocks are filled one at a time.

All parameters are on torch's ``meta`` device; only buffers (rotary frequencies) are real. What
stands before the blocks (embeddings, positions) is filled once, the token embedding with no more
than the rows that calibration uses, and the model's own ``forward`` then runs with recorders in
place of the blocks. So masks, positions and rotary embeddings are what the model makes of them,
for every family, and no block's weights are needed.

Legend: B sequences, T tokens of each, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from forge.architectures.names import architecture_of
from forge.architectures.table import Architecture
from forge.architectures.written import is_buffer
from forge.checkpoints.checkpoint import Checkpoint
from forge.core.errors import CheckpointError, IncompatibleError
from forge.quantize.awq.bodies import build_body
from forge.quantize.awq.weights import parts_of, read_into, read_rows

_META: Final = torch.device("meta")


@dataclass(frozen=True, slots=True)
class Call:
    """How a model calls one of its decoder blocks.

    Attributes:
        arguments: Positional arguments after the hidden states.
        keywords: Keyword arguments.
    """

    arguments: tuple[object, ...]
    keywords: Mapping[str, object]


class Skeleton:
    """A model whose decoder blocks are filled from a checkpoint one at a time.

    Args:
        checkpoint: The model.
        device: Where blocks run.
        num_tokens: Tokens of the longest sequence that it will read.

    Attributes:
        blocks: The decoder blocks, empty but for the one that is loaded.

    Raises:
        IncompatibleError: transformers does not know the architecture, or cannot build it.
        CheckpointError: The checkpoint has no decoder block.
        MissingExtraError: transformers is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: torch.device, num_tokens: int) -> None:
        self._source = checkpoint.source
        self._names = frozenset(checkpoint.source.names())
        self._device = device
        self._architecture = architecture_of(checkpoint.config, tensor_names=self._names)
        self._prefix = _prefix_of_blocks(self._architecture, self._names, self._source.label)
        self._body = build_body(checkpoint, self._architecture, num_tokens=num_tokens)
        self._decoder = self._body.decoder
        blocks = self._decoder.get_submodule(self._body.list_name)
        assert isinstance(blocks, nn.ModuleList)
        self.blocks = list(blocks)
        for module in self._decoder.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    def embed(
        self, batches: Sequence[npt.NDArray[np.int64]]
    ) -> Iterator[tuple[torch.Tensor, list[Call]]]:
        """Run what stands before the blocks.

        Args:
            batches: int64 [B, T] each, tokens.

        Yields:
            Hidden states, float32 [B, T, D], and how each block is called, for every batch.

        Raises:
            CheckpointError: A tensor that the model needs is missing or of another shape.
        """
        used = np.unique(np.concatenate([batch.ravel() for batch in batches]))
        self._fill_decoder(used)
        returns_tuple = False
        for batch in batches:
            ids = torch.from_numpy(np.searchsorted(used, batch)).to(self._device)
            try:
                recorded = self._record(ids, returns_tuple=returns_tuple)
            except _WantsTupleError:
                returns_tuple = True
                recorded = self._record(ids, returns_tuple=returns_tuple)
            yield recorded
        for name, _ in list(self._own_parameters()):
            _set_parameter(self._decoder, name, None)

    def load(self, index: int) -> dict[str, torch.Tensor]:
        """Fill a block.

        Args:
            index: Number of the block.

        Returns:
            Its float32 tensors by their names in the checkpoint; to change one is to change the
            block.

        Raises:
            CheckpointError: A tensor that the block needs is missing or of another shape.
        """
        prefix = self.prefix_of(index)
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter in list(self.blocks[index].named_parameters()):
            filled = torch.empty(parameter.shape, dtype=torch.float32)
            for tensor, place in parts_of(self._names, prefix, name, filled):
                read_into(self._source, tensor, place)
            filled = filled.to(self._device)
            _set_parameter(self.blocks[index], name, filled)
            tensors |= dict(parts_of(self._names, prefix, name, filled))
        self._load_buffers(self.blocks[index], prefix)
        return tensors

    def _load_buffers(self, block: nn.Module, prefix: str) -> None:
        """Fill what a checkpoint holds of a block's state that is no parameter.

        A router's correction bias is such a thing: without it, other experts would be chosen than
        the model chooses. What every loader computes anew stays as it was computed.
        """
        for name, buffer in list(block.named_buffers()):
            tensor = f"{prefix}{name}"
            if tensor in self._names and not is_buffer(tensor):
                filled = torch.empty(buffer.shape, dtype=torch.float32)
                read_into(self._source, tensor, filled)
                module, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(module), leaf, filled.to(self._device))

    def prefix_of(self, index: int) -> str:
        """Return what stands before the names of a block's tensors, such as ``model.layers.0.``.

        Args:
            index: Number of the block.
        """
        return f"{self._prefix}{index}."

    def drop(self, index: int) -> None:
        """Empty a block again.

        Args:
            index: Number of the block.
        """
        for name, _ in list(self.blocks[index].named_parameters()):
            _set_parameter(self.blocks[index], name, None)

    def _own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self._decoder.named_parameters():
            if not name.startswith(f"{self._body.list_name}."):
                yield name, parameter

    def _fill_decoder(self, used: npt.NDArray[np.int64]) -> None:
        """Fill what stands before the blocks; of the token embedding, the rows ``used``."""
        outer = self._prefix.removesuffix(f"{self._body.list_name}.")
        embedding = self._body.embedding
        for name, parameter in list(self._own_parameters()):
            module, _, leaf = name.rpartition(".")
            if self._decoder.get_submodule(module) is embedding and leaf == "weight":
                tensor = parts_of(self._names, outer, name, parameter)[0][0]
                filled = read_rows(self._source, tensor, used)
            else:
                filled = torch.empty(parameter.shape, dtype=torch.float32)
                for tensor, place in parts_of(self._names, outer, name, filled):
                    read_into(self._source, tensor, place)
            _set_parameter(self._decoder, name, filled.to(self._device))
        if getattr(embedding, "padding_idx", None) is not None:
            # It concerns gradients only, and may lie beyond the rows that are there.
            setattr(embedding, "padding_idx", None)  # noqa: B010 (not every embedding has it)

    def _record(self, ids: torch.Tensor, *, returns_tuple: bool) -> tuple[torch.Tensor, list[Call]]:
        calls: list[Call] = []
        hidden: list[torch.Tensor] = []

        def recorder(*arguments: object, **keywords: object) -> object:
            rest = list(arguments)
            states = rest.pop(0) if rest else keywords.pop("hidden_states")
            assert isinstance(states, torch.Tensor)
            if states.shape[:2] != ids.shape:
                # The model took the first element of what the previous block returned.
                raise _WantsTupleError
            hidden.append(states)
            calls.append(Call(tuple(rest), keywords))
            return (states,) if returns_tuple else states

        try:
            for block in self.blocks:
                block.forward = recorder
            self._body.run(ids)
        finally:
            for block in self.blocks:
                del block.forward
        if len(calls) != len(self.blocks):
            raise IncompatibleError(
                f"The model ran {len(calls)} of {len(self.blocks)} decoder blocks of "
                f"'{self._architecture.name}'; calibration needs all of them, in order."
            )
        return hidden[0], calls


class _WantsTupleError(Exception):
    """A model's blocks return tuples."""


def first_of(output: object) -> torch.Tensor:
    """Return the hidden states of what a decoder block returned.

    Args:
        output: Hidden states, or a tuple that begins with them.
    """
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, torch.Tensor)
    return states


def _prefix_of_blocks(architecture: Architecture, names: frozenset[str], label: str) -> str:
    for prefix in architecture.layer_prefixes:
        if any(name.startswith(f"{prefix}0.") for name in names):
            return prefix
    raise CheckpointError(f"'{label}' has no decoder block 0.")


def _set_parameter(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    """Give a parameter a value, or take it away."""
    owner, _, leaf = name.rpartition(".")
    place = module.get_submodule(owner)
    if tensor is None:
        tensor = torch.empty_like(place.get_parameter(leaf), device=_META)
    place.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
