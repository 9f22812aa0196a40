"""How far each decoder block of a variant is from the reference's, so that a bad one shows.

Both models read the same token windows, one after the other: the first is gone when the second is
loaded, so no more memory is needed than for the larger of the two. What the reference's blocks were
given and returned waits in a memory-mapped file without a name, which vanishes with the process.
Two figures come of it for each block,

    relative error   ‖v − r‖ / ‖r‖            v, r: outputs of the block as each model runs
    own error        ‖V(x) − R(x)‖ / ‖R(x) − x‖   x: the reference's input, given to both blocks

The first says how far the variant has drifted by then; it carries on what earlier blocks did, so
after a bad block all later ones look bad. The second names the culprit. It is relative to what the
block adds to the residual stream, not to the stream, whose norm a few tokens of enormous activation
dominate in most models and would hide it. It costs one more run of each of the variant's blocks,
half as much again as both models take.

Sums of squares are added in float64. Shape suffixes: B windows, T tokens, D hidden size.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from forge.architectures.names import architecture_of
from forge.core.errors import IncompatibleError, NonFiniteError, OutputError
from forge.results.records import LayerError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPILL_BYTES: Final = 2 << 30
"""Most bytes of hidden states that wait in the file; fewer windows are compared beyond it."""


def decoder_blocks(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """Return a model's decoder blocks in the order in which they run.

    Args:
        model: A causal language model.

    Returns:
        The blocks, as many as its configuration states.

    Raises:
        IncompatibleError: forge's table does not know where this family has them.
    """
    config = model.config.to_dict()
    names = [name for name, _ in model.named_parameters()]
    architecture = architecture_of(config, tensor_names=names)
    paths = [prefix.removesuffix(".") for prefix in architecture.layer_prefixes]
    # transformers runs the text part of a model of several parts under the plainest name.
    for path in dict.fromkeys([*paths, "model.layers"]):
        try:
            found = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList) and len(found) == architecture.num_layers(config):
            return tuple(found)
    raise IncompatibleError(
        f"The decoder blocks of '{architecture.name}' are not where forge's table says in "
        f"transformers' {type(model).__name__}: {', '.join(paths)}."
    )


def chosen_windows(num_windows: int, *, window_bytes: int, limit: int = SPILL_BYTES) -> list[int]:
    """Return the windows to compare blocks on, spread evenly over all.

    Args:
        num_windows: All windows.
        window_bytes: Bytes of one window's hidden states at all places.
        limit: Most bytes of all.

    Returns:
        Their numbers, ascending; at least one.
    """
    count = max(1, min(num_windows, limit // window_bytes))
    return [index * num_windows // count for index in range(count)]


class SpilledStates:
    """Hidden states before the first block and after each, of chosen windows.

    Args:
        num_blocks: Blocks of the model.
        windows: Numbers of the chosen windows, ascending.

    Attributes:
        windows: As above.
    """

    def __init__(self, num_blocks: int, windows: Sequence[int]) -> None:
        self.windows = tuple(windows)
        self._num_places = num_blocks + 1
        self._states: torch.Tensor | None = None

    def write(self, place: int, slots: slice, states_BTD: torch.Tensor) -> None:
        """Keep the hidden states at a place.

        Args:
            place: 0 before the first block, else the number of the block after, from 1.
            slots: Which of the chosen windows these are.
            states_BTD: Their hidden states.

        Raises:
            OutputError: The disk of temporary files is full.
        """
        if self._states is None:
            shape = (self._num_places, len(self.windows), *states_BTD.shape[1:])
            self._states = _mapped(shape, states_BTD.dtype)
        self._states[place, slots] = states_BTD.to("cpu")

    def read(self, place: int, slots: slice) -> torch.Tensor:
        """Return what was written."""
        assert self._states is not None, "the reference has not run"
        return self._states[place, slots]

    def slots_of(self, start: int, count: int) -> tuple[slice, list[int]]:
        """Return which chosen windows a batch holds.

        Args:
            start: Number of its first window.
            count: Windows that it has.

        Returns:
            Their places among the chosen, and their rows in the batch.
        """
        first = sum(window < start for window in self.windows)
        rows = [window - start for window in self.windows if start <= window < start + count]
        return slice(first, first + len(rows)), rows


@contextmanager
def recorded_states(blocks: Sequence[nn.Module], windows: Sequence[int]) -> Iterator[SpilledStates]:
    """Keep the hidden states of a model that runs meanwhile.

    Args:
        blocks: Its decoder blocks.
        windows: Numbers of the windows to keep; batches must come in order.

    Yields:
        What is kept.
    """
    states = SpilledStates(len(blocks), windows)
    seen = [0] * len(blocks)

    def keep(index: int, inputs_BTD: torch.Tensor, outputs_BTD: torch.Tensor) -> None:
        slots, rows = states.slots_of(seen[index], len(outputs_BTD))
        seen[index] += len(outputs_BTD)
        if rows:
            if index == 0:
                states.write(0, slots, inputs_BTD[rows])
            states.write(index + 1, slots, outputs_BTD[rows])

    handles = [
        block.register_forward_hook(
            lambda _, arguments, keywords, output, index=index: keep(
                index, _hidden(arguments, keywords), first_of(output)
            ),
            with_kwargs=True,
        )
        for index, block in enumerate(blocks)
    ]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class LayerErrors:
    """Sums of squares over the windows seen so far, by block."""

    drift: list[float]
    reference: list[float]
    own: list[float]
    added: list[float]
    seen: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls, num_blocks: int) -> LayerErrors:
        """Return sums of nothing."""
        zeros = [0.0] * num_blocks
        return cls(zeros.copy(), zeros.copy(), zeros.copy(), zeros.copy(), [0] * num_blocks)

    def figures(self) -> tuple[LayerError, ...]:
        """Return the errors of all blocks, in order.

        Raises:
            NonFiniteError: Hidden states were NaN or infinite.
        """
        return tuple(
            LayerError(
                index,
                _ratio(self.drift[index], self.reference[index], index),
                _ratio(self.own[index], self.added[index], index),
            )
            for index in range(len(self.drift))
        )


@contextmanager
def compared_states(blocks: Sequence[nn.Module], states: SpilledStates) -> Iterator[LayerErrors]:
    """Compare a model that runs meanwhile with one that ran before.

    Args:
        blocks: Its decoder blocks, as many as the other's.
        states: What the other's blocks were given and returned.

    Yields:
        The errors, complete when the model has run over all windows.
    """
    errors = LayerErrors.empty(len(blocks))

    def compare(
        index: int,
        block: nn.Module,
        arguments: tuple[object, ...],
        keywords: dict[str, object],
        output: object,
    ) -> None:
        outputs_BTD = first_of(output)
        slots, rows = states.slots_of(errors.seen[index], len(outputs_BTD))
        errors.seen[index] += len(outputs_BTD)
        if not rows:
            return
        device = outputs_BTD.device
        given_BTD = states.read(index, slots).to(device)
        wanted_BTD = states.read(index + 1, slots).to(device)
        errors.drift[index] += _squares(outputs_BTD[rows], wanted_BTD)
        errors.reference[index] += _squares(wanted_BTD)
        # The other rows stay, so that masks and positions of the batch still fit.
        inputs_BTD = _hidden(arguments, keywords).clone()
        inputs_BTD[rows] = given_BTD
        own_BTD = first_of(_run(block, inputs_BTD, arguments, keywords))
        errors.own[index] += _squares(own_BTD[rows], wanted_BTD)
        errors.added[index] += _squares(wanted_BTD, given_BTD)

    handles = [
        block.register_forward_hook(
            lambda block, arguments, keywords, output, index=index: compare(
                index, block, arguments, keywords, output
            ),
            with_kwargs=True,
        )
        for index, block in enumerate(blocks)
    ]
    try:
        yield errors
    finally:
        for handle in handles:
            handle.remove()


def first_of(output: object) -> torch.Tensor:
    """Return the hidden states of what a decoder block returned: itself, or its first element."""
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, torch.Tensor)
    return states


def _hidden(arguments: tuple[object, ...], keywords: dict[str, object]) -> torch.Tensor:
    states = arguments[0] if arguments else keywords["hidden_states"]
    assert isinstance(states, torch.Tensor)
    return states


def _run(
    block: nn.Module,
    inputs_BTD: torch.Tensor,
    arguments: tuple[object, ...],
    keywords: dict[str, object],
) -> object:
    # forward, not a call: the block's hooks must not run again.
    if arguments:
        return block.forward(inputs_BTD, *arguments[1:], **keywords)
    return block.forward(**{**keywords, "hidden_states": inputs_BTD})


def _squares(a_BTD: torch.Tensor, b_BTD: torch.Tensor | None = None) -> float:
    difference_BTD = a_BTD.double() if b_BTD is None else a_BTD.double() - b_BTD.double()
    return float(difference_BTD.square().sum())


def _ratio(error: float, whole: float, index: int) -> float:
    if error == 0:
        return 0.0
    ratio = (error / whole) ** 0.5 if whole > 0 else float("inf")
    if not ratio < float("inf"):
        raise NonFiniteError(
            f"Hidden states of decoder block {index} are NaN or infinite in one of the models."
        )
    return ratio


def _mapped(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return zeros in a temporary file that is removed already, and lives as long as they do."""
    count = 1
    for size in shape:
        count *= size
    try:
        with tempfile.NamedTemporaryFile(prefix="forge-states-") as file:
            # A page that the disk has no room for would end the process when it is written.
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)
            mapped = torch.from_file(file.name, shared=True, size=count, dtype=dtype)
    except OSError as error:
        raise OutputError(
            f"Hidden states need {count * dtype.itemsize / 1e9:.1f} GB in {tempfile.gettempdir()}: "
            f"{error.strerror}. Set TMPDIR to a larger disk, or use fewer --tokens."
        ) from error
    return mapped.view(shape)
