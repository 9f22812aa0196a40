"""Routers: from what a model reads in prompts, or at random.

A router's row is a direction; its product with a token's state x (what the MLP reads) is how much
its expert is wanted, and only differences between rows count, because a softmax follows. For
prompts whose mean state is p, the row is the unit vector

    u = p / |p|            so u·p = |p| ≥ v·p for any other unit vector v (Cauchy-Schwarz):

of all experts, an expert's own prompts want it most, whatever the others' prompts are. Negative
prompts of mean n count by how they differ from the usual, ū, the mean of all experts' u:

    row = u − (n / |n| − ū)

With plain u − n/|n|, an expert with negative prompts would lose what all states have in common,
which is most of them, and hardly ever be chosen beside one without. At last the mean of all rows is
taken from each. That changes no choice, and it keeps the small differences that decide from being
rounded away when rows are stored in 16 bits.

Legend: L layers, P groups of prompts, E experts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from forge.core.errors import IncompatibleError
from forge.merge.moe.check import Frame
from forge.merge.moe.plan import router_names, shared_gate_names
from forge.merge.plan import random_stream
from forge.recipes.moe_types import MoeRecipe

Floats = npt.NDArray[np.float64]
Gates = Mapping[str, npt.NDArray[np.float32]]
"""Router weights, float32, by their names in the output."""


def prompt_groups(recipe: MoeRecipe) -> tuple[tuple[str, ...], ...]:
    """Return all prompts: what each expert is for, what each is not for, the shared ones' last.

    Args:
        recipe: What to build.
    """
    return (
        *(entry.positive_prompts for entry in recipe.experts),
        *(entry.negative_prompts for entry in recipe.experts),
        *(entry.positive_prompts for entry in recipe.shared_experts),
    )


def make_gates(recipe: MoeRecipe, frame: Frame, states: Floats | None) -> Gates:
    """Return all routers, and the gates of shared experts.

    Args:
        recipe: What to build.
        frame: Its models, which have been checked.
        states: What the prompts mean, [L, P, H] in the order of ``prompt_groups``, L being 1 where
            it is the same in all layers; ``None`` for random routers.

    Returns:
        float32 arrays by name.
    """
    num = len(recipe.experts)
    deviation = _deviation(recipe, frame)
    gates: dict[str, npt.NDArray[np.float32]] = {}
    states_LPH = (
        None if states is None else np.broadcast_to(states, (frame.num_layers, *states.shape[1:]))
    )
    for number, name in enumerate(router_names(frame)):
        if states_LPH is None:
            gates[name] = random_rows(
                recipe.seed, name, num_experts=num, hidden_size=frame.hidden_size,
                deviation=deviation,
            )  # fmt: skip
            continue
        states_PH = states_LPH[number]
        has_negative = [bool(entry.negative_prompts) for entry in recipe.experts]
        gates[name] = rows_of_prompts(states_PH[:num], states_PH[num : 2 * num], has_negative)
    shared = recipe.shared_experts[:1]
    for number, name in enumerate(shared_gate_names(frame)):
        if states_LPH is None or not (shared and shared[0].positive_prompts):
            gates[name] = np.zeros((1, frame.hidden_size), np.float32)
        else:
            gates[name] = row_of_shared(states_LPH[number][2 * num])
    return gates


def _deviation(recipe: MoeRecipe, frame: Frame) -> float:
    stated = frame.subjects[recipe.base_model].text_config.get("initializer_range")
    return float(stated) if isinstance(stated, float) and 0 < stated < 1 else 0.02


def rows_of_prompts(
    positive_EH: Floats, negative_EH: Floats, has_negative_E: Sequence[bool]
) -> npt.NDArray[np.float32]:
    """Return a router's rows.

    Args:
        positive_EH: Mean state of each expert's positive prompts.
        negative_EH: Mean state of its negative prompts; any value where it has none.
        has_negative_E: Whether it has negative prompts.

    Returns:
        float32 [E, H].

    Raises:
        IncompatibleError: The states of an expert's prompts have no direction.
    """
    unit_EH = _unit(positive_EH)
    usual_H = unit_EH.mean(axis=0)
    rows_EH = unit_EH.copy()
    for expert, has_negative in enumerate(has_negative_E):
        if has_negative:
            rows_EH[expert] -= _unit(negative_EH[expert : expert + 1])[0] - usual_H
    centred_EH: Floats = rows_EH - rows_EH.mean(axis=0)
    return centred_EH.astype(np.float32)


def row_of_shared(positive_H: Floats) -> npt.NDArray[np.float32]:
    """Return the gate of a shared expert: a direction, through a sigmoid of its own.

    Args:
        positive_H: Mean state of its prompts.

    Returns:
        float32 [1, H].
    """
    return _unit(positive_H[None]).astype(np.float32)


def random_rows(
    seed: int, tensor: str, *, num_experts: int, hidden_size: int, deviation: float
) -> npt.NDArray[np.float32]:
    """Draw a router's rows: uniform, of mean 0, as wide as the model's fresh weights.

    Each row has a counter-based generator of its own, keyed by seed, tensor and expert, whose raw
    numbers are the same on every machine; uniform numbers are made of them exactly.

    Args:
        seed: The recipe's.
        tensor: Name of the router in the output.
        num_experts: Rows.
        hidden_size: Columns.
        deviation: Standard deviation.

    Returns:
        float32 [E, H].
    """
    rows_EH = np.empty((num_experts, hidden_size), np.float32)
    for expert in range(num_experts):
        stream = random_stream(seed, f"expert {expert}", tensor)
        key = np.array([stream.key, stream.stream], np.int64).view(np.uint64)
        raw = np.random.Philox(key=key).random_raw(hidden_size)
        # 24 bits, with half a step added so that neither end is favoured: exact in float32.
        unit = ((raw >> np.uint64(40)).astype(np.float64) + 0.5) / 2.0**24 - 0.5
        rows_EH[expert] = unit * (deviation * np.sqrt(12.0))
    return rows_EH


def _unit(rows_EH: Floats) -> Floats:
    norms_E = np.linalg.norm(rows_EH, axis=1)
    if not np.all(np.isfinite(norms_E)) or np.any(norms_E == 0):
        raise IncompatibleError(
            "The states of an expert's prompts are zero or not finite, so they show no direction. "
            "Is the base model intact?"
        )
    unit_EH: Floats = rows_EH / norms_E[:, None]
    return unit_EH
