"""Quantize a model block by block: load, run, search, fold, prove, round, forget.

At any time there are in memory: one block in float32, the hidden states of the calibration set,
and the sums over what the block's linears read. None of it grows with the number of blocks.

Every block runs in full precision on the outputs of the full-precision block before it, so a
resumed run gets to the same point by running the finished blocks without a search.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from forge.architectures.blocks import block_structure
from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.progress import Progress, Silence
from forge.core.errors import IncompatibleError
from forge.formats.contract import Scheme
from forge.quantize.awq.block import BlockAtWork, ModelFacts, Proof
from forge.quantize.awq.capture import BlockRun, find_readers, inputs_of_groups, run_block
from forge.quantize.awq.module_search import ModuleSearch
from forge.quantize.awq.plan import BlockPlan, check_groups, plan_blocks
from forge.quantize.awq.settings import AwqSettings
from forge.quantize.awq.skeleton import Call, Skeleton
from forge.quantize.awq.states import HiddenStates
from forge.quantize.awq.statistics import Wanted, signs_of
from forge.quantize.awq.workers import Workers, give_freed_tensors_back, torch_on_one_thread
from forge.quantize.contract import BlockResult

_PROOF_TOKENS: Final = 128
"""Tokens on which a fold is proved: a wrong one shows on every token."""


def quantize_blocks(
    checkpoint: Checkpoint,
    tokens_BT: npt.NDArray[np.int64],
    scheme: Scheme,
    settings: AwqSettings,
    *,
    finished: Callable[[int], bool] = lambda _: False,
    progress: Progress | None = None,
) -> Iterator[BlockResult]:
    """Quantize the linears of all decoder blocks.

    Args:
        checkpoint: The model, its weights on disk.
        tokens_BT: int64, calibration tokens: B sequences of T tokens.
        scheme: Bits and groups.
        settings: How scales are judged, and what else is done.
        finished: Tells whether a block is finished already; it is then only run through.
        progress: Hears which block is at work and how large its error is.

    Returns:
        An iterator over the blocks that were not finished, in order.

    Raises:
        IncompatibleError: The model, the tokens and the scheme do not fit together, or a fold is
            proved wrong.
        CheckpointError: The checkpoint is incomplete.
        NonFiniteError: A block computes or holds a NaN or an infinity.
        MissingExtraError: transformers or accelerate is not installed.
        OutputError: Hidden states do not fit onto the disk.
    """
    plans = plan_blocks(checkpoint, keep=settings.keep)
    linears = [each for plan in plans for group in plan.groups for each in group.linears]
    check_groups(linears, scheme)
    check_tokens(checkpoint, tokens_BT)
    # Everything that can be refused was refused here; a generator would wait for its first use.
    return _Run(checkpoint, tokens_BT, scheme, settings, progress or Silence()).blocks(
        plans, finished
    )


def check_tokens(checkpoint: Checkpoint, tokens_BT: npt.NDArray[np.int64]) -> None:
    """Check that a calibration set is one, and of the model's vocabulary.

    Args:
        checkpoint: The model.
        tokens_BT: int64, the tokens.

    Raises:
        IncompatibleError: It is empty, or holds a token that the model does not know.
    """
    if tokens_BT.ndim != 2 or tokens_BT.size == 0:
        raise IncompatibleError(
            f"The calibration set has shape {list(tokens_BT.shape)}; it must hold at least one "
            "sequence of tokens."
        )
    names = frozenset(checkpoint.source.names())
    architecture = architecture_of(checkpoint.config, tensor_names=names)
    for embedding in (name for name in architecture.embeddings if name in names):
        vocabulary = checkpoint.source.info(embedding).shape[0]
        if int(tokens_BT.min()) < 0 or int(tokens_BT.max()) >= vocabulary:
            raise IncompatibleError(
                f"The calibration set holds token {int(tokens_BT.max())}, but the model's "
                f"vocabulary has {vocabulary}. It was made with another tokenizer."
            )


class _Run:
    """The state between two blocks.

    Args:
        checkpoint: The model.
        tokens_BT: Calibration tokens.
        scheme: Bits and groups.
        settings: What is done.
        progress: Hears how it goes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens_BT: npt.NDArray[np.int64],
        scheme: Scheme,
        settings: AwqSettings,
        progress: Progress,
    ) -> None:
        source = checkpoint.source
        self._scheme = scheme
        self._settings = settings
        self._progress = progress
        self._tokens_BT = np.ascontiguousarray(tokens_BT, np.int64)
        self._device = torch.device(settings.device)
        architecture = architecture_of(checkpoint.config, tensor_names=source.names())
        structure = block_structure(architecture)
        self._facts = ModelFacts(
            {name: source.info(name).dtype for name in source.names()},
            structure.one_plus,
            structure.transposed,
        )
        self._signs = signs_of(tokens_BT.size, settings.seed)
        self._checkpoint = checkpoint

    def blocks(
        self, plans: tuple[BlockPlan, ...], finished: Callable[[int], bool]
    ) -> Iterator[BlockResult]:
        """Yield the blocks that were not finished."""
        give_freed_tensors_back()
        workers = Workers(self._settings.threads)
        try:
            with torch_on_one_thread():
                self._progress.stage("preparing calibration")
                skeleton = Skeleton(
                    self._checkpoint, device=self._device, num_tokens=self._tokens_BT.shape[1]
                )
                states, calls, proof_calls = self._embed(skeleton, plans)
                self._progress.stage("quantizing blocks")
            if states.is_spilled:
                self._progress.notice(
                    "The hidden states of the calibration set are kept in a file, because they "
                    "exceed the memory set aside for them."
                )
            for plan in plans:
                with torch_on_one_thread():
                    result = self._block(
                        plan, skeleton, states, calls, proof_calls[plan.index],
                        workers, search=not finished(plan.index),
                    )  # fmt: skip
                if result is not None:
                    self._progress.status(_status(result, len(plans)))
                    yield result
        finally:
            workers.close()

    def _embed(
        self, skeleton: Skeleton, plans: tuple[BlockPlan, ...]
    ) -> tuple[HiddenStates, list[list[Call]], list[Call]]:
        """Return the first block's hidden states, and how each block is called.

        Calls come by number of sequences, because batches of one size share them.
        """
        dtypes = {self._facts.dtypes[each] for plan in plans for each in _tensors_of(plan)}
        states = HiddenStates(
            *self._tokens_BT.shape,
            # As the model itself keeps them; but what fits into another precision's range may
            # overflow in float16.
            dtype=torch.bfloat16 if dtypes == {"BF16"} else torch.float32,
            spill_folder=self._settings.spill_folder,
            spill_above_bytes=self._settings.spill_above_bytes,
        )
        batches = [self._tokens_BT[batch] for batch in states.batches]
        calls: dict[int, list[Call]] = {}
        proof: list[Call] = []
        for number, (embedded, recorded) in enumerate(
            skeleton.embed([*batches, self._tokens_BT[:1, :_PROOF_TOKENS]])
        ):
            if number == len(batches):
                proof = recorded
            else:
                states.put(number, embedded)
                calls.setdefault(embedded.shape[0], recorded)
        return states, [calls[batch.shape[0]] for batch in batches], proof

    def _block(
        self,
        plan: BlockPlan,
        skeleton: Skeleton,
        states: HiddenStates,
        calls: list[list[Call]],
        proof_call: Call,
        workers: Workers,
        *,
        search: bool,
    ) -> BlockResult | None:
        index = plan.index
        self._progress.status(f"block {index + 1}: reading what its linears read")
        tensors = skeleton.load(index)
        module = skeleton.blocks[index]
        settings = self._settings
        try:
            search = search and bool(plan.groups)
            readers = find_readers(module, plan, skeleton.prefix_of(index)) if search else {}
            places = inputs_of_groups(plan, readers) if search else {}
            block_calls = [recorded[index] for recorded in calls]
            judge = None
            if search and settings.search == "module":
                judge = ModuleSearch(
                    module, plan, readers, states, block_calls, self._scheme,
                    settings=settings, transposed=self._facts.transposed, workers=workers,
                )  # fmt: skip
            run: BlockRun = run_block(
                module,
                states,
                block_calls,
                places=tuple(dict.fromkeys(places.values())),
                signs=self._signs,
                wanted=Wanted(
                    self._scheme.group_size,
                    full=settings.search == "gram" or settings.error_feedback,
                ),
                workers=workers,
                device=self._device,
                where=f"Decoder block {index}",
            )
            if not search:
                return None
            at_work = BlockAtWork(
                skeleton, plan, tensors, places, run.statistics, judge,
                self._facts, self._scheme, settings, workers,
            )  # fmt: skip
            few = slice(0, _PROOF_TOKENS)
            return at_work.quantize(
                Proof(run.first_input[:1, few], run.first_output[:1, few], proof_call)
            )
        finally:
            skeleton.drop(index)


def _tensors_of(plan: BlockPlan) -> list[str]:
    return [linear.tensor for group in plan.groups for linear in group.linears]


def _status(result: BlockResult, num_blocks: int) -> str:
    errors = [
        error
        for module in result.statistics.values()
        if isinstance(error := module.get("error"), float)
    ]
    mean = sum(errors) / len(errors) if errors else 0.0
    return f"block {result.index + 1} of {num_blocks}, error {mean:.4f}"
