"""Put each tensor of an adapter where it belongs, or say why it belongs nowhere.

Whole tensors come first (see ``whole``); then factors, IA³ vectors and token rows find the tensor
that they change. Every shape is checked against the model's before anything is read. A tensor of
the adapter that nothing uses is an error: it means that the adapter is of another model, or does
something that forge does not know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from forge.checkpoints.lora.dora import Dora
from forge.checkpoints.lora.experts import (
    STORED_TRANSPOSED,
    ExpertTensor,
    adapted_parameter,
    expert_tensors,
)
from forge.checkpoints.lora.factors import Factors
from forge.checkpoints.lora.fitting import Fitting
from forge.checkpoints.lora.names import Part, Role, find_in
from forge.checkpoints.lora.source import Change
from forge.checkpoints.lora.vectors import AddedBias, ScaledRows, TokenRows
from forge.checkpoints.lora.whole import add_whole, check_complete, place_whole

_PAIRS: Final[tuple[tuple[Role, Role], ...]] = (("A", "B"), ("embedding_A", "embedding_B"))


def place(fit: Fitting, parts: Iterable[Part]) -> None:
    """Find the place of every part.

    Args:
        fit: The model and the adapter; receives the plans.
        parts: What the adapter holds.

    Raises:
        CheckpointError: A part fits nowhere, or one is missing.
    """
    whole: dict[str, Part] = {}
    modules: dict[str, dict[Role, Part]] = {}
    for part in parts:
        if part.role == "whole":
            add_whole(fit, whole, part)
        elif part.role != "untrained":
            roles = modules.setdefault(part.place, {})
            if part.role in roles:
                fit.fail(f"changes '{part.place}' twice, by '{part.name}'")
            roles[part.role] = part
    place_whole(fit, whole)
    for module, roles in modules.items():
        stray = whole.get(f"{module}.weight")
        if stray is not None and "A" in roles and ".base_layer." not in stray.name:
            fit.fail(f"holds '{stray.name}' beside factors of that module; PEFT would not load it")
        _place_module(fit, module, roles)
    check_complete(fit, whole)


def _place_module(fit: Fitting, module: str, roles: dict[Role, Part]) -> None:
    if "ia3" in roles:
        _place_ia3(fit, module, roles.pop("ia3"))
    if "tokens" in roles:
        _place_tokens(fit, module, roles.pop("tokens"))
    for first, second in _PAIRS:
        found = [roles.pop(role) for role in (first, second) if role in roles]
        if len(found) == 1:
            fit.fail(
                f"has only one of the two factors of '{module}': '{found[0].name}'. "
                "Download or save it again"
            )
        if found:
            _place_factors(
                fit, module, found[0], found[1], roles, is_embedding=first == "embedding_A"
            )
    if roles:
        left = next(iter(roles.values())).name
        fit.fail(f"holds '{left}', which nothing in adapter_config.json uses")


def _place_factors(
    fit: Fitting, module: str, a: Part, b: Part, roles: dict[Role, Part], *, is_embedding: bool
) -> None:
    parameter = adapted_parameter(module, fit.config.targets_parameter)
    if parameter is not None:
        _place_experts(fit, parameter, a, b)
        return
    target = fit.target(f"{module}.weight", module)
    key = module
    if fit.config.targets_parameter(f"{module}.weight"):
        key = f"{module}.weight"
    info, scale = fit.info(target), fit.config.scale_of(key)
    if len(info.shape) != 2:
        fit.fail(
            f"changes '{target}' of shape {list(info.shape)}; forge merges factors of "
            "matrices and of stacked experts only"
        )
    rank, shapes = fit.config.rank_of(key), (fit.shape(a), fit.shape(b))
    straight = ((rank, info.shape[1]), (info.shape[0], rank))
    flipped = ((rank, info.shape[0]), (info.shape[1], rank))
    if not is_embedding and straight == flipped:
        transposed = fit.stores_transposed(target)
    else:
        transposed = is_embedding or shapes == flipped
    if shapes != (flipped if transposed else straight):
        fit.misfit(info, a, b, rank)
    fit.check_float(info, fit.adapter.info(a.name), fit.adapter.info(b.name))
    factors = Factors(a.name, b.name, scale, transposed=transposed)
    change: Change = factors
    if fit.config.decomposed:
        magnitude = roles.pop("magnitude", None)
        outputs = info.shape[1] if transposed else info.shape[0]
        change = Dora(factors, _magnitude(fit, module, magnitude, outputs))
    fit.add(target, change, module)
    bias = roles.pop("bias_of_B", None)
    if bias is not None:
        _place_bias(fit, module, bias, scale)


def _place_experts(fit: Fitting, parameter: str, a: Part, b: Part) -> None:
    tensors = expert_tensors(fit.known, parameter)
    if not tensors:
        fit.fail(f"changes '{parameter}', which '{fit.base.label}' does not have")
    rank, scale = fit.config.rank_of(parameter), fit.config.scale_of(parameter)
    first = fit.info(tensors[0].name)
    is_stack = tensors[0].expert is None
    if len(first.shape) != (3 if is_stack else 2):
        fit.fail(f"changes '{first.name}' of shape {list(first.shape)}, not a stack")
    count = first.shape[0] if is_stack else len(tensors) // tensors[0].num_parts
    out, inner = first.shape[-2:]
    transposed = is_stack and fit.model_type in STORED_TRANSPOSED
    if transposed:
        out, inner = inner, out
    expected = ((rank * count, inner), (out * tensors[0].num_parts, rank * count))
    if (fit.shape(a), fit.shape(b)) != expected:
        fit.misfit(first, a, b, rank)
    for tensor in tensors:
        info = fit.info(tensor.name)
        if info.shape != first.shape:
            fit.fail(f"changes '{info.name}', which is not as large as '{first.name}'")
        fit.check_float(info, fit.adapter.info(a.name), fit.adapter.info(b.name))
        fit.add(tensor.name, _of_expert(tensor, a, b, scale, count, transposed, out), "")


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


def _magnitude(fit: Fitting, module: str, part: Part | None, outputs: int) -> str:
    if part is None:
        fit.fail(f"has no lora_magnitude_vector of '{module}', but says use_dora")
    if fit.shape(part) not in ((outputs,), (outputs, 1), (1, outputs)):
        fit.fail(f"holds '{part.name}' of shape {list(fit.shape(part))} for {outputs} outputs")
    fit.check_float(fit.adapter.info(part.name))
    return part.name


def _place_bias(fit: Fitting, module: str, part: Part, scale: float) -> None:
    target = find_in(fit.known, f"{module}.bias")
    if target is None:
        fit.fail(
            f"trains a bias of the factors of '{module}', which has no bias in "
            f"'{fit.base.label}' to be added to; PEFT cannot merge it either"
        )
    info = fit.info(target)
    if fit.shape(part) != info.shape:
        fit.fail(f"holds '{part.name}', which does not fit '{target}' {list(info.shape)}")
    fit.check_float(info, fit.adapter.info(part.name))
    fit.add(target, AddedBias(part.name, scale), module)


def _place_ia3(fit: Fitting, module: str, part: Part) -> None:
    target = fit.target(f"{module}.weight", module)
    info, shape = fit.info(target), fit.shape(part)
    out, inner = info.shape if len(info.shape) == 2 else (-1, -1)
    if fit.stores_transposed(target):
        out, inner = inner, out
    if shape not in ((out, 1), (1, inner)) or out < 0:
        fit.fail(f"holds '{part.name}' of shape {list(shape)}, not a vector of '{target}'")
    fit.check_float(info, fit.adapter.info(part.name))
    by_outputs = shape == (out, 1)
    by_rows = by_outputs != fit.stores_transposed(target)
    fit.add(target, ScaledRows(part.name, by_rows), module)
    bias = find_in(fit.known, f"{module}.bias")
    if by_outputs and bias is not None:
        fit.add(bias, ScaledRows(part.name, by_rows=True), module)


def _place_tokens(fit: Fitting, module: str, part: Part) -> None:
    target = fit.target(f"{module}.weight", module)
    indices = fit.config.token_indices
    named = [rows for name, rows in indices.items() if name and module.endswith(name)]
    is_vocabulary = target in fit.vocabulary.names
    tokens = named[0] if named else indices.get("") if is_vocabulary else None
    if tokens is None and fit.vocabulary.tied and is_vocabulary and len(indices) == 1:
        tokens = next(iter(indices.values()))
    if tokens is None:
        fit.fail(f"holds '{part.name}', and adapter_config.json names no tokens of it")
    info = fit.info(target)
    if len(info.shape) != 2 or fit.shape(part) != (len(tokens), info.shape[1]):
        fit.fail(
            f"holds '{part.name}' of shape {list(fit.shape(part))} for {len(tokens)} tokens "
            f"of '{target}' {list(info.shape)}"
        )
    if max(tokens) >= info.shape[0]:
        fit.fail(f"trains token {max(tokens)}, and '{target}' has {info.shape[0]:,} rows")
    fit.check_float(info, fit.adapter.info(part.name))
    fit.add(target, TokenRows(part.name, tokens), module)
