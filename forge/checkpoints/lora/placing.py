"""Put each tensor of an adapter where it belongs, or say why it belongs nowhere.

Whole tensors come first, because they can change how many tokens there are; then factors, IA³
vectors and token rows find the tensor that they change. Every shape is checked against the model's
before anything is read. A tensor of the adapter that nothing uses is an error: it means that the
adapter is of another model, or does something that forge does not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final, NoReturn

from forge.checkpoints.header import TensorInfo
from forge.checkpoints.lora.config import AdapterConfig
from forge.checkpoints.lora.dora import Dora
from forge.checkpoints.lora.experts import (
    STORED_TRANSPOSED,
    ExpertTensor,
    adapted_parameter,
    expert_tensors,
)
from forge.checkpoints.lora.factors import Factors
from forge.checkpoints.lora.names import Part, Role, find_in
from forge.checkpoints.lora.source import Change, Plan
from forge.checkpoints.lora.vectors import AddedBias, ScaledRows, TokenRows
from forge.checkpoints.lora.vocabulary import CONV1D_FAMILIES, Vocabulary
from forge.checkpoints.source import SafetensorsSource, TensorSource
from forge.core.catalog import did_you_mean
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError

_PAIRS: Final[tuple[tuple[Role, Role], ...]] = (("A", "B"), ("embedding_A", "embedding_B"))


class Placement:
    """Plans of the tensors that an adapter changes, as they are found.

    Args:
        base: The model.
        adapter: The adapter's tensors.
        config: The adapter's settings.
        vocabulary: The model's embedding and head.
        model_type: The model's family, as its config says.

    Attributes:
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
        self._base = base
        self._adapter = adapter
        self._config = config
        self._vocabulary = vocabulary
        self._model_type = model_type
        self._known = set(base.names())
        self._changed_by: dict[str, list[str]] = {}
        self.plans: dict[str, Plan] = {}
        self.notices: list[str] = []
        self.rows: int | None = None
        self.untied = False

    def place(self, parts: Iterable[Part]) -> None:
        """Find the place of every part.

        Args:
            parts: What the adapter holds.

        Raises:
            CheckpointError: A part fits nowhere, or one is missing.
        """
        whole: dict[str, Part] = {}
        modules: dict[str, dict[Role, Part]] = {}
        for part in parts:
            if part.role == "whole":
                self._add_whole(whole, part)
            elif part.role != "untrained":
                roles = modules.setdefault(part.place, {})
                if part.role in roles:
                    self._fail(f"changes '{part.place}' twice, by '{part.name}'")
                roles[part.role] = part
        self._place_whole(whole)
        for module, roles in modules.items():
            self._place_module(module, roles)
        self._check_complete(whole)

    # -- whole tensors ---------------------------------------------------------------------

    def _add_whole(self, whole: dict[str, Part], part: Part) -> None:
        """Keep one of the copies that PEFT writes of a module that is trained and resized."""
        former = whole.get(part.place)
        if former is None:
            whole[part.place] = part
            return
        copies = [one for one in (former, part) if ".modules_to_save." in one.name]
        if len(copies) != 1 or any(".base_layer." in one.name for one in (former, part)):
            self._fail(f"holds '{part.place}' twice, as '{former.name}' and '{part.name}'")
        whole[part.place] = former if copies == [part] else part

    def _place_whole(self, whole: Mapping[str, Part]) -> None:
        embedding, head = self._vocabulary.embedding, self._vocabulary.head
        placed: dict[str, Part] = {}
        for place, part in whole.items():
            target = self._find(place)
            if target in placed:
                self._fail(f"changes '{target}' twice, by '{part.name}'")
            placed[target] = part
        both = [placed[name] for name in (embedding, head) if name is not None and name in placed]
        if self._vocabulary.tied and embedding is not None and head is not None and both:
            self._untie_or_share(placed, both)
        for target, part in placed.items():
            origin = target if target in self._known and not self._is_tied(target) else embedding
            assert origin is not None
            self._replace(target, part.name, origin)
        self._check_rows()

    def _untie_or_share(self, placed: dict[str, Part], both: list[Part]) -> None:
        embedding, head = self._vocabulary.embedding, self._vocabulary.head
        assert embedding is not None
        assert head is not None
        modules = [part.place.rpartition(".")[0] for part in both]
        if any(map(self._config.is_saved_whole, modules)) and not self._config.keeps_tie:
            self.untied = True
            self.notices.append(
                f"The adapter '{self._adapter.label}' trains {' and '.join(modules)} whole, so "
                "embedding and head are tied no longer; PEFT's merge does the same."
            )
            if head not in placed:
                info = dataclasses.replace(self._base.info(embedding), name=head)
                self.plans[head] = Plan(info, embedding)
            return
        if len(both) == 2 and self._read(both[0].name) != self._read(both[1].name):
            self._fail(
                f"holds '{both[0].name}' and '{both[1].name}' with different values, but the model "
                "ties the two. Untie the model first"
            )
        placed.pop(head, None)
        placed[embedding] = both[0]

    def _read(self, name: str) -> bytes | memoryview:
        return self._adapter.read(name)

    def _is_tied(self, name: str) -> bool:
        return self._vocabulary.tied and name == self._vocabulary.head

    def _replace(self, target: str, name: str, origin: str) -> None:
        base, own = self._base.info(origin), self._adapter.info(name)
        self._check_float(base, own)
        is_vocabulary = target in self._vocabulary.names and len(base.shape) == 2
        if own.shape != base.shape and not (
            is_vocabulary and len(own.shape) == 2 and own.shape[1] == base.shape[1]
        ):
            self._fail(
                f"holds '{name}' of shape {list(own.shape)}, but '{origin}' of "
                f"'{self._base.label}' is {list(base.shape)}. Is it an adapter of another model"
            )
        itemsize = DTYPES[base.dtype].itemsize
        info = dataclasses.replace(base, name=target, shape=own.shape, nbytes=own.numel * itemsize)
        self.plans[target] = Plan(info, origin, whole=name)

    def _check_rows(self) -> None:
        names = [self._vocabulary.embedding]
        if not self._vocabulary.tied or self.untied:
            names.append(self._vocabulary.head)
        rows = {
            name: self._info(name).shape[0]
            for name in names
            if name is not None and (name in self._known or name in self.plans)
        }
        embedding = self._vocabulary.embedding
        if embedding is None or not rows:
            return
        if len(set(rows.values())) > 1:
            listing = " and ".join(f"'{name}' {count:,}" for name, count in rows.items())
            self._fail(
                f"changes the number of tokens of one part alone: {listing} rows. Save the other "
                "with it (save_embedding_layers=True), or resize the model first"
            )
        if rows[embedding] != self._base.info(embedding).shape[0]:
            self.rows = rows[embedding]
            self.notices.append(
                f"The adapter '{self._adapter.label}' changes the vocabulary from "
                f"{self._base.info(embedding).shape[0]:,} to {self.rows:,} rows."
            )

    # -- modules ---------------------------------------------------------------------------

    def _place_module(self, module: str, roles: dict[Role, Part]) -> None:
        if "ia3" in roles:
            self._place_ia3(module, roles.pop("ia3"))
        if "tokens" in roles:
            self._place_tokens(module, roles.pop("tokens"))
        for first, second in _PAIRS:
            found = [roles.pop(role) for role in (first, second) if role in roles]
            if len(found) == 1:
                self._fail(
                    f"has only one of the two factors of '{module}': '{found[0].name}'. "
                    "Download or save it again"
                )
            if found:
                self._place_factors(
                    module, found[0], found[1], roles, is_embedding=first == "embedding_A"
                )
        if roles:
            left = next(iter(roles.values())).name
            self._fail(f"holds '{left}', which nothing in adapter_config.json uses")

    def _place_factors(
        self, module: str, a: Part, b: Part, roles: dict[Role, Part], *, is_embedding: bool
    ) -> None:
        parameter = adapted_parameter(module, self._config.targets_parameter)
        if parameter is not None:
            self._place_experts(parameter, a, b)
            return
        target = self._target(f"{module}.weight", module)
        key = module
        if self._config.targets_parameter(f"{module}.weight"):
            key = f"{module}.weight"
        info, scale = self._info(target), self._config.scale_of(key)
        if len(info.shape) != 2:
            self._fail(
                f"changes '{target}' of shape {list(info.shape)}; forge merges factors of "
                "matrices and of stacked experts only"
            )
        rank, shapes = self._config.rank_of(key), (self._shape(a), self._shape(b))
        straight = ((rank, info.shape[1]), (info.shape[0], rank))
        flipped = ((rank, info.shape[0]), (info.shape[1], rank))
        if not is_embedding and straight == flipped:
            transposed = self._stores_transposed(target)
        else:
            transposed = is_embedding or shapes == flipped
        if shapes != (flipped if transposed else straight):
            self._misfit(info, a, b, rank)
        self._check_float(info, self._adapter.info(a.name), self._adapter.info(b.name))
        factors = Factors(a.name, b.name, scale, transposed=transposed)
        change: Change = factors
        if self._config.decomposed:
            magnitude = roles.pop("magnitude", None)
            outputs = info.shape[1] if transposed else info.shape[0]
            change = Dora(factors, self._magnitude(module, magnitude, outputs))
        self._add(target, change, module)
        bias = roles.pop("bias_of_B", None)
        if bias is not None:
            self._place_bias(module, bias, scale)

    def _place_experts(self, parameter: str, a: Part, b: Part) -> None:
        tensors = expert_tensors(self._known, parameter)
        if not tensors:
            self._fail(f"changes '{parameter}', which '{self._base.label}' does not have")
        rank, scale = self._config.rank_of(parameter), self._config.scale_of(parameter)
        first = self._info(tensors[0].name)
        is_stack = tensors[0].expert is None
        if len(first.shape) != (3 if is_stack else 2):
            self._fail(f"changes '{first.name}' of shape {list(first.shape)}, not a stack")
        count = first.shape[0] if is_stack else len(tensors) // tensors[0].num_parts
        out, inner = first.shape[-2:]
        transposed = is_stack and self._model_type in STORED_TRANSPOSED
        if transposed:
            out, inner = inner, out
        expected = ((rank * count, inner), (out * tensors[0].num_parts, rank * count))
        if (self._shape(a), self._shape(b)) != expected:
            self._misfit(first, a, b, rank)
        for tensor in tensors:
            info = self._info(tensor.name)
            if info.shape != first.shape:
                self._fail(f"changes '{info.name}', which is not as large as '{first.name}'")
            self._check_float(info, self._adapter.info(a.name), self._adapter.info(b.name))
            self._add(tensor.name, self._of_expert(tensor, a, b, scale, count, transposed, out), "")

    @staticmethod
    def _of_expert(
        tensor: ExpertTensor, a: Part, b: Part, scale: float, count: int, transposed: bool, out: int
    ) -> Factors:
        return Factors(
            a.name,
            b.name,
            scale,
            transposed=transposed,
            num_experts=count,
            expert=tensor.expert,
            first_out=tensor.part * out,
            num_out=out if tensor.num_parts > 1 else None,
        )

    def _magnitude(self, module: str, part: Part | None, outputs: int) -> str:
        if part is None:
            self._fail(f"has no lora_magnitude_vector of '{module}', but says use_dora")
        if self._shape(part) not in ((outputs,), (outputs, 1), (1, outputs)):
            self._fail(
                f"holds '{part.name}' of shape {list(self._shape(part))} for {outputs} outputs"
            )
        self._check_float(self._adapter.info(part.name))
        return part.name

    def _place_bias(self, module: str, part: Part, scale: float) -> None:
        target = find_in(self._known, f"{module}.bias")
        if target is None:
            self._fail(
                f"trains a bias of the factors of '{module}', which has no bias in "
                f"'{self._base.label}' to be added to; PEFT cannot merge it either"
            )
        info = self._info(target)
        if self._shape(part) != info.shape:
            self._fail(f"holds '{part.name}', which does not fit '{target}' {list(info.shape)}")
        self._check_float(info, self._adapter.info(part.name))
        self._add(target, AddedBias(part.name, scale), module)

    def _place_ia3(self, module: str, part: Part) -> None:
        target = self._target(f"{module}.weight", module)
        info, shape = self._info(target), self._shape(part)
        out, inner = info.shape if len(info.shape) == 2 else (-1, -1)
        if self._stores_transposed(target):
            out, inner = inner, out
        if shape not in ((out, 1), (1, inner)) or out < 0:
            self._fail(f"holds '{part.name}' of shape {list(shape)}, not a vector of '{target}'")
        self._check_float(info, self._adapter.info(part.name))
        by_outputs = shape == (out, 1)
        by_rows = by_outputs != self._stores_transposed(target)
        self._add(target, ScaledRows(part.name, by_rows), module)
        bias = find_in(self._known, f"{module}.bias")
        if by_outputs and bias is not None:
            self._add(bias, ScaledRows(part.name, by_rows=True), module)

    def _place_tokens(self, module: str, part: Part) -> None:
        target = self._target(f"{module}.weight", module)
        indices = self._config.token_indices
        named = [rows for name, rows in indices.items() if name and module.endswith(name)]
        is_vocabulary = target in self._vocabulary.names
        tokens = named[0] if named else indices.get("") if is_vocabulary else None
        if tokens is None and self._vocabulary.tied and is_vocabulary and len(indices) == 1:
            tokens = next(iter(indices.values()))
        if tokens is None:
            self._fail(f"holds '{part.name}', and adapter_config.json names no tokens of it")
        info = self._info(target)
        if len(info.shape) != 2 or self._shape(part) != (len(tokens), info.shape[1]):
            self._fail(
                f"holds '{part.name}' of shape {list(self._shape(part))} for {len(tokens)} tokens "
                f"of '{target}' {list(info.shape)}"
            )
        if max(tokens) >= info.shape[0]:
            self._fail(f"trains token {max(tokens)}, and '{target}' has {info.shape[0]:,} rows")
        self._check_float(info, self._adapter.info(part.name))
        self._add(target, TokenRows(part.name, tokens), module)

    # -- what is asked of every change -----------------------------------------------------

    def _find(self, name: str) -> str:
        target = find_in(self._known, name)
        if target is None and self._vocabulary.head is not None:
            target = find_in({self._vocabulary.head}, name)
        if target is None:
            self._fail(
                f"changes '{name}', which '{self._base.label}' does not have."
                f"{did_you_mean(name, self._known)} Is it an adapter of another model"
            )
        return target

    def _target(self, name: str, module: str) -> str:
        """Return the tensor that a module's change lies in, which for a tied head is another."""
        target = self._find(name)
        if not self._is_tied(target) or self.untied:
            return target
        embedding = self._vocabulary.embedding
        if embedding is None:
            self._fail(f"changes '{module}', which is tied to an embedding that is not there")
        return embedding

    def _info(self, name: str) -> TensorInfo:
        plan = self.plans.get(name)
        return self._base.info(name) if plan is None else plan.info

    def _shape(self, part: Part) -> tuple[int, ...]:
        return self._adapter.info(part.name).shape

    def _add(self, target: str, change: Change, module: str) -> None:
        former = self.plans.get(target)
        plan = former or Plan(self._base.info(target), target)
        makers = self._changed_by.setdefault(target, [])
        if makers and not self._may_share(target, change, plan):
            return
        makers.append(module)
        self.plans[target] = dataclasses.replace(plan, changes=(*plan.changes, change))
        if self._vocabulary.tied and target == self._vocabulary.embedding and not self.untied:
            self._tell_of_tie(change)

    def _may_share(self, target: str, change: Change, plan: Plan) -> bool:
        """Tell whether a second change of a tensor is wanted: one through each of two tied ones."""
        is_tied = self._vocabulary.tied and target == self._vocabulary.embedding
        tokens = [one for one in plan.changes if isinstance(one, TokenRows)]
        if not is_tied or (bool(tokens) != isinstance(change, TokenRows)):
            self._fail(f"changes '{target}' twice, by '{change.names[0]}'")
        if isinstance(change, TokenRows):
            same = [one for one in tokens if one.tokens == change.tokens]
            if any(self._read(one.rows) != self._read(change.rows) for one in same):
                self._fail(
                    f"holds '{same[0].rows}' and '{change.rows}' with different values, but the "
                    "model ties the two. Untie the model first"
                )
            return not same
        return True

    def _tell_of_tie(self, change: Change) -> None:
        if isinstance(change, TokenRows):
            return
        if self._config.keeps_tie:
            self._fail(
                "uses ensure_weight_tying with a LoRA on the tied embedding, which PEFT's own "
                "merge adds twice. Untie the model and its adapter, or retrain without it"
            )
        text = (
            f"'{self._base.label}' ties its head to its embedding, so what the adapter "
            f"'{self._adapter.label}' adds to one changes both; PEFT's merge does the same. "
            "Untie the model first if that is not what was trained."
        )
        if text not in self.notices:
            self.notices.append(text)

    def _stores_transposed(self, target: str) -> bool:
        """Tell whether a square layer is stored ``[in, out]``; other shapes say it themselves."""
        if target in self._vocabulary.names:
            return False
        if self._vocabulary.architecture is None:
            return self._config.fan_in_fan_out
        return self._model_type in CONV1D_FAMILIES

    def _check_float(self, *tensors: TensorInfo) -> None:
        for tensor in tensors:
            if not DTYPES[tensor.dtype].mergeable:
                self._fail(
                    f"meets '{tensor.name}' of type {tensor.dtype}; adapters need ordinary "
                    "floating-point weights. Put it on the model in full precision"
                )

    def _check_complete(self, whole: Mapping[str, Part]) -> None:
        modules = [place.rpartition(".")[0] for place in whole]
        for name in self._config.modules_to_save:
            if not any(module.endswith(name) or f".{name}." in f".{module}." for module in modules):
                self._fail(
                    f"says modules_to_save = '{name}', but holds no tensor of such a module. "
                    "Download or save it again"
                )

    def _misfit(self, tensor: TensorInfo, a: Part, b: Part, rank: int) -> NoReturn:
        self._fail(
            f"does not fit '{tensor.name}' {list(tensor.shape)}: A is {list(self._shape(a))} and "
            f"B {list(self._shape(b))}, with r = {rank}. Is it an adapter of another model"
        )

    def _fail(self, what: str) -> NoReturn:
        raise CheckpointError(
            f"The adapter '{self._adapter.label}' {what}{'?' if 'Is it' in what else '.'}"
        )
