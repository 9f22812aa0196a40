"""Quantize one decoder block that has been run: search, fold, prove, round.

Legend: O output features, I input features, B sequences, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forge.formats.contract import QuantizedWeight, Scheme
from forge.quantize.awq.capture import Reader
from forge.quantize.awq.fold import (
    EXACT_TOLERANCE,
    TORCH_DTYPES,
    contribution_error,
    fold_group,
    refuse,
    rounds_more_than_norms,
    store_folded,
    tolerance,
)
from forge.quantize.awq.module_search import ModuleSearch
from forge.quantize.awq.plan import BlockPlan, FoldGroup
from forge.quantize.awq.rounding import quantize_linear
from forge.quantize.awq.scales import ScaleChoice, search_scale
from forge.quantize.awq.settings import AwqSettings
from forge.quantize.awq.skeleton import Call, Skeleton, first_of
from forge.quantize.awq.statistics import InputStatistics
from forge.quantize.awq.workers import Workers
from forge.quantize.contract import BlockResult, PlainTensor


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the blocks of a model have in common.

    Attributes:
        dtypes: Types in which the checkpoint stores its tensors.
        one_plus: Whether norms multiply by one plus their weight.
        transposed: Whether linear weights are stored ``[in, out]``.
    """

    dtypes: Mapping[str, str]
    one_plus: bool
    transposed: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """A few tokens on which the fold of a block is proved.

    Attributes:
        before: Hidden states before the block, float32 [B, T, D].
        after: And after it, in full precision.
        call: How the model calls the block on them.
    """

    before: torch.Tensor
    after: torch.Tensor
    call: Call


@dataclass(frozen=True)
class BlockAtWork:
    """A filled block, and what its linears read.

    Attributes:
        skeleton: Holds the block.
        plan: What is quantized.
        tensors: The block's float32 tensors by name; changed in place.
        places: For each linear, the place whose input is its own.
        statistics: By place.
        module_search: Judges scales as AutoAWQ does, or ``None``.
        facts: What the blocks have in common.
        scheme: Bits and groups.
        settings: How scales are judged, and what else is done.
        workers: Threads.
    """

    skeleton: Skeleton
    plan: BlockPlan
    tensors: Mapping[str, torch.Tensor]
    places: Mapping[str, Reader]
    statistics: Mapping[Reader, InputStatistics]
    module_search: ModuleSearch | None
    facts: ModelFacts
    scheme: Scheme
    settings: AwqSettings
    workers: Workers

    def quantize(self, proof: Proof) -> BlockResult:
        """Quantize the block; its tensors then hold the folded weights in full precision.

        Args:
            proof: Tokens on which the fold is proved before anything is rounded.

        Returns:
            The result.

        Raises:
            IncompatibleError: The fold changed what the block computes.
            NonFiniteError: A weight is not finite.
        """
        choices = [self._search(group) for group in self.plan.groups]
        scales = [
            self._fold(group, choice.scale_I, self.tensors)
            for group, choice in zip(self.plan.groups, choices, strict=True)
        ]
        self._prove(proof, choices, EXACT_TOLERANCE)
        store_folded(self.plan, self.tensors, self.facts.dtypes)
        if rounds_more_than_norms(self.plan):
            self._prove(proof, choices, tolerance(self.plan, self.facts.dtypes))
        for group, scale_I in zip(self.plan.groups, scales, strict=True):
            for place in dict.fromkeys(self.places[each.module] for each in group.linears):
                if place in self.statistics:
                    self.statistics[place].divide(scale_I)
        weights: dict[str, QuantizedWeight] = {}
        measured: dict[str, Mapping[str, object]] = {}
        for group, choice in zip(self.plan.groups, choices, strict=True):
            for linear in group.linears:
                inputs = self._inputs(linear.module)
                weights[linear.module], found = quantize_linear(
                    linear.module,
                    self._weight_of(linear.tensor),
                    inputs,
                    scheme=self.scheme,
                    cut=self.settings.clip and linear.clipped,
                    error_feedback=self.settings.error_feedback,
                    workers=self.workers,
                )
                measured[linear.module] = _report(choice, found, inputs)
        folded = {
            name: _plain(self.tensors[name], self.facts.dtypes[name]) for name in self.plan.folded
        }
        return BlockResult(self.plan.index, weights, folded, measured)

    def _inputs(self, module: str) -> InputStatistics | None:
        found = self.statistics.get(self.places[module])
        return found if found is not None and found.num_tokens else None

    def _weight_of(self, tensor: str) -> torch.Tensor:
        weight = self.tensors[tensor]
        return (weight.T if self.facts.transposed else weight).cpu().contiguous()

    def _search(self, group: FoldGroup) -> ScaleChoice:
        inputs = [self._inputs(linear.module) for linear in group.linears]
        width = group.linears[0].shape_OI[1]
        if not group.is_scaled or all(each is None for each in inputs):
            return ScaleChoice(torch.ones(width), None, 0.0, 0.0)
        if self.module_search is not None:
            return self.module_search.search(group, inputs, self.tensors)
        return search_scale(
            [self._weight_of(linear.tensor) for linear in group.linears],
            inputs,
            scheme=self.scheme,
            duo_scaling=self.settings.duo_scaling,
            exact=self.settings.search == "gram",
            workers=self.workers,
        )

    def _fold(
        self, group: FoldGroup, scale_I: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        return fold_group(
            group,
            tensors,
            scale_I,
            dtypes=self.facts.dtypes,
            one_plus=self.facts.one_plus,
            transposed=self.facts.transposed,
        )

    def _prove(self, proof: Proof, choices: Sequence[ScaleChoice], limit: float) -> None:
        """Compare the folded block with the original; name the pair that broke it."""
        error = self._error(proof)
        if error <= limit:
            return
        where = f"Decoder block {self.plan.index}"
        errors = {}
        for group, choice in zip(self.plan.groups, choices, strict=True):
            tensors = self.skeleton.load(self.plan.index)
            self._fold(group, choice.scale_I, tensors)
            errors[group.pair] = self._error(proof)
        # NaN compares with nothing, and is the worst there is.
        worst = max(errors, key=lambda pair: errors[pair] if errors[pair] >= 0 else np.inf)
        raise refuse(worst, where, max(errors[worst], error))

    def _error(self, proof: Proof) -> float:
        with torch.no_grad():
            block = self.skeleton.blocks[self.plan.index]
            device = next(block.parameters()).device
            folded = first_of(
                block(proof.before.to(device), *proof.call.arguments, **proof.call.keywords)
            )
        is_mixture = any(place.expert is not None for place in self.places.values())
        return contribution_error(proof.before, proof.after, folded.cpu(), is_mixture=is_mixture)


def _report(
    choice: ScaleChoice, found: Mapping[str, object], inputs: InputStatistics | None
) -> dict[str, object]:
    report = {
        **found,
        "ratio": choice.ratio,
        "tokens": 0 if inputs is None else inputs.num_tokens,
    }
    if choice.identity_loss > 0:
        report["loss_against_rtn"] = choice.loss / choice.identity_loss
    return report


def _plain(values: torch.Tensor, dtype: str) -> PlainTensor:
    data = values.cpu().to(TORCH_DTYPES[dtype]).contiguous()
    shape = tuple(data.shape)
    return PlainTensor(data.view(-1).view(torch.uint8).numpy(), dtype, shape)
