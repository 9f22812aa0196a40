"""A model and an adapter while the one is fitted to the other.

What is asked of every change is here: which tensor of the model's files it means, whether it may
change that tensor, and what an error says.
"""

from __future__ import annotations

import dataclasses
from typing import NoReturn

from forge.checkpoints.header import TensorInfo
from forge.checkpoints.lora.config import AdapterConfig
from forge.checkpoints.lora.names import Part, find_in
from forge.checkpoints.lora.source import Change, Plan
from forge.checkpoints.lora.vectors import TokenRows
from forge.checkpoints.lora.vocabulary import CONV1D_FAMILIES, Vocabulary
from forge.checkpoints.source import SafetensorsSource, TensorSource
from forge.core.catalog import did_you_mean
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError


class Fitting:
    """Plans of the tensors that an adapter changes, as they are found.

    Args:
        base: The model.
        adapter: The adapter's tensors.
        config: The adapter's settings.
        vocabulary: The model's embedding and head.
        model_type: The model's family, as its config says.

    Attributes:
        known: Names of the model's tensors.
        plans: By name of the result's tensor.
        notices: What the user should know.
        rows: The new number of tokens, or ``None``.
        untied: Whether embedding and head were tied and are no longer.
    """

    def __init__(
        self,
        base: TensorSource,
        adapter: SafetensorsSource,
        config: AdapterConfig,
        vocabulary: Vocabulary,
        *,
        model_type: object,
    ) -> None:
        self.base = base
        self.adapter = adapter
        self.config = config
        self.vocabulary = vocabulary
        self.model_type = model_type
        self.known = frozenset(base.names())
        self._changed_by: dict[str, list[str]] = {}
        self.plans: dict[str, Plan] = {}
        self.notices: list[str] = []
        self.rows: int | None = None
        self.untied = False

    def find(self, name: str) -> str:
        """Return the tensor of the model's files that a name means, its head included.

        Args:
            name: The tensor as PEFT has it.

        Raises:
            CheckpointError: There is none.
        """
        target = find_in(self.known, name)
        if target is None and self.vocabulary.head is not None:
            target = find_in({self.vocabulary.head}, name)
        if target is None:
            self.fail(
                f"changes '{name}', which '{self.base.label}' does not have."
                f"{did_you_mean(name, self.known)} Is it an adapter of another model"
            )
        return target

    def target(self, name: str, module: str) -> str:
        """Return the tensor that a module's change lies in, which for a tied head is another.

        Args:
            name: The module's weight as PEFT has it.
            module: The module, for messages.

        Raises:
            CheckpointError: There is none.
        """
        target = self.find(name)
        if not self.is_tied(target) or self.untied:
            return target
        embedding = self.vocabulary.embedding
        if embedding is None:
            self.fail(f"changes '{module}', which is tied to an embedding that is not there")
        return embedding

    def info(self, name: str) -> TensorInfo:
        """Return a tensor of the result, as far as it is planned.

        Args:
            name: The tensor.
        """
        plan = self.plans.get(name)
        return self.base.info(name) if plan is None else plan.info

    def shape(self, part: Part) -> tuple[int, ...]:
        """Return the shape of a part of the adapter.

        Args:
            part: The part.
        """
        return self.adapter.info(part.name).shape

    def read(self, name: str) -> memoryview:
        """Return the bytes of a part of the adapter.

        Args:
            name: The part.
        """
        return self.adapter.read(name)

    def is_tied(self, name: str) -> bool:
        """Tell whether a tensor is a head that is the embedding in the model.

        Args:
            name: The tensor.
        """
        return self.vocabulary.tied and name == self.vocabulary.head

    def add(self, target: str, change: Change, module: str) -> None:
        """Plan a change.

        Args:
            target: The tensor that it changes.
            change: What it does.
            module: Whose change it is.

        Raises:
            CheckpointError: The tensor is changed already, and not through one that is tied to it.
        """
        former = self.plans.get(target)
        plan = former or Plan(self.base.info(target), target)
        makers = self._changed_by.setdefault(target, [])
        if makers and not self._may_share(target, change, plan):
            return
        makers.append(module)
        self.plans[target] = dataclasses.replace(plan, changes=(*plan.changes, change))
        if self.vocabulary.tied and target == self.vocabulary.embedding and not self.untied:
            self._tell_of_tie(change)

    def _may_share(self, target: str, change: Change, plan: Plan) -> bool:
        """Tell whether a second change of a tensor is wanted: one through each of two tied ones."""
        is_tied = self.vocabulary.tied and target == self.vocabulary.embedding
        tokens = [one for one in plan.changes if isinstance(one, TokenRows)]
        if not is_tied or (bool(tokens) != isinstance(change, TokenRows)):
            self.fail(f"changes '{target}' twice, by '{change.names[0]}'")
        if isinstance(change, TokenRows):
            same = [one for one in tokens if one.tokens == change.tokens]
            if any(self.read(one.rows) != self.read(change.rows) for one in same):
                self.fail(
                    f"holds '{same[0].rows}' and '{change.rows}' with different values, but the "
                    "model ties the two. Untie the model first"
                )
            return not same
        return True

    def _tell_of_tie(self, change: Change) -> None:
        if isinstance(change, TokenRows):
            return
        if self.config.keeps_tie:
            self.fail(
                "uses ensure_weight_tying with a LoRA on the tied embedding, which PEFT's own "
                "merge adds twice. Untie the model and its adapter, or retrain without it"
            )
        text = (
            f"'{self.base.label}' ties its head to its embedding, so what the adapter "
            f"'{self.adapter.label}' adds to one changes both; PEFT's merge does the same. "
            "Untie the model first if that is not what was trained."
        )
        if text not in self.notices:
            self.notices.append(text)

    def stores_transposed(self, target: str) -> bool:
        """Tell whether a square layer is stored ``[in, out]``; other shapes say it themselves.

        Args:
            target: Its weight.
        """
        if target in self.vocabulary.names:
            return False
        if self.vocabulary.architecture is None:
            return self.config.fan_in_fan_out
        return self.model_type in CONV1D_FAMILIES

    def check_float(self, *tensors: TensorInfo) -> None:
        """Refuse tensors that hold no ordinary numbers.

        Args:
            tensors: Of the model or the adapter.

        Raises:
            CheckpointError: One is of another type.
        """
        for tensor in tensors:
            if not DTYPES[tensor.dtype].mergeable:
                self.fail(
                    f"meets '{tensor.name}' of type {tensor.dtype}; adapters need ordinary "
                    "floating-point weights. Put it on the model in full precision"
                )

    def misfit(self, tensor: TensorInfo, a: Part, b: Part, rank: int) -> NoReturn:
        """Say that factors do not fit a tensor.

        Args:
            tensor: The tensor.
            a: One factor.
            b: The other.
            rank: The rank that they should have.

        Raises:
            CheckpointError: Always.
        """
        self.fail(
            f"does not fit '{tensor.name}' {list(tensor.shape)}: A is {list(self.shape(a))} and "
            f"B {list(self.shape(b))}, with r = {rank}. Is it an adapter of another model"
        )

    def fail(self, what: str) -> NoReturn:
        """Say what is wrong with the adapter.

        Args:
            what: The rest of a sentence that begins with the adapter, without its full stop.

        Raises:
            CheckpointError: Always.
        """
        raise CheckpointError(
            f"The adapter '{self.adapter.label}' {what}{'?' if 'Is it' in what else '.'}"
        )
