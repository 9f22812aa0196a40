"""Run a decoder block over the calibration set and measure what its linears read.

Hooks hand the inputs of linear layers to the thread that runs the batch, which reduces them to
statistics at once. Experts that transformers stacks into one module are no modules: for them the
stack's own inputs are caught, and each expert's tokens are picked, and carried to the input of its
last matrix, as the stack does.

Legend: B sequences, T tokens of each, N tokens, D hidden size, I input features.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn

from forge.core.errors import IncompatibleError, NonFiniteError
from forge.quantize.awq.plan import BlockPlan
from forge.quantize.awq.skeleton import Call, first_of
from forge.quantize.awq.states import HiddenStates
from forge.quantize.awq.statistics import InputStatistics, Wanted, measure
from forge.quantize.awq.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPERT: Final = re.compile(r"(?P<stack>.*\bexperts)\.(?P<expert>\d+)\.(?P<matrix>\w+)")
_LAST_MATRICES: Final = ("down_proj", "w2")
_RENAMED: Final = (("block_sparse_moe.", "mlp."),)


@dataclass(frozen=True, slots=True)
class Reader:
    """A linear layer's place in a running block.

    Attributes:
        path: Module that is called: the linear itself, or the stack of experts.
        expert: Number of the expert, or ``None``.
        is_last: Whether it is the expert's last matrix.
    """

    path: str
    expert: int | None = None
    is_last: bool = False


def find_readers(block: nn.Module, plan: BlockPlan, prefix: str) -> dict[str, Reader]:
    """Find the planned linears in a running block.

    Args:
        block: The block.
        plan: What is quantized.
        prefix: What stands before module names in the checkpoint.

    Returns:
        Places by module name.

    Raises:
        IncompatibleError: transformers builds the block otherwise than the table says.
    """
    paths = {name for name, _ in block.named_modules()}
    readers: dict[str, Reader] = {}
    for module in (linear.module for group in plan.groups for linear in group.linears):
        path = module.removeprefix(prefix)
        for theirs, ours in _RENAMED:
            path = path.replace(theirs, ours, 1)
        match = _EXPERT.fullmatch(path)
        if path in paths:
            readers[module] = Reader(path)
        elif match is not None and match["stack"] in paths:
            readers[module] = Reader(
                match["stack"], int(match["expert"]), match["matrix"] in _LAST_MATRICES
            )
        else:
            raise IncompatibleError(
                f"'{module}' is not a module of transformers' {type(block).__name__}, so what it "
                "reads cannot be measured. The family's row in forge/architectures/block_table.py "
                "and the installed transformers disagree."
            )
    return readers


def inputs_of_groups(plan: BlockPlan, readers: Mapping[str, Reader]) -> dict[str, Reader]:
    """Choose one linear to watch for each different input.

    Args:
        plan: What is quantized.
        readers: Places of the linears.

    Returns:
        For every planned linear, the place whose input is also its own.
    """
    chosen: dict[str, Reader] = {}
    for group in plan.groups:
        first: Reader | None = None
        for linear in group.linears:
            reader = readers[linear.module]
            if reader.expert is None:
                first = first or reader
                reader = first
            chosen[linear.module] = reader
    return chosen


class Watch:
    """Catches what chosen modules of a block read, in the thread that runs it.

    Args:
        block: The block.
        places: Which inputs to catch.
    """

    def __init__(self, block: nn.Module, places: Sequence[Reader]) -> None:
        self._block = block
        self._places = tuple(dict.fromkeys(places))
        self._local = threading.local()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hook the modules."""
        handles = [
            self._block.get_submodule(path).register_forward_pre_hook(self._hook(path))
            for path in dict.fromkeys(place.path for place in self._places)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(
        self, states_BTD: torch.Tensor, call: Call
    ) -> tuple[torch.Tensor, dict[Reader, tuple[torch.Tensor, torch.Tensor | None]]]:
        """Run the block.

        Args:
            states_BTD: float32.
            call: How the model calls it.

        Returns:
            Its hidden states, and for each place the inputs [N, I] with the numbers of their
            tokens in the batch, ``None`` for all of them.
        """
        self._local.caught = {}
        output = first_of(self._block(states_BTD, *call.arguments, **call.keywords))
        caught: dict[str, tuple[object, ...]] = self._local.caught
        inputs: dict[Reader, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for place in self._places:
            arguments = caught[place.path]
            if place.expert is None:
                values = arguments[0]
                assert isinstance(values, torch.Tensor)
                inputs[place] = (values.reshape(-1, values.shape[-1]), None)
            else:
                inputs[place] = self._of_expert(place, arguments)
        return output, inputs

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def catch(_module: nn.Module, arguments: tuple[object, ...]) -> None:
            self._local.caught[path] = arguments

        return catch

    def _of_expert(
        self, place: Reader, arguments: tuple[object, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        stack = self._block.get_submodule(place.path)
        states_ND, choices = arguments[0], arguments[1]
        assert isinstance(states_ND, torch.Tensor)
        assert isinstance(choices, torch.Tensor)
        tokens_N = choices.eq(place.expert or 0).any(dim=-1).nonzero().view(-1)
        inputs = states_ND.reshape(-1, states_ND.shape[-1])[tokens_N]
        if place.is_last:
            first = stack.get_parameter("gate_up_proj")[place.expert]
            gate, up = nn.functional.linear(inputs, first).chunk(2, dim=-1)
            activation = cast("Callable[[torch.Tensor], torch.Tensor]", stack.act_fn)
            inputs = activation(gate) * up
        return inputs, tokens_N


@dataclass(frozen=True, slots=True)
class BlockRun:
    """What running a block over the calibration set gave.

    Attributes:
        statistics: By place.
        first_input: Hidden states of the first batch before the block, float32 [B, T, D].
        first_output: And after it.
    """

    statistics: dict[Reader, InputStatistics]
    first_input: torch.Tensor
    first_output: torch.Tensor


def run_block(
    block: nn.Module,
    states: HiddenStates,
    calls: Sequence[Call],
    *,
    places: Sequence[Reader],
    signs: torch.Tensor,
    wanted: Wanted,
    workers: Workers,
    device: torch.device,
    where: str,
) -> BlockRun:
    """Replace all hidden states by what a block makes of them, and measure what its linears read.

    Args:
        block: The block, filled.
        states: Hidden states before it, and afterwards those behind it.
        calls: How the model calls it, by batch.
        places: What to measure; empty to run only.
        signs: Of the sketch, for every token.
        wanted: Which statistics.
        workers: Threads.
        device: Where the block is.
        where: What the block is called, for messages.

    Returns:
        Statistics, and the first batch for the proof of the fold.

    Raises:
        NonFiniteError: A NaN or an infinity came out of the block.
    """
    watch = Watch(block, places)
    num_tokens = int(signs.numel()) // states.num_sequences

    def work(batch: int) -> tuple[torch.Tensor, torch.Tensor, dict[Reader, InputStatistics]]:
        before = states.get(batch)
        with torch.no_grad():
            after, inputs = watch.run(before.to(device), calls[batch])
            start = states.batches[batch].start * num_tokens
            measured = {}
            for place, (values, tokens) in inputs.items():
                numbers = torch.arange(values.shape[0]) if tokens is None else tokens.cpu()
                measured[place] = measure(values.float().cpu(), numbers + start, signs, wanted)
        after = after.cpu()
        if not torch.isfinite(after).all():
            raise NonFiniteError(
                f"{where} gives NaN or infinite hidden states on the calibration set, in float32 "
                "and before anything is quantized. Check the checkpoint: one of its weights up to "
                "this block is broken."
            )
        return before, after, measured

    statistics: dict[Reader, InputStatistics] = {}
    first: tuple[torch.Tensor, torch.Tensor] | None = None
    with watch.hooked():
        for batch, (before, after, measured) in enumerate(
            workers.map(work, range(len(states.batches)))
        ):
            first = first or (before, after)
            states.put(batch, after)
            for place, sums in measured.items():
                if place in statistics:
                    statistics[place].add(sums)
                else:
                    statistics[place] = sums
    assert first is not None
    return BlockRun(statistics, *first)
