"""How long a quantization will take, from rates that were measured, before it has begun.

The rates are those of one core of a server processor of 2023 with AVX-512 (see
``docs/calibration.md``). Another machine is off by a factor, and a busy one by more; the estimate
tells minutes from hours, and says what it rests on.
"""

from __future__ import annotations

import os
from typing import Final

from forge.quantize.plan import QuantizePlan
from forge.recipes.quantize_types import QuantizeRecipe

_WEIGHTS_PER_CORE_SECOND: Final = {
    "bnb-nf4": 0.25e9,
    "bnb-fp4": 0.25e9,
    "bnb-int8": 0.5e9,
    "codes": 0.1e9,
}
"""Weights that one core turns into what is written, by format; the rest is copied."""
_COPIED_BYTES_PER_SECOND: Final = 1.0e9
_FORWARD_FLOPS: Final = 60e9
"""A core's operations a second while blocks run on the calibration set."""
_WRITING_FLOPS: Final = 35e9
"""The same while the model writes it, token by token."""
_SEARCH_FLOPS_PER_WEIGHT: Final = {"sketch": 10_000, "gram": 30_000, "module": 160_000}
"""What the search for scales and clips costs a weight; of ``module``, more with more tokens."""
_START_SECONDS: Final = 3.0


def expected_seconds(
    recipe: QuantizeRecipe, plan: QuantizePlan, *, threads: int | None = None
) -> float:
    """Estimate the time of a quantization.

    Args:
        recipe: What is made.
        plan: Its plan.
        threads: Worker threads; by default one for each core that this process may use.

    Returns:
        Seconds.
    """
    cores = threads or len(os.sched_getaffinity(0))
    weights = plan.num_quantized
    seconds = _START_SECONDS + plan.output_bytes / _COPIED_BYTES_PER_SECOND
    for output in plan.outputs:
        name = output.variant.format
        rate = _WEIGHTS_PER_CORE_SECOND.get(name, _WEIGHTS_PER_CORE_SECOND["codes"])
        seconds += weights / rate / cores
    if recipe.calibration is not None:
        num_tokens = recipe.calibration.num_tokens
        core_seconds = 2.0 * weights * num_tokens / _FORWARD_FLOPS
        core_seconds += weights * _SEARCH_FLOPS_PER_WEIGHT[recipe.search] / _FORWARD_FLOPS
        if recipe.calibration.source == "self":
            core_seconds += 2.0 * plan.num_parameters * num_tokens / _WRITING_FLOPS
        seconds += core_seconds / cores
    return seconds
