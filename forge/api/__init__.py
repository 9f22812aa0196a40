"""The Python API. The command line only calls it.

    from pathlib import Path
    from forge import api

    report = api.check("merge_configs/biomistral_dare.yaml")
    result = api.merge("merge_configs/biomistral_dare.yaml", Path("merges/biomistral"))
    assert api.verify(result.out).ok

Every function raises ``ForgeError`` for what is wrong with its input. Importing this module
loads nothing heavy; each function imports what it needs when it is called.

A file holds the functions of one kind of work. Those that measure and report are wanted as they
stand in their rooms, and are fetched from there when they are first named.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from forge.api.adapters import lora_extract
from forge.api.arguments import reference
from forge.api.inspecting import diff, inspect, verify
from forge.api.merging import Engine as Engine
from forge.api.merging import check, load_recipe, merge, methods, plan
from forge.api.mixtures import is_moe, load_moe_recipe, moe
from forge.api.quantizing import Verify as Verify
from forge.api.quantizing import (
    calibrate,
    convert,
    load_quantize_recipe,
    newest_checkpoint,
    plan_quantize,
    quantize,
)
from forge.core.errors import ForgeError

if TYPE_CHECKING:
    from forge.evaluate.divergence_run import measure_divergence as divergence
    from forge.evaluate.run import evaluate_models as evaluate
    from forge.profile.run import profile_models as profile
    from forge.report.folder import write_report as report
    from forge.report.lint import lint_card as lint

__all__ = [
    "ForgeError",
    "calibrate",
    "check",
    "convert",
    "diff",
    "divergence",
    "evaluate",
    "inspect",
    "is_moe",
    "lint",
    "load_moe_recipe",
    "load_quantize_recipe",
    "load_recipe",
    "lora_extract",
    "merge",
    "methods",
    "moe",
    "newest_checkpoint",
    "plan",
    "plan_quantize",
    "profile",
    "quantize",
    "reference",
    "report",
    "verify",
]

_MEASURING: Final = {
    "divergence": ("forge.evaluate.divergence_run", "measure_divergence"),
    "evaluate": ("forge.evaluate.run", "evaluate_models"),
    "lint": ("forge.report.lint", "lint_card"),
    "profile": ("forge.profile.run", "profile_models"),
    "report": ("forge.report.folder", "write_report"),
}
"""Functions that stand in their rooms as a user wants them."""


def __getattr__(name: str) -> Any:
    if name not in _MEASURING:
        raise AttributeError(f"module 'forge.api' has no attribute '{name}'")
    module, function = _MEASURING[name]
    return getattr(importlib.import_module(module), function)
