"""Judge scales as AutoAWQ does: run the attention or the MLP again for every candidate.

For parity, and to measure what the search by statistics gives away. What is run is the smallest
module of the block that holds all linears of a group: the attention for queries, keys and values,
the MLP for gate and up, the linear itself where it is alone. The loss is the mean squared change of
its output over all calibration tokens.

Its inputs are caught once a block, before anything is changed, and kept while the block is at
work, so memory grows with the calibration set.

Legend: O output features, I input features.

Reference: AutoAWQ 0.2.9, ``_compute_best_scale``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from forge.formats.contract import Scheme
from forge.quantize.awq.capture import Reader
from forge.quantize.awq.plan import BlockPlan, FoldGroup
from forge.quantize.awq.rounding_loops import scaled_errors
from forge.quantize.awq.scales import ScaleChoice, candidate_scales, choose, mean_magnitudes
from forge.quantize.awq.settings import AwqSettings
from forge.quantize.awq.skeleton import Call, first_of
from forge.quantize.awq.states import HiddenStates
from forge.quantize.awq.statistics import InputStatistics
from forge.quantize.awq.workers import Workers

_Caught = tuple[tuple[object, ...], dict[str, object]]


class ModuleSearch:
    """Searches the scales of a block's groups by running its modules.

    Args:
        block: The block, filled, nothing changed yet.
        plan: What is quantized.
        readers: Where the linears are.
        states: Hidden states before the block.
        calls: How the model calls it, by batch.
        scheme: Bits and groups.
        settings: Whether weights count in a scale.
        transposed: Whether linear weights are stored ``[in, out]``.
        workers: Threads.
    """

    def __init__(
        self,
        block: nn.Module,
        plan: BlockPlan,
        readers: Mapping[str, Reader],
        states: HiddenStates,
        calls: Sequence[Call],
        scheme: Scheme,
        *,
        settings: AwqSettings,
        transposed: bool,
        workers: Workers,
    ) -> None:
        self._block = block
        self._scheme = scheme
        self._settings = settings
        self._transposed = transposed
        self._workers = workers
        self._paths = {
            group.pair: _smallest_common([readers[each.module] for each in group.linears])
            for group in plan.groups
            if group.is_scaled
        }
        self._caught = self._catch(states, calls)

    def search(
        self,
        group: FoldGroup,
        inputs: Sequence[InputStatistics | None],
        tensors: Mapping[str, torch.Tensor],
    ) -> ScaleChoice:
        """Find the best scale of a group.

        Args:
            group: The linears.
            inputs: What each of them reads.
            tensors: The block's float32 tensors by name; changed, and put back.

        Returns:
            The choice.
        """
        views = [
            tensors[each.tensor].T if self._transposed else tensors[each.tensor]
            for each in group.linears
        ]
        originals = [view.cpu().contiguous().clone() for view in views]
        candidates = [
            *candidate_scales(
                mean_magnitudes(inputs), originals,
                group_size=self._scheme.group_size, duo_scaling=self._settings.duo_scaling,
                workers=self._workers,
            ),
            torch.ones(originals[0].shape[1]),
        ]  # fmt: skip
        path = self._paths[group.pair]
        expected = self._outputs(path)
        losses = []
        for scale_I in candidates:
            for view, original in zip(views, originals, strict=True):
                change = scaled_errors(original, scale_I, self._scheme, float32_scales=True)
                view.copy_(original + change)
            losses.append(self._loss(path, expected))
        for view, original in zip(views, originals, strict=True):
            view.copy_(original)
        return choose(candidates, np.array(losses))

    def _catch(self, states: HiddenStates, calls: Sequence[Call]) -> dict[str, list[_Caught]]:
        caught: dict[str, list[_Caught]] = {path: [] for path in self._paths.values()}

        def hook(path: str) -> Callable[..., None]:
            def catch(
                _: nn.Module, arguments: tuple[object, ...], keywords: dict[str, object]
            ) -> None:
                caught[path].append((arguments, keywords))

            return catch

        handles = [
            self._block.get_submodule(path).register_forward_pre_hook(hook(path), with_kwargs=True)
            for path in caught
        ]
        device = next(self._block.parameters()).device
        try:
            with torch.no_grad():
                for batch, call in enumerate(calls):
                    self._block(states.get(batch).to(device), *call.arguments, **call.keywords)
        finally:
            for handle in handles:
                handle.remove()
        return caught

    def _run(self, path: str, caught: _Caught) -> torch.Tensor:
        with torch.no_grad():
            return first_of(self._block.get_submodule(path)(*caught[0], **caught[1]))

    def _outputs(self, path: str) -> list[torch.Tensor]:
        return list(self._workers.map(lambda each: self._run(path, each), self._caught[path]))

    def _loss(self, path: str, expected: Sequence[torch.Tensor]) -> float:
        def of_batch(batch: int) -> float:
            change = self._run(path, self._caught[path][batch]) - expected[batch]
            return float(change.square().sum(dtype=torch.float64))

        return sum(self._workers.map(of_batch, range(len(expected))))


def _smallest_common(readers: Sequence[Reader]) -> str:
    """Return the path of the smallest module that holds all these linears; '' is the block."""
    paths = [
        (reader.path if reader.expert is None else reader.path.rpartition(".")[0]).split(".")
        for reader in readers
    ]
    shared = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return ".".join(shared)
