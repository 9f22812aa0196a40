"""Where factors of stacked experts lie in a model's files.

transformers 5 holds the experts of a layer in two parameters, ``gate_up_proj`` and ``down_proj``,
and PEFT adapts parameters (``target_parameters``) by wrapping their module once for each, in the
order in which the module defines them. The last wrapper is the outermost, so in

    mlp.experts.lora_A.weight                    belongs to the last adapted parameter
    mlp.experts.base_layer.lora_A.weight         to the one before it

Files mostly hold one matrix for each expert, with gate and up apart; few hold the stacks.

Reference: PEFT 0.21, ``peft.tuners.lora.layer.ParamWrapper``,
``peft.utils.transformers_weight_conversion``.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final

from forge.checkpoints.lora.names import find_in

PARAMETERS: Final = ("gate_up_proj", "down_proj")
"""In the order in which every family's experts define them."""
STORED_TRANSPOSED: Final = frozenset({"gpt_oss", "openai_privacy_filter", "aria"})
"""Families whose stacks are ``[E, I, O]``."""
_MATRICES: Final = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))
_WRAPPER: Final = ".base_layer"
_MAX_EXPERTS: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """A tensor of the files that factors of experts change.

    Attributes:
        name: In the files.
        expert: Which expert's it is; ``None`` for a stack of all.
        part: Which of ``num_parts`` equal runs of the factors' outputs it is.
        num_parts: 2 where gate and up are apart, else 1.
    """

    name: str
    expert: int | None
    part: int = 0
    num_parts: int = 1


def adapted_parameter(module: str, is_adapted: Callable[[str], bool]) -> str | None:
    """Return the parameter that the factors of a wrapped module belong to.

    Args:
        module: The module as PEFT has it, ``.base_layer`` for each wrapper around included.
        is_adapted: Tells of a parameter, as PEFT has it, whether the adapter changes it.

    Returns:
        The parameter, such as ``model.layers.0.mlp.experts.down_proj``, or ``None`` when the
        module is none of experts, or no parameter of it is adapted.
    """
    plain, depth = module, 0
    while plain.endswith(_WRAPPER):
        plain, depth = plain[: -len(_WRAPPER)], depth + 1
    adapted = [f"{plain}.{name}" for name in PARAMETERS if is_adapted(f"{plain}.{name}")]
    return adapted[-1 - depth] if depth < len(adapted) else None


def expert_tensors(known: Container[str], parameter: str) -> tuple[ExpertTensor, ...]:
    """Return the tensors of a model's files that hold a parameter of stacked experts.

    Args:
        known: Names in the files.
        parameter: What ``adapted_parameter`` returned.

    Returns:
        One stack, or a tensor for each expert (gate and up: two); none when they are not found.
    """
    stack = find_in(known, parameter)
    if stack is not None:
        return (ExpertTensor(stack, None),)
    experts, _, leaf = parameter.rpartition(".")
    for gate, up, down in _MATRICES:
        matrices = (down,) if leaf == "down_proj" else (gate, up)
        found: list[ExpertTensor] = []
        for number in range(_MAX_EXPERTS):
            names = [find_in(known, f"{experts}.{number}.{name}.weight") for name in matrices]
            if None in names:
                break
            found += [
                ExpertTensor(name, number, part, len(matrices))
                for part, name in enumerate(names)
                if name is not None
            ]
        if found:
            return tuple(found)
    return ()
