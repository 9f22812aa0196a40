"""Second moments of what every linear layer of a model reads, for RegMean.

Decoder blocks are filled and run one at a time, as for AWQ, so memory holds one block, the hidden
states of the calibration set and the moments of one block's inputs, whatever the size of the model.
Linears that read one input (query, key and value) share its moments.

Legend: B sequences, T tokens, I input features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.layout import PlannedTensor
from forge.checkpoints.progress import Progress
from forge.core.errors import NonFiniteError
from forge.quantize.awq.capture import Reader, find_readers, inputs_of_groups, run_block
from forge.quantize.awq.plan import BlockPlan, plan_blocks
from forge.quantize.awq.settings import AwqSettings
from forge.quantize.awq.skeleton import Call, Skeleton
from forge.quantize.awq.states import HiddenStates
from forge.quantize.awq.statistics import Wanted, signs_of
from forge.quantize.awq.workers import Workers, give_freed_tensors_back, torch_on_one_thread

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Held:
    """The moments of one input: where it is read, and the tensor that holds them."""

    place: Reader
    name: str
    width: int


class Moments:
    """Collects second moments, block by block.

    Args:
        checkpoint: The model.
        tokens_BT: int64, the calibration set.
        threads: Worker threads; 0 for as many as the process may run on.
        device: Where blocks run.

    Attributes:
        shared: For each weight, the tensor that holds the moments of its inputs.
        tensors: What will be collected.
        transposed: Whether the file holds the linears' weights [in, out].

    Raises:
        IncompatibleError: The family is unknown, or transformers builds it otherwise.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens_BT: npt.NDArray[np.int64],
        *,
        threads: int,
        device: str,
    ) -> None:
        self._tokens_BT = np.ascontiguousarray(tokens_BT, np.int64)
        self._settings = AwqSettings(device=device, threads=threads)
        self._device = torch.device(device)
        self._plans = plan_blocks(checkpoint)
        self._skeleton = Skeleton(checkpoint, device=self._device, num_tokens=tokens_BT.shape[1])
        self.shared: dict[str, str] = {}
        self.transposed = False
        self._held: list[list[_Held]] = []
        for plan in self._plans:
            self._held.append(self._inputs_of(plan))
        self.tensors = tuple(
            PlannedTensor(held.name, (held.width, held.width), "F32")
            for block in self._held
            for held in block
        )

    def collect(
        self, done: Callable[[str], bool], progress: Progress
    ) -> Iterator[tuple[str, Floats, Mapping[str, object]]]:
        """Yield moments that are not there yet: name, float32 [I, I], and the tokens seen.

        Args:
            done: Tells whether a tensor is finished already.
            progress: Hears which block is at work.

        Raises:
            NonFiniteError: A block computes a NaN or an infinity.
        """
        give_freed_tensors_back()
        workers = Workers(self._settings.threads)
        try:
            with torch_on_one_thread():
                states, calls = self._embed()
            for plan, held in zip(self._plans, self._held, strict=True):
                open_ones = [item for item in held if not done(item.name)]
                with torch_on_one_thread():
                    found = self._block(plan, open_ones, states, calls, workers)
                progress.status(f"block {plan.index + 1} of {len(self._plans)}")
                yield from found
        finally:
            workers.close()

    def _inputs_of(self, plan: BlockPlan) -> list[_Held]:
        readers = find_readers(
            self._skeleton.blocks[plan.index], plan, self._skeleton.prefix_of(plan.index)
        )
        places = inputs_of_groups(plan, readers)
        found: dict[Reader, _Held] = {}
        for linear in (linear for group in plan.groups for linear in group.linears):
            place = places[linear.module]
            held = found.setdefault(place, _Held(place, linear.tensor, linear.shape_OI[1]))
            self.shared[linear.tensor] = held.name
            self.transposed |= linear.transposed
        return list(found.values())

    def _embed(self) -> tuple[HiddenStates, list[list[Call]]]:
        states = HiddenStates(
            *self._tokens_BT.shape,
            dtype=torch.float32,
            spill_folder=None,
            spill_above_bytes=self._settings.spill_above_bytes,
        )
        batches = [self._tokens_BT[batch] for batch in states.batches]
        calls: dict[int, list[Call]] = {}
        for number, (embedded, recorded) in enumerate(self._skeleton.embed(batches)):
            states.put(number, embedded)
            calls.setdefault(embedded.shape[0], recorded)
        return states, [calls[batch.shape[0]] for batch in batches]

    def _block(
        self,
        plan: BlockPlan,
        held: list[_Held],
        states: HiddenStates,
        calls: list[list[Call]],
        workers: Workers,
    ) -> list[tuple[str, Floats, Mapping[str, object]]]:
        self._skeleton.load(plan.index)
        try:
            run = run_block(
                self._skeleton.blocks[plan.index],
                states,
                [recorded[plan.index] for recorded in calls],
                places=tuple(item.place for item in held),
                signs=signs_of(self._tokens_BT.size, 0),
                # Groups as small as the widths allow: only the moments of all pairs are wanted.
                wanted=Wanted(
                    math.gcd(8, *(item.width for item in held)) if held else 1, full=True
                ),
                workers=workers,
                device=self._device,
                where=f"Decoder block {plan.index}",
            )
        finally:
            self._skeleton.drop(plan.index)
        found: list[tuple[str, Floats, Mapping[str, object]]] = []
        for item in held:
            sums = run.statistics[item.place]
            assert sums.gram_II is not None
            mean_II = (sums.gram_II / max(sums.num_tokens, 1)).numpy()
            if not np.isfinite(mean_II).all():
                raise NonFiniteError(
                    f"The inputs of '{item.name}' are too large for float32: their second moments "
                    "overflow. Check the checkpoint."
                )
            found.append((item.name, mean_II, {"num_tokens": sums.num_tokens}))
        return found
